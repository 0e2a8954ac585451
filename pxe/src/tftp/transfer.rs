//! One file on its way to one client, without a socket, a file or a clock.
//!
//! The shell tells it what arrives and when ([`Transfer::handle_packet`], [`Transfer::handle_timeout`]), asks what to send
//! ([`Transfer::poll_transmit`]) and when to come back ([`Transfer::poll_timeout`]).
//!
//! Invariants: at most a window of blocks is sent per packet or timeout that comes in, so nobody can make it amplify; a
//! duplicate ACK never causes a second copy of a block (the Sorcerer's Apprentice, RFC 1123 section 4.2.3.1); after
//! [`End`] it says nothing more; it ends in bounded time whatever the client does or does not.

use std::time::{Duration, Instant};

use super::packet::{OPTIONS_REFUSED, Packet, ReadRequest};

const DEFAULT_BLOCK_BYTES: u16 = 512;
/// What fits an Ethernet frame: fragments are not reassembled by all firmware.
const GREATEST_BLOCK_BYTES: u16 = 1468;
const GREATEST_WINDOW_BLOCKS: u16 = 64;
const FIRST_TIMEOUT: Duration = Duration::from_millis(1000);
const GREATEST_TIMEOUT: Duration = Duration::from_secs(8);
/// Silence is answered this often, then the client is gone.
const GREATEST_RETRIES: u32 = 6;

/// What to send next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transmit {
    /// An option acknowledgement, ready to send.
    Options(Vec<u8>),
    /// Blocks `first_block`, `first_block + 1`, … (wrapping) with the file's bytes from `offset`, `len` in all, each of
    /// [`Transfer::block_bytes`] but for the last; there are `count` of them, the last maybe empty.
    Blocks { first_block: u16, count: u16, offset: u64, len: usize },
}

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Complete,
    /// The client only wanted to know the size.
    Probe,
    /// The client sent an ERROR.
    Refused {
        code: u16,
    },
    /// The client is silent.
    Silent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The option acknowledgement is out, unanswered.
    Negotiating,
    Sending,
    Ended(End),
}

#[derive(Debug)]
pub struct Transfer {
    size: u64,
    block_bytes: u16,
    window_blocks: u16,
    /// What the client asked of the timeout; it then stays as it is.
    fixed_timeout: Option<Duration>,
    options: Vec<u8>,
    state: State,
    /// Blocks acknowledged, counted from 0 and never wrapping; block numbers on the wire are its low 16 bits.
    acknowledged: u64,
    /// Blocks sent at least once.
    sent: u64,
    must_send: bool,
    retries: u32,
    deadline: Instant,
}

impl Transfer {
    /// Starts a transfer of a file of `size` bytes.
    pub fn new(request: &ReadRequest, size: u64, now: Instant) -> Self {
        let block_bytes = request.block_bytes.map(|bytes| bytes.min(GREATEST_BLOCK_BYTES));
        let window_blocks = request.window_blocks.map(|blocks| blocks.min(GREATEST_WINDOW_BLOCKS));
        let granted = [
            ("blksize", block_bytes.map(u64::from)),
            ("tsize", request.wants_size.then_some(size)),
            ("timeout", request.timeout_seconds.map(u64::from)),
            ("windowsize", window_blocks.map(u64::from)),
        ];
        let granted: Vec<_> = granted
            .into_iter()
            .filter_map(|(name, value)| value.map(|value| (name.to_owned(), value.to_string())))
            .collect();
        let state = if granted.is_empty() { State::Sending } else { State::Negotiating };
        let mut transfer = Self {
            size,
            block_bytes: block_bytes.unwrap_or(DEFAULT_BLOCK_BYTES),
            window_blocks: window_blocks.unwrap_or(1),
            fixed_timeout: request
                .timeout_seconds
                .map(|seconds| Duration::from_secs(seconds.into())),
            options: Packet::OptionAcknowledge { options: granted }.to_bytes(),
            state,
            acknowledged: 0,
            sent: 0,
            must_send: true,
            retries: 0,
            deadline: now,
        };
        transfer.deadline = now + transfer.timeout();
        transfer
    }

    pub fn block_bytes(&self) -> usize {
        self.block_bytes.into()
    }

    /// `None` while it goes on.
    pub fn end(&self) -> Option<End> {
        match self.state {
            State::Ended(end) => Some(end),
            State::Negotiating | State::Sending => None,
        }
    }

    /// Takes a packet from the client. What is malformed or out of place changes nothing.
    pub fn handle_packet(&mut self, bytes: &[u8], now: Instant) {
        match (Packet::parse(bytes), &self.state) {
            (_, State::Ended(_)) => {}
            (Ok(Packet::Error { code: OPTIONS_REFUSED | 0, .. }), State::Negotiating) => {
                self.state = State::Ended(End::Probe);
            }
            (Ok(Packet::Error { code, .. }), _) => self.state = State::Ended(End::Refused { code }),
            (Ok(Packet::Acknowledge { block: 0 }), State::Negotiating) => {
                self.state = State::Sending;
                self.progress(now);
            }
            (Ok(Packet::Acknowledge { block }), State::Sending) => self.acknowledge(block, now),
            _ => {}
        }
    }

    fn acknowledge(&mut self, block: u16, now: Instant) {
        // How far the ACK is ahead of what we knew, in blocks. One beyond what was sent is stale or forged.
        let [.., high, low] = self.acknowledged.to_be_bytes();
        let ahead = u64::from(block.wrapping_sub(u16::from_be_bytes([high, low])));
        if ahead == 0 || ahead > self.sent - self.acknowledged {
            return;
        }
        self.acknowledged += ahead;
        if self.acknowledged == self.block_count() {
            self.state = State::Ended(End::Complete);
            return;
        }
        // Either the whole window arrived, or RFC 7440's "last block in order" before a gap: both start a new window.
        self.progress(now);
    }

    fn progress(&mut self, now: Instant) {
        self.retries = 0;
        self.must_send = true;
        self.deadline = now + self.timeout();
    }

    /// Call when [`Self::poll_timeout`] has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.end().is_some() || now < self.deadline {
            return;
        }
        if self.retries == GREATEST_RETRIES {
            self.state = State::Ended(End::Silent);
            return;
        }
        self.retries += 1;
        self.must_send = true;
        self.deadline = now + self.timeout();
    }

    /// When to call [`Self::handle_timeout`] if nothing arrives before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.end().is_none().then_some(self.deadline)
    }

    /// What to send now; `None` until something arrives or the timeout passes.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        if !std::mem::take(&mut self.must_send) {
            return None;
        }
        match self.state {
            State::Ended(_) => None,
            State::Negotiating => Some(Transmit::Options(self.options.clone())),
            State::Sending => Some(self.window()),
        }
    }

    fn window(&mut self) -> Transmit {
        let block_bytes = u64::from(self.block_bytes);
        let end = self.block_count().min(self.acknowledged + u64::from(self.window_blocks));
        self.sent = self.sent.max(end);
        let offset = self.acknowledged * block_bytes;
        let len = (end * block_bytes).min(self.size) - offset.min(self.size);
        let first = (self.acknowledged + 1).to_be_bytes();
        Transmit::Blocks {
            first_block: u16::from_be_bytes([first[6], first[7]]),
            count: u16::try_from(end - self.acknowledged).unwrap_or(self.window_blocks),
            offset,
            len: usize::try_from(len).unwrap_or(usize::MAX),
        }
    }

    /// The last block is always short, so a file of whole blocks is followed by an empty one.
    fn block_count(&self) -> u64 {
        self.size / u64::from(self.block_bytes) + 1
    }

    fn timeout(&self) -> Duration {
        self.fixed_timeout.unwrap_or_else(|| {
            (FIRST_TIMEOUT * 2_u32.pow(self.retries.min(3))).min(GREATEST_TIMEOUT)
        })
    }
}
