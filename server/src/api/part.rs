//! Parts of lists: who wants a list in parts says `limit`, and follows `Link: <…>; rel="next"` (RFC 8288) to the next one.
//!
//! A part begins after a place in the order of the list, not after a number of entries: what is added or removed meanwhile
//! neither hides others nor shows them twice.

use axum::{
    Json,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::error::ApiError;

const MOST: u32 = 1000;

/// Which part of a list.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Part {
    /// Where it begins: as the `next` link of the part before says.
    after: Option<String>,
    /// At most so many entries; without it the list is not parted.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// What lists have: each has a place among the others.
pub(crate) trait Placed {
    /// In the order of the list as texts are ordered; never that of another.
    fn place(&self) -> String;
}

/// A list, or a part of it with the way to the next one.
#[derive(Debug)]
pub(crate) struct Listed<T> {
    pub(crate) entries: Vec<T>,
    next: Option<String>,
}

/// The newest first, by number.
pub(crate) fn newest_first(number: i64) -> String {
    format!("{:020}", i64::MAX.abs_diff(number))
}

impl Part {
    /// Whether the list is to be parted.
    pub(crate) const fn is_asked(&self) -> bool {
        self.limit.is_some() || self.after.is_some()
    }

    /// That part of them.
    pub(crate) fn of<T: Placed>(&self, mut entries: Vec<T>) -> Result<Listed<T>, ApiError> {
        if !self.is_asked() {
            return Ok(Listed { entries, next: None });
        }
        let limit = self.limit.unwrap_or(MOST);
        if !(1..=MOST).contains(&limit) {
            return Err(ApiError::bad_request(
                "bad_limit",
                format!("a part of a list has 1 to {MOST} entries"),
            ));
        }
        entries.sort_by_cached_key(Placed::place);
        if let Some(after) = &self.after {
            let after =
                URL_SAFE_NO_PAD.decode(after).ok().and_then(|it| String::from_utf8(it).ok());
            let after = after.ok_or_else(|| {
                ApiError::bad_request(
                    "bad_place",
                    "`after` is what the `next` link of the part before says",
                )
            })?;
            entries.retain(|entry| entry.place() > after);
        }
        let more = entries.len() > limit as usize;
        entries.truncate(limit as usize);
        let last = entries.last().filter(|_| more).map(Placed::place);
        let next = last.map(|place| {
            format!("<?limit={limit}&after={}>; rel=\"next\"", URL_SAFE_NO_PAD.encode(place))
        });
        Ok(Listed { entries, next })
    }
}

impl<T> Listed<T> {
    /// Others in place of the entries.
    pub(crate) fn with<U>(self, entries: Vec<U>) -> Listed<U> {
        Listed { entries, next: self.next }
    }
}

impl<T: Serialize> IntoResponse for Listed<T> {
    fn into_response(self) -> Response {
        let mut response = Json(self.entries).into_response();
        if let Some(next) = self.next.and_then(|next| HeaderValue::from_str(&next).ok()) {
            response.headers_mut().insert(header::LINK, next);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Entry(i64);

    impl Placed for Entry {
        fn place(&self) -> String {
            newest_first(self.0)
        }
    }

    fn following(next: &str) -> Part {
        let (_, after) = next.split_once("after=").unwrap();
        let (after, _) = after.split_once('>').unwrap();
        let (_, limit) = next.split_once("limit=").unwrap();
        let (limit, _) = limit.split_once('&').unwrap();
        Part { after: Some(after.to_owned()), limit: limit.parse().ok() }
    }

    #[test]
    fn what_is_no_part_is_refused() {
        let entries = vec![Entry(1)];
        for limit in [0, 1001, u32::MAX] {
            assert!(Part { limit: Some(limit), after: None }.of(entries.clone()).is_err());
        }
        assert!(Part { limit: None, after: Some("%".to_owned()) }.of(entries.clone()).is_err());
        assert_eq!(Part::default().of(entries.clone()).unwrap().entries, entries);
    }

    proptest! {
        /// All parts together are the list, in order; what is removed between two of them hides nothing else.
        #[test]
        fn parts_make_the_list(
            numbers in btree_set(any::<i64>().prop_filter("ids count up", |it| *it >= 0), 0..40),
            limit in 1..9_u32,
            gone in any::<prop::sample::Index>(),
        ) {
            let all: Vec<_> = numbers.iter().copied().map(Entry).collect();
            let wanted: Vec<_> = all.iter().rev().cloned().collect();
            let (mut there, mut seen) = (all, Vec::new());
            let mut part = Part { after: None, limit: Some(limit) };
            loop {
                let listed = part.of(there.clone()).unwrap();
                prop_assert!(listed.entries.len() <= limit as usize);
                seen.extend(listed.entries);
                let Some(next) = listed.next else { break };
                part = following(&next);
                // One that was shown goes.
                let shown = gone.index(seen.len());
                there.retain(|entry| *entry != seen[shown]);
            }
            prop_assert_eq!(seen, wanted);
        }
    }
}
