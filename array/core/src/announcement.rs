//! What a target says it has: a stream of segment ids that goes on for as long as the target installs.
//!
//! ```text
//! offset    size  field
//! 32 × i      32  the SHA-256 of a sealed segment that the target has verified; or
//!             32  zeros: the target has all that it wants, and fetches no more
//! ```
//!
//! There is no header and no length: a piece of the stream means something as soon as 32 bytes of it are there, in whatever
//! pieces the network brings them. The order is the one in which the segments were verified, so whoever listens again from
//! the beginning hears the same. No bytes are known whose SHA-256 is zero. The version is the one of the path,
//! `/peer/v1/have`.
//!
//! An image has a known number of segments: who announces more lies, and is not listened to any longer.

use crate::id::SegmentId;

/// Bytes of one announcement.
pub const BYTES: usize = 32;
const COMPLETE: [u8; BYTES] = [0; BYTES];

/// One word of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Announcement {
    /// It has this segment, verified.
    Has(SegmentId),
    /// It has all that it wants.
    Complete,
}

impl Announcement {
    /// Its bytes in the stream.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; BYTES] {
        match self {
            Self::Has(id) => id.0,
            Self::Complete => COMPLETE,
        }
    }

    const fn from_bytes(bytes: [u8; BYTES]) -> Self {
        let mut at = 0;
        while at < BYTES {
            if bytes[at] != 0 {
                return Self::Has(SegmentId(bytes));
            }
            at += 1;
        }
        Self::Complete
    }
}

/// A target announces more than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("announces more than the {most} segments of the image")]
pub struct TooMany {
    pub most: usize,
}

/// Reads the stream of one target.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The beginning of an announcement whose end has not come yet.
    begun: Vec<u8>,
    heard: usize,
    most: usize,
}

impl Listener {
    /// Listens to a target that installs an image of so many segments.
    #[must_use]
    pub const fn new(segments: usize) -> Self {
        Self { begun: Vec::new(), heard: 0, most: segments }
    }

    /// Takes the next piece of the stream; what is said in it, and in what came before it, in full.
    ///
    /// # Errors
    /// [`TooMany`], after which the stream is not worth reading.
    pub fn hear(&mut self, piece: &[u8]) -> Result<Vec<Announcement>, TooMany> {
        let count = (self.begun.len() + piece.len()) / BYTES;
        self.heard = self.heard.saturating_add(count);
        // Each segment once, and the last word.
        if self.heard > self.most.saturating_add(1) {
            return Err(TooMany { most: self.most });
        }
        self.begun.extend_from_slice(piece);
        let whole: Vec<_> = self.begun.drain(..count * BYTES).collect();
        Ok(whole.as_chunks().0.iter().copied().map(Announcement::from_bytes).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn announcement() -> impl Strategy<Value = Announcement> {
        prop_oneof![
            4 => any::<[u8; 32]>().prop_map(Announcement::from_bytes),
            1 => (0..32_usize).prop_map(|at| {
                let mut id = [0; 32];
                id[at] = 1;
                Announcement::Has(SegmentId(id))
            }),
            1 => Just(Announcement::Complete),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard_in_whatever_pieces_it_comes(
            said in vec(announcement(), 0..20),
            cuts in vec(1..70_usize, 0..40),
        ) {
            let bytes: Vec<u8> = said.iter().flat_map(|word| word.to_bytes()).collect();
            let mut listener = Listener::new(said.len());
            let (mut heard, mut rest) = (Vec::new(), bytes.as_slice());
            for cut in cuts {
                let (piece, more) = rest.split_at(cut.min(rest.len()));
                heard.extend(listener.hear(piece).unwrap());
                rest = more;
            }
            heard.extend(listener.hear(rest).unwrap());
            prop_assert_eq!(heard, said);
        }

        #[test]
        fn nobody_is_heard_beyond_what_there_is(
            segments in 0..10_usize,
            pieces in vec(vec(any::<u8>(), 0..200), 0..20),
        ) {
            let mut listener = Listener::new(segments);
            let (mut heard, mut bytes) = (0, 0);
            for piece in pieces {
                bytes += piece.len();
                let Ok(words) = listener.hear(&piece) else {
                    prop_assert!(bytes / BYTES > segments + 1);
                    return Ok(());
                };
                heard += words.len();
                prop_assert_eq!(heard, bytes / BYTES);
                prop_assert!(listener.begun.len() < BYTES);
            }
            prop_assert!(heard <= segments + 1);
        }
    }
}
