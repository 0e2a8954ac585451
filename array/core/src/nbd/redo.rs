//! What a client sends again when its server was away: requests that were not answered, and changes that were but that no
//! flush has made durable, because a server that lost power has lost them.
//!
//! ```text
//!   request ─► open ── answered ──► a change: kept ── a flush that was sent later is answered ──► forgotten
//!                 └──────────────► anything else, or a change that failed: forgotten
//! ```
//!
//! A change that was durable at once is kept like others: done again, an earlier one would undo it.
//!
//! Invariants: requests go out under numbers of their own, so that one that is done twice is answered once; what is kept is
//! bounded, because a flush is sent when it is too much; nobody hears of an answer before everything that it stands for would
//! be sent again.

use std::{collections::BTreeMap, sync::Arc};

use super::request::{Command, REQUEST_BYTES, Request, Served};

/// Changes that are kept before a flush is sent for their sake.
pub const KEPT_BYTES: usize = 16 << 20;

/// A request's bytes, payload included.
pub type Bytes = Arc<[u8]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read {
        length: u32,
    },
    Change,
    /// Makes durable what was answered up to this moment.
    Flush {
        covers: u64,
    },
    Other,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Of who asked; none when that is this ledger itself.
    cookie: Option<u64>,
    bytes: Bytes,
    kind: Kind,
    /// When it was answered.
    answered: Option<u64>,
}

/// An answer that nobody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server answers what it was not asked")]
pub struct Unasked;

/// See the module.
#[derive(Debug, Default)]
pub struct Redo {
    next: u64,
    /// By number, in the order in which they were sent.
    entries: BTreeMap<u64, Entry>,
    /// Counts answers.
    clock: u64,
    kept: usize,
    flushing: bool,
}

impl Redo {
    /// Takes a request; the bytes to send for it.
    pub fn send(&mut self, head: &[u8; REQUEST_BYTES], request: Request, payload: &[u8]) -> Bytes {
        // Whether the range is there is the server's to say.
        let served = Served { size: u64::MAX, read_only: false, block_status: false };
        let kind = match request.check(served) {
            Ok(Command::Read) => Kind::Read { length: request.length },
            Ok(Command::Write { .. } | Command::Zero { .. }) => Kind::Change,
            Ok(Command::Flush) => Kind::Flush { covers: self.clock },
            _ => Kind::Other,
        };
        self.add(Some(request.cookie), head, payload, kind)
    }

    fn add(
        &mut self,
        cookie: Option<u64>,
        head: &[u8; REQUEST_BYTES],
        payload: &[u8],
        kind: Kind,
    ) -> Bytes {
        let number = self.next;
        self.next += 1;
        let bytes: Bytes =
            Request::with_cookie(head, number).iter().chain(payload).copied().collect();
        self.entries
            .insert(number, Entry { cookie, bytes: Arc::clone(&bytes), kind, answered: None });
        bytes
    }

    /// A flush to send when too much is kept.
    pub fn flush_due(&mut self) -> Option<Bytes> {
        if self.kept < KEPT_BYTES || self.flushing {
            return None;
        }
        self.flushing = true;
        Some(self.add(None, &Request::flush(), &[], Kind::Flush { covers: self.clock }))
    }

    /// The bytes that follow a good answer to this number.
    ///
    /// # Errors
    /// [`Unasked`].
    pub fn read_length(&self, number: u64) -> Result<u32, Unasked> {
        let entry = self.entries.get(&number).filter(|entry| entry.answered.is_none());
        match entry.ok_or(Unasked)?.kind {
            Kind::Read { length } => Ok(length),
            _ => Ok(0),
        }
    }

    /// Takes an answer: under which cookie somebody waits for it.
    ///
    /// # Errors
    /// [`Unasked`].
    pub fn answer(&mut self, number: u64, error: u32) -> Result<Option<u64>, Unasked> {
        let entry = self.entries.get_mut(&number).filter(|entry| entry.answered.is_none());
        let entry = entry.ok_or(Unasked)?;
        self.clock += 1;
        let (cookie, kind) = (entry.cookie, entry.kind);
        if error == 0 && kind == Kind::Change {
            entry.answered = Some(self.clock);
            self.kept += entry.bytes.len();
            return Ok(cookie);
        }
        self.entries.remove(&number);
        if let Kind::Flush { covers } = kind {
            self.flushing &= cookie.is_some();
            if error == 0 {
                let durable = |entry: &Entry| entry.answered.is_some_and(|when| when <= covers);
                self.entries.retain(|_, entry| !durable(entry));
                let kept = self.entries.values().filter(|entry| entry.answered.is_some());
                self.kept = kept.map(|entry| entry.bytes.len()).sum();
            }
        }
        Ok(cookie)
    }

    /// The answered changes to do again first, each until it is answered, with their numbers.
    #[must_use]
    pub fn kept(&self) -> Vec<(u64, Bytes)> {
        let kept = self.entries.iter().filter(|(_, entry)| entry.answered.is_some());
        kept.map(|(number, entry)| (*number, Arc::clone(&entry.bytes))).collect()
    }

    /// The requests to send again after that.
    #[must_use]
    pub fn open(&self) -> Vec<Bytes> {
        let open = self.entries.values().filter(|entry| entry.answered.is_none());
        open.map(|entry| Arc::clone(&entry.bytes)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn head(
        command: u16,
        flags: u16,
        cookie: u64,
        offset: u64,
        length: u32,
    ) -> [u8; REQUEST_BYTES] {
        let mut bytes = Request::flush();
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&command.to_be_bytes());
        bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&offset.to_be_bytes());
        bytes[24..].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    /// Eight bytes at eight places; what was not flushed goes with the power.
    #[derive(Clone, Default)]
    struct Server {
        durable: [u64; 8],
        now: [u64; 8],
    }

    impl Server {
        /// Does a request: its number.
        fn take(&mut self, bytes: &[u8]) -> u64 {
            let (head, payload) = bytes.split_first_chunk::<REQUEST_BYTES>().unwrap();
            let request = Request::parse(head).unwrap();
            match (head[7], head[5]) {
                (1, fua) => {
                    let place = usize::try_from(request.offset).unwrap();
                    self.now[place] = u64::from_be_bytes(payload.try_into().unwrap());
                    if fua == 1 {
                        self.durable[place] = self.now[place];
                    }
                }
                (3, _) => self.durable = self.now,
                other => panic!("{other:?}"),
            }
            request.cookie
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Write {
            place: u8,
            fua: bool,
        },
        Flush,
        /// The server does the oldest request that it has.
        Do,
        /// Its oldest answer arrives.
        Hear,
        /// The connection breaks, with the power of the server or without.
        Break {
            power: bool,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..8_u8, any::<bool>()).prop_map(|(place, fua)| Step::Write { place, fua: fua && place == 0 }),
            1 => Just(Step::Flush),
            4 => Just(Step::Do),
            4 => Just(Step::Hear),
            1 => any::<bool>().prop_map(|power| Step::Break { power }),
        ]
    }

    fn again(redo: &Redo, server: &mut Server, sent: &mut VecDeque<Bytes>) {
        for (number, bytes) in redo.kept() {
            assert_eq!(server.take(&bytes), number);
        }
        *sent = redo.open().into();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever breaks when: in the end the server has what a disk would have, durably, and each request was answered once.
        #[test]
        fn nothing_that_was_answered_is_lost(steps in vec(step(), 0..60)) {
            let (mut redo, mut server) = (Redo::default(), Server::default());
            let (mut sent, mut told) = (VecDeque::new(), VecDeque::new());
            let mut wanted = [0_u64; 8];
            let (mut asked, mut heard) = (Vec::new(), Vec::new());
            let steps = steps.into_iter().chain([Step::Break { power: true }, Step::Flush]);
            for step in steps {
                let cookie = 1000 + asked.len() as u64;
                match step {
                    Step::Write { place, fua } => {
                        asked.push(cookie);
                        wanted[usize::from(place)] = cookie;
                        let head = head(1, fua.into(), cookie, place.into(), 8);
                        let request = Request::parse(&head).unwrap();
                        sent.push_back(redo.send(&head, request, &cookie.to_be_bytes()));
                    }
                    Step::Flush => {
                        asked.push(cookie);
                        let head = head(3, 0, cookie, 0, 0);
                        sent.push_back(redo.send(&head, Request::parse(&head).unwrap(), &[]));
                    }
                    Step::Do => {
                        if let Some(bytes) = sent.pop_front() {
                            told.push_back(server.take(&bytes));
                        }
                    }
                    Step::Hear => {
                        if let Some(number) = told.pop_front() {
                            heard.push(redo.answer(number, 0).unwrap().unwrap());
                        }
                    }
                    Step::Break { power } => {
                        told.clear();
                        if power {
                            server.now = server.durable;
                        }
                        again(&redo, &mut server, &mut sent);
                    }
                }
            }
            while let Some(bytes) = sent.pop_front() {
                told.push_back(server.take(&bytes));
            }
            for number in told {
                heard.push(redo.answer(number, 0).unwrap().unwrap());
            }
            prop_assert_eq!(server.durable, wanted);
            heard.sort_unstable();
            prop_assert_eq!(heard, asked);
            prop_assert!(redo.open().is_empty());
        }
    }

    #[test]
    fn what_is_kept_is_bounded_by_a_flush_of_its_own() {
        let mut redo = Redo::default();
        let payload = vec![1; 1 << 20];
        for cookie in 0..16 {
            assert_eq!(redo.flush_due(), None);
            let head = head(1, 0, cookie, 0, 1 << 20);
            redo.send(&head, Request::parse(&head).unwrap(), &payload);
            assert_eq!(redo.answer(cookie, 0), Ok(Some(cookie)));
        }
        assert_eq!(redo.kept().len(), 16);
        assert!(redo.flush_due().is_some());
        assert_eq!(redo.flush_due(), None, "one is under way");
        // Nobody but the ledger waits for it.
        assert_eq!(redo.answer(16, 0), Ok(None));
        assert!(redo.kept().is_empty());
        assert_eq!(redo.answer(16, 0), Err(Unasked));
    }

    #[test]
    fn a_change_that_failed_is_not_done_again() {
        let mut redo = Redo::default();
        let head = head(1, 0, 9, 0, 1);
        redo.send(&head, Request::parse(&head).unwrap(), &[1]);
        assert_eq!(redo.answer(0, 28), Ok(Some(9)));
        assert!(redo.kept().is_empty() && redo.open().is_empty());
    }

    #[test]
    fn only_reads_are_followed_by_bytes() {
        let mut redo = Redo::default();
        for (command, length) in [(0, 512), (1, 0), (3, 0)] {
            let bytes = if command == 3 { 0 } else { 512 };
            let head = head(command, 0, 5, 0, bytes);
            redo.send(&head, Request::parse(&head).unwrap(), &[]);
            assert_eq!(redo.read_length(redo.next - 1), Ok(length));
        }
        assert_eq!(redo.read_length(7), Err(Unasked));
    }
}
