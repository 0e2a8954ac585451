//! Rate limits: how fast a machine sends and receives segments at most.
//!
//! A machine has limits of its own and those of its site, and obeys the lower. What is limited are segments, in both
//! directions: everything else is small.
//!
//! Invariants: over any time the bytes that passed are at most the rate times that time, and one burst; those that wait pass in
//! the order in which they came; a limit changed meanwhile counts from the next bytes on.

use std::{
    fmt,
    num::NonZeroU64,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use tokio::time::Instant;

/// What may pass at once after a pause.
const BURST: Duration = Duration::from_millis(50);
/// Below this a segment takes so long that its receiver takes the sender for dead.
const LEAST: u64 = 125_000;

/// Bytes a second, at least 1 Mbit/s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(NonZeroU64);

/// The text is not a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRate {
    #[error("not a rate: write it like 50Mbit/s or 10MB/s, or `none` for no limit")]
    Unreadable,
    #[error("too slow to move segments: allow at least 1Mbit/s, or `none` for no limit")]
    TooSlow,
}

impl Rate {
    /// # Errors
    /// [`BadRate::TooSlow`].
    pub fn from_bytes(bytes_a_second: u64) -> Result<Self, BadRate> {
        let enough = Some(bytes_a_second).filter(|bytes| *bytes >= LEAST);
        enough.and_then(NonZeroU64::new).map(Self).ok_or(BadRate::TooSlow)
    }

    /// Bytes a second.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.get()
    }
}

impl FromStr for Rate {
    type Err = BadRate;

    /// `50Mbit/s`, `1Gbit`, `10MB/s`, `10MiB/s`; bits are decimal.
    fn from_str(text: &str) -> Result<Self, BadRate> {
        let text = text.trim();
        let text = text.strip_suffix("/s").unwrap_or(text);
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| BadRate::Unreadable)?;
        let (factor, bits) = match unit.trim().to_ascii_lowercase().as_str() {
            "kbit" => (1_000, true),
            "mbit" => (1_000_000, true),
            "gbit" => (1_000_000_000, true),
            "kb" => (1_000, false),
            "mb" => (1_000_000, false),
            "gb" => (1_000_000_000, false),
            "kib" => (1 << 10, false),
            "mib" => (1 << 20, false),
            "gib" => (1 << 30, false),
            _ => return Err(BadRate::Unreadable),
        };
        let amount = number.checked_mul(factor).ok_or(BadRate::Unreadable)?;
        Self::from_bytes(if bits { amount / 8 } else { amount })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = u128::from(self.0.get()) * 8;
        let (unit, name) = match bits {
            1_000_000_000.. if bits.is_multiple_of(100_000_000) => (1_000_000_000, "Gbit/s"),
            1_000_000.. if bits.is_multiple_of(100_000) => (1_000_000, "Mbit/s"),
            _ => (1_000, "kbit/s"),
        };
        let tenths = bits * 10 / unit;
        match tenths % 10 {
            0 => write!(f, "{} {name}", tenths / 10),
            tenth => write!(f, "{}.{tenth} {name}", tenths / 10),
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.get())
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_bytes(u64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A rate limit as people say it: a rate, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<Rate>);

impl FromStr for Limit {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        match text {
            "none" => Ok(Self(None)),
            text => text.parse().map(|rate| Self(Some(rate))),
        }
    }
}

/// The rate limits of a machine, or of every machine of a site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// Of what it sends; none: as fast as it can.
    pub upload: Option<Rate>,
    /// Of what it receives; none: as fast as it can.
    pub download: Option<Rate>,
}

impl Rates {
    /// The same with those that are named.
    #[must_use]
    pub fn with(self, upload: Option<Limit>, download: Option<Limit>) -> Self {
        Self {
            upload: upload.map_or(self.upload, |limit| limit.0),
            download: download.map_or(self.download, |limit| limit.0),
        }
    }

    /// The lower of both, each way.
    #[must_use]
    pub fn within(self, other: Self) -> Self {
        let lower = |a: Option<Rate>, b: Option<Rate>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, other) => one.or(other),
        };
        Self {
            upload: lower(self.upload, other.upload),
            download: lower(self.download, other.download),
        }
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |rate: Option<Rate>| rate.map_or_else(|| "none".to_owned(), |r| r.to_string());
        write!(f, "upload {}, download {}", show(self.upload), show(self.download))
    }
}

/// The limit of one direction, shared by everything that goes that way. Without a limit until one is set.
#[derive(Clone, Debug, Default)]
pub struct Pace(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    rate: Option<Rate>,
    /// When all that was let through until now has passed.
    free_at: Option<Instant>,
}

impl Pace {
    /// Limits what passes from now on.
    pub fn set(&self, rate: Option<Rate>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).rate = rate;
    }

    /// Waits until so many bytes may have passed.
    pub async fn pass(&self, bytes: usize) {
        let until = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.reserve(bytes, Instant::now())
        };
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
        }
    }
}

impl State {
    /// When these bytes have passed, if that is not at once.
    fn reserve(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let rate = self.rate?;
        let nanos = u128::from(bytes as u64) * 1_000_000_000 / u128::from(rate.bytes());
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let begin = self.free_at.map_or(now, |free_at| free_at.max(now));
        let free_at = begin + takes;
        self.free_at = Some(free_at);
        // Sleeping for less is not worth it, and would make every pause a little too long.
        (free_at > now + BURST).then_some(free_at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_are_read_and_shown_as_people_write_them() {
        for (text, bytes, shown) in [
            ("50Mbit/s", 6_250_000, "50 Mbit/s"),
            ("1gbit", 125_000_000, "1 Gbit/s"),
            ("2500 Mbit/s", 312_500_000, "2.5 Gbit/s"),
            ("10MB/s", 10_000_000, "80 Mbit/s"),
            ("1MiB/s", 1 << 20, "8388.6 kbit/s"),
            ("1000kbit", 125_000, "1 Mbit/s"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.bytes(), rate.to_string().as_str()), (bytes, shown), "{text}");
        }
        for text in ["", "50", "fast", "50Mbit/h", "-1Mbit/s", "99999999999999999999Mbit"] {
            assert_eq!(text.parse::<Rate>(), Err(BadRate::Unreadable), "{text}");
        }
        assert_eq!("999kbit/s".parse::<Rate>(), Err(BadRate::TooSlow));
        assert!(serde_json::from_str::<Rate>("1").is_err());
        let rate: Rate = serde_json::from_str("125000").unwrap();
        assert_eq!(serde_json::to_string(&rate).unwrap(), "125000");
    }

    #[test]
    fn the_lower_limit_counts_each_way() {
        let rate = |text: &str| Some(text.parse().unwrap());
        let own = Rates { upload: rate("10Mbit/s"), download: None };
        let site = Rates { upload: rate("50Mbit/s"), download: rate("100Mbit/s") };
        let both = Rates { upload: rate("10Mbit/s"), download: rate("100Mbit/s") };
        assert_eq!((own.within(site), site.within(own)), (both, both));
        assert_eq!(own.to_string(), "upload 10 Mbit/s, download none");
        assert_eq!(both.with("none".parse().ok(), None), Rates { upload: None, ..both });
        assert!("nothing".parse::<Limit>().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_together_takes_as_long_as_one_after_the_other() {
        let pace = Pace::default();
        let begun = Instant::now();
        pace.pass(usize::MAX).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "no limit");
        pace.set(Some(Rate::from_bytes(1_000_000).unwrap()));
        let sendings = (0..10).map(|_| {
            let pace = pace.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    pace.pass(100_000).await;
                }
            })
        });
        for sending in sendings.collect::<Vec<_>>() {
            sending.await.unwrap();
        }
        let took = begun.elapsed();
        assert!(took.abs_diff(Duration::from_secs(10)) <= BURST, "{took:?}");
        // Nothing is saved up while nothing passes.
        tokio::time::sleep(Duration::from_secs(100)).await;
        let begun = Instant::now();
        pace.pass(1_000_000).await;
        assert!(begun.elapsed().abs_diff(Duration::from_secs(1)) <= BURST);
        pace.set(None);
        pace.pass(usize::MAX).await;
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_one_burst(
            rate in LEAST..100_000_000, steps in prop::collection::vec((1..500_000_usize, 0..100_u64), 1..100),
        ) {
            let mut state = State { rate: Some(Rate::from_bytes(rate).unwrap()), free_at: None };
            let begun = Instant::now();
            let (mut now, mut passed) = (begun, 0_u128);
            for (bytes, pause) in steps {
                now = state.reserve(bytes, now).unwrap_or(now);
                passed += bytes as u128;
                let allowed = u128::from(rate) * (now - begun + BURST).as_nanos() / 1_000_000_000;
                prop_assert!(passed <= allowed + 1000, "{passed} of {allowed}");
                now += Duration::from_millis(pause);
            }
        }
    }
}
