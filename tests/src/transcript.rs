//! What a program or a machine has printed so far, and waiting for it to print something.
//!
//! A prompt does not end its line, firmware prints escape sequences and binary noise, so this is a
//! stream of bytes searched by regular expressions and not a list of lines. Waiting is by
//! condition variable: a wait ends with the very bytes that satisfy it.
//!
//! Invariant: memory is bounded; of a talkative program the oldest bytes are forgotten.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use regex::bytes::Regex;

/// The most that is kept of one program's output.
const KEPT_BYTES: usize = 16 << 20;
/// How much of the end an error quotes.
const QUOTED_BYTES: usize = 3000;

#[derive(Debug, Default)]
pub struct Transcript {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many bytes were forgotten before `bytes`.
    forgotten: usize,
    bytes: Vec<u8>,
    /// Nobody writes any more.
    closed: bool,
}

/// A place in a transcript where something was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The whole match and its groups; a group that took no part is empty.
    pub groups: Vec<String>,
    /// The position after the match: where the search for the next thing starts.
    pub end: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    #[error("no /{wanted}/ within {seconds} s; the last that was printed:\n{tail}", seconds = timeout.as_secs())]
    Timeout { wanted: String, timeout: Duration, tail: String },
    #[error("the program ended before it printed /{wanted}/; the last that was printed:\n{tail}")]
    Ended { wanted: String, tail: String },
    #[error("saw /{failure}/ while waiting for /{wanted}/; the last that was printed:\n{tail}")]
    Failure { wanted: String, failure: String, tail: String },
}

impl Transcript {
    pub fn append(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.bytes.extend_from_slice(bytes);
        if state.bytes.len() > KEPT_BYTES {
            // Half at once, so that forgetting costs nothing on average.
            let forget = state.bytes.len() - KEPT_BYTES / 2;
            state.bytes.drain(..forget);
            state.forgotten += forget;
        }
        drop(state);
        self.changed.notify_all();
    }

    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until `wanted` matches at or after position `from`.
    ///
    /// # Errors
    /// `timeout` passes, the program ends, or one of `failures` matches before `wanted` does.
    pub fn wait_for(
        &self,
        from: usize,
        wanted: &Regex,
        failures: &[Regex],
        timeout: Duration,
    ) -> Result<Found, WaitError> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(outcome) = state.search(from, wanted, failures) {
                return outcome;
            }
            if state.closed {
                return Err(WaitError::Ended { wanted: wanted.to_string(), tail: state.tail() });
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                let tail = state.tail();
                return Err(WaitError::Timeout { wanted: wanted.to_string(), timeout, tail });
            };
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What was printed from position `from` on, as text.
    pub fn text(&self, from: usize) -> String {
        let state = self.lock();
        String::from_utf8_lossy(state.after(from)).into_owned()
    }

    /// The position after the last byte.
    pub fn end(&self) -> usize {
        let state = self.lock();
        state.forgotten + state.bytes.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of a reader cannot leave the bytes half appended in a way that matters here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn after(&self, from: usize) -> &[u8] {
        let start = from.saturating_sub(self.forgotten).min(self.bytes.len());
        self.bytes.get(start..).unwrap_or_default()
    }

    fn search(
        &self,
        from: usize,
        wanted: &Regex,
        failures: &[Regex],
    ) -> Option<Result<Found, WaitError>> {
        let bytes = self.after(from);
        let offset = self.forgotten + self.bytes.len() - bytes.len();
        let found = wanted.captures(bytes).map(|captures| {
            let groups = captures
                .iter()
                .map(|group| group.map(|group| String::from_utf8_lossy(group.as_bytes())))
                .map(|group| group.unwrap_or_default().into_owned())
                .collect();
            let at = captures.get_match();
            (at.start(), Found { groups, end: offset + at.end() })
        });
        let start = found.as_ref().map_or(bytes.len(), |(start, _)| *start);
        let failure = failures
            .iter()
            .find(|failure| failure.find(bytes).is_some_and(|at| at.start() < start));
        match (failure, found) {
            (Some(failure), _) => Some(Err(WaitError::Failure {
                wanted: wanted.to_string(),
                failure: failure.to_string(),
                tail: self.tail(),
            })),
            (None, Some((_, found))) => Some(Ok(found)),
            (None, None) => None,
        }
    }

    fn tail(&self) -> String {
        let start = self.bytes.len().saturating_sub(QUOTED_BYTES);
        String::from_utf8_lossy(self.bytes.get(start..).unwrap_or_default()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn regex(text: &str) -> Regex {
        Regex::new(text).unwrap()
    }

    #[test]
    fn a_prompt_is_found_across_pieces_and_without_a_line_end() {
        let transcript = Transcript::default();
        thread::scope(|scope| {
            scope.spawn(|| {
                for piece in ["\x1b[0mcairn-", "demo lo", "gin: "] {
                    transcript.append(piece.as_bytes());
                }
            });
            let found = transcript.wait_for(0, &regex("cairn-(demo) login:"), &[], SOON).unwrap();
            assert_eq!(found.groups, ["cairn-demo login:", "demo"]);
            assert_eq!(found.end, 4 + 17);
        });
    }

    #[test]
    fn a_failure_that_comes_first_wins_and_one_that_comes_later_does_not() {
        let transcript = Transcript::default();
        transcript.append(b"PXE-E18 then login:");
        let failures = [regex("PXE-E")];
        let error = transcript.wait_for(0, &regex("login:"), &failures, SOON).unwrap_err();
        assert!(matches!(error, WaitError::Failure { .. }), "{error}");
        transcript.append(b" PXE-E");
        let found = transcript.wait_for(5, &regex("login:"), &failures, SOON).unwrap();
        assert_eq!(found.end, 19);
    }

    #[test]
    fn the_end_of_the_program_ends_the_wait() {
        let transcript = Transcript::default();
        transcript.append(b"half a w");
        transcript.close();
        let error = transcript.wait_for(0, &regex("word"), &[], SOON).unwrap_err();
        assert!(matches!(&error, WaitError::Ended { tail, .. } if tail == "half a w"), "{error}");
    }

    #[test]
    fn positions_stay_valid_when_old_output_is_forgotten() {
        let transcript = Transcript::default();
        for _ in 0..40 {
            transcript.append(&vec![b'x'; 1 << 20]);
        }
        let end = transcript.end();
        assert_eq!(end, 40 << 20);
        transcript.append(b"marker");
        assert_eq!(transcript.text(end), "marker");
        assert!(transcript.text(0).len() <= KEPT_BYTES);
        let found = transcript.wait_for(0, &regex("marker"), &[], SOON).unwrap();
        assert_eq!(found.end, end + 6);
    }
}
