//! Fetching segments from members.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use cairn_core::{fetch::Source, id::SegmentId};
use reqwest::StatusCode;

use crate::{
    pace::Pace,
    tls::{self, Member},
};

/// How long a peer may be silent.
const STALL: Duration = Duration::from_secs(8);
/// A peer that sends less than this in all, in bytes per second, is as good as silent.
const SLOWEST: u64 = 16 << 10;
/// Digits of the largest turn number.
const TURN_DIGITS: usize = 20;

/// A turn that a peer has granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnNumber(u64);

/// The member behind a source.
const fn member(source: Source) -> Member {
    match source {
        Source::Peer(agent) => Member::Agent(agent),
        Source::Target(install) => Member::Target(install),
        Source::Server => Member::Server,
    }
}

/// Why a segment did not come from a source.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    #[error("sent nothing for {} seconds, or less than {SLOWEST} bytes a second", STALL.as_secs())]
    Stalled,
    #[error("does not hold the segment")]
    Missing,
    #[error("is busy sending to others")]
    Busy,
    #[error("gave the segment to another target just now")]
    Elsewhere,
    #[error("refuses with status {0}")]
    Refused(StatusCode),
    #[error("broke off")]
    Broken(#[source] reqwest::Error),
    #[error("sent other bytes than the segment's id names")]
    Bad,
}

/// Fetches segments from members.
#[derive(Clone, Debug)]
pub struct PeerClient {
    client: reqwest::Client,
    pace: Pace,
}

impl PeerClient {
    /// Asks through `client`, which knows the site's CA, the own papers and the members' addresses.
    #[must_use]
    pub fn new(client: reqwest::Client) -> Self {
        Self { client, pace: Pace::default() }
    }

    /// The same, receiving at this pace.
    #[must_use]
    pub fn paced(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    pub(super) const fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// Waits for a turn with `from`.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn turn(&self, from: Source) -> Result<TurnNumber, FetchError> {
        let url = tls::url(&member(from), "/peer/v1/turn");
        let answer = accepted(within(self.client.get(url).send()).await?)?;
        let number = collect(answer, TURN_DIGITS, &Pace::default()).await?;
        let number = std::str::from_utf8(&number).ok().and_then(|text| text.parse().ok());
        number.map(TurnNumber).ok_or(FetchError::Bad)
    }

    /// Gives a turn back. A peer that does not hear it ends the turn by itself.
    pub async fn pass(&self, from: Source, turn: TurnNumber) {
        let url = tls::url(&member(from), &format!("/peer/v1/turn/{}", turn.0));
        if let Err(error) = within(self.client.delete(url).send()).await {
            tracing::debug!(%from, %error, "give a turn back");
        }
    }

    /// The segment's bytes, checked against its id and length. Targets show their turn; without one they wait for it.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch(
        &self,
        from: Source,
        id: SegmentId,
        bytes: u32,
        turn: Option<TurnNumber>,
    ) -> Result<Bytes, FetchError> {
        let turn = turn.map_or_else(String::new, |turn| format!("?turn={}", turn.0));
        let url = tls::url(&member(from), &format!("/peer/v1/segment/{id}{turn}"));
        let answer = accepted(within(self.client.get(url).send()).await?)?;
        let length = bytes as usize;
        if answer.content_length().is_some_and(|told| told != u64::from(bytes)) {
            return Err(FetchError::Bad);
        }
        let body = collect(answer, length, &self.pace).await?;
        if body.len() != length {
            return Err(FetchError::Bad);
        }
        // Hashing 4 MiB takes milliseconds: off the threads that move other bodies.
        let checked =
            tokio::task::spawn_blocking(move || (SegmentId::of(&body) == id).then_some(body)).await;
        checked.ok().flatten().ok_or(FetchError::Bad)
    }

    /// What a target has, as it verifies it: see [`cairn_core::announcement`].
    ///
    /// # Errors
    /// See [`FetchError`].
    pub(crate) async fn have(&self, from: Source) -> Result<reqwest::Response, FetchError> {
        let url = tls::url(&member(from), "/peer/v1/have");
        accepted(within(self.client.get(url).send()).await?)
    }
}

fn accepted(
    answer: Result<reqwest::Response, reqwest::Error>,
) -> Result<reqwest::Response, FetchError> {
    let answer = answer.map_err(FetchError::Unreachable)?;
    match answer.status() {
        StatusCode::OK => Ok(answer),
        StatusCode::NOT_FOUND => Err(FetchError::Missing),
        StatusCode::CONFLICT => Err(FetchError::Elsewhere),
        StatusCode::TOO_MANY_REQUESTS => Err(FetchError::Busy),
        status => Err(FetchError::Refused(status)),
    }
}

/// At most `most` bytes. What is not taken yet keeps the sender waiting.
pub(super) async fn collect(
    mut answer: reqwest::Response,
    most: usize,
    pace: &Pace,
) -> Result<Bytes, FetchError> {
    let mut body = BytesMut::with_capacity(most);
    // What the own pace holds back is not the peer's fault.
    let mut waited = Duration::ZERO;
    let patience = STALL + Duration::from_secs(most as u64 / SLOWEST);
    loop {
        let asked = Instant::now();
        let Some(chunk) = within(answer.chunk()).await?.map_err(FetchError::Broken)? else { break };
        waited += asked.elapsed();
        if waited > patience {
            return Err(FetchError::Stalled);
        }
        if body.len() + chunk.len() > most {
            return Err(FetchError::Bad);
        }
        body.extend_from_slice(&chunk);
        pace.pass(chunk.len()).await;
    }
    Ok(body.freeze())
}

pub(super) async fn within<T>(step: impl Future<Output = T>) -> Result<T, FetchError> {
    tokio::time::timeout(STALL, step).await.map_err(|_| FetchError::Stalled)
}
