//! The sparse stream: a disk image on its way to the server, without its zeros.
//!
//! Little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `CAIRNSPR` |
//! | 8 | 2 | version, 1 |
//! | 10 | 6 | reserved, zero |
//! | 16 | 8 | bytes of the image |
//! | 24 | … | records, then the end |
//!
//! A record:
//!
//! | size | field |
//! |---|---|
//! | 8 | offset in the image, a multiple of 4 KiB, not before the end of the record before |
//! | 4 | length, 1 to 1 MiB; a multiple of 4 KiB unless the record ends the image |
//! | length | data |
//!
//! The end:
//!
//! | size | field |
//! |---|---|
//! | 8 | bytes of the image again, where a record has its offset |
//! | 4 | 0, where a record has its length |
//! | 8 | number of records |
//! | 8 | bytes of data in them |
//!
//! Why in that order: the size comes first, so that an image that does not fit is refused before its data is sent; a record names its
//! place before its data, so that the receiver needs no buffer larger than a record; the end counts what came, so that a stream
//! that was cut, or lost a part, is not taken for a whole one. Nothing here protects against malice: the connection does.
//!
//! Invariants: offsets ascend; what no record covers is zero; the receiver holds at most a head in memory.

use crate::bytes::{DecodeError, Reader, Writer};
use crate::units::{BLOCK_BYTES, ByteCount};

/// The first bytes of a sparse stream.
pub const MAGIC: [u8; 8] = *b"CAIRNSPR";
/// The version this program writes and reads.
pub const VERSION: u16 = 1;
/// The most data in a record.
pub const RECORD_MAX_BYTES: usize = 1 << 20;

const HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: usize = 12;
const END_BYTES: usize = RECORD_HEADER_BYTES + 16;

static ZERO_BLOCK: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// The image that is being encoded is not as announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("the image was announced with {announced} bytes and has more")]
    TooLong { announced: u64 },
    #[error("the image was announced with {announced} bytes and ends at {found}")]
    TooShort { announced: u64, found: u64 },
    #[error("a part of {bytes} bytes that is no multiple of 4 KiB does not end the image")]
    Unaligned { bytes: usize },
}

/// Turns an image, read from its start to its end, into a stream.
#[derive(Debug)]
pub struct Encoder {
    total: u64,
    at: u64,
    records: u64,
    data: u64,
}

impl Encoder {
    /// Starts a stream for an image of `total` bytes.
    #[must_use]
    pub fn new(total: ByteCount, out: &mut Vec<u8>) -> Self {
        let mut header = Writer::with_header(MAGIC, VERSION);
        header.put(&[0; 6]);
        header.u64(total.0);
        out.extend_from_slice(&header.finish());
        Self { total: total.0, at: 0, records: 0, data: 0 }
    }

    /// Appends the next part of the image. Its length is a multiple of 4 KiB unless it is the last part.
    ///
    /// # Errors
    /// [`EncodeError`], and nothing is appended.
    pub fn push(&mut self, part: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let start = self.at;
        self.advance(part.len() as u64)?;
        let mut rest = part;
        while !rest.is_empty() {
            let zeros = run(rest, is_zero);
            let data = run(&rest[zeros..], |block| !is_zero(block));
            let (head, tail) = rest.split_at(zeros + data);
            let mut offset = start + (part.len() - rest.len() + zeros) as u64;
            for record in head[zeros..].chunks(RECORD_MAX_BYTES) {
                self.record(offset, record, out);
                offset += record.len() as u64;
            }
            rest = tail;
        }
        Ok(())
    }

    /// Leaves out a part that is known to be zero (a hole of a sparse file), as [`Encoder::push`] does with zeros.
    ///
    /// # Errors
    /// [`EncodeError`], and nothing is left out.
    pub fn skip(&mut self, bytes: ByteCount) -> Result<(), EncodeError> {
        self.advance(bytes.0)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`EncodeError::TooShort`].
    pub fn finish(self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if self.at != self.total {
            return Err(EncodeError::TooShort { announced: self.total, found: self.at });
        }
        let mut end = Writer::default();
        end.u64(self.total);
        end.u32(0);
        end.u64(self.records);
        end.u64(self.data);
        out.extend_from_slice(&end.finish());
        Ok(())
    }

    fn advance(&mut self, bytes: u64) -> Result<(), EncodeError> {
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.total);
        let end = end.ok_or(EncodeError::TooLong { announced: self.total })?;
        if !bytes.is_multiple_of(BLOCK_BYTES as u64) && end != self.total {
            return Err(EncodeError::Unaligned {
                bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            });
        }
        self.at = end;
        Ok(())
    }

    fn record(&mut self, offset: u64, data: &[u8], out: &mut Vec<u8>) {
        self.records += 1;
        self.data += data.len() as u64;
        let mut head = Writer::default();
        head.u64(offset);
        head.count(data.len());
        out.extend_from_slice(&head.finish());
        out.extend_from_slice(data);
    }
}

/// Bytes of the blocks at the start of `rest` that all pass the test.
fn run(rest: &[u8], test: impl Fn(&[u8]) -> bool) -> usize {
    rest.chunks(BLOCK_BYTES).take_while(|block| test(block)).map(<[u8]>::len).sum()
}

fn is_zero(block: &[u8]) -> bool {
    ZERO_BLOCK.get(..block.len()) == Some(block)
}

/// What a stream says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Always the first.
    Start { total: ByteCount },
    /// Bytes of the image, as they came: a record is handed on in as many pieces as it arrives in. What lies between the
    /// records is zero.
    Data { offset: u64, bytes: &'a [u8] },
    /// Always the last: everything came.
    End,
}

/// Takes a stream apart, in whatever pieces it comes.
#[derive(Debug)]
pub struct Decoder {
    /// What came of the head that is not complete yet.
    pending: Vec<u8>,
    state: State,
    limit: u64,
    records: u64,
    data: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    /// Between two records. `end`: where the record before ended.
    Between {
        total: u64,
        end: u64,
    },
    /// In a record's data, of which `left` bytes are still to come.
    Data {
        total: u64,
        offset: u64,
        left: usize,
    },
    Ended,
    /// Something was wrong; nothing more is read.
    Failed(DecodeError),
}

impl Decoder {
    /// A decoder that refuses images above `limit`.
    #[must_use]
    pub const fn new(limit: ByteCount) -> Self {
        Self { pending: Vec::new(), state: State::Header, limit: limit.0, records: 0, data: 0 }
    }

    /// Takes bytes off the front of `bytes` until they say something; `None` when they are used up before that.
    ///
    /// # Errors
    /// [`DecodeError`], now and for each later call: the stream is not to be used.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Event<'a>>, DecodeError> {
        self.step(bytes).inspect_err(|error| self.state = State::Failed(*error))
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] when its end did not come, or the error that was met before.
    pub fn finish(&self) -> Result<(), DecodeError> {
        match self.state {
            State::Ended => Ok(()),
            State::Failed(error) => Err(error),
            State::Data { left, .. } => Err(DecodeError::Truncated { need: left, have: 0 }),
            State::Header | State::Between { .. } => {
                Err(DecodeError::Truncated { need: self.need()?, have: self.pending.len() })
            }
        }
    }

    fn step<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Event<'a>>, DecodeError> {
        if let State::Data { total, offset, left } = self.state {
            let piece = take(bytes, left);
            let end = offset + piece.len() as u64;
            self.state = match left - piece.len() {
                0 => State::Between { total, end },
                left => State::Data { total, offset: end, left },
            };
            return Ok((!piece.is_empty()).then_some(Event::Data { offset, bytes: piece }));
        }
        loop {
            let need = self.need()?;
            if need == 0 {
                let count = bytes.len();
                return if count == 0 { Ok(None) } else { Err(DecodeError::Trailing { count }) };
            }
            self.pending.extend_from_slice(take(bytes, need - self.pending.len()));
            if self.pending.len() < need {
                return Ok(None);
            }
            match self.head()? {
                Head::Says(event) => {
                    self.pending.clear();
                    return Ok(Some(event));
                }
                Head::Record => {
                    self.pending.clear();
                    return self.step(bytes);
                }
                // Its last part is longer than a record's.
                Head::End => {}
            }
        }
    }

    /// How many bytes the present head has, as far as is known from those that came; 0 behind the end.
    const fn need(&self) -> Result<usize, DecodeError> {
        match self.state {
            State::Header => Ok(HEADER_BYTES),
            State::Failed(error) => Err(error),
            State::Between { .. } if self.pending.len() >= RECORD_HEADER_BYTES => Ok(END_BYTES),
            State::Between { .. } => Ok(RECORD_HEADER_BYTES),
            State::Ended | State::Data { .. } => Ok(0),
        }
    }

    /// Reads the head that is complete.
    fn head(&mut self) -> Result<Head, DecodeError> {
        let mut reader = Reader::new(&self.pending);
        let State::Between { total, end } = self.state else {
            reader.header(MAGIC, VERSION)?;
            reader.reserved(6)?;
            let total = reader.u64()?;
            if total > self.limit {
                let limit = self.limit;
                return Err(DecodeError::Limit { field: "image bytes", value: total, limit });
            }
            self.state = State::Between { total, end: 0 };
            return Ok(Head::Says(Event::Start { total: ByteCount(total) }));
        };
        let (offset, length) = (reader.u64()?, reader.u32()?);
        let left = check_record(offset, length, total, end)?;
        if length > 0 {
            self.records += 1;
            self.data += u64::from(length);
            self.state = State::Data { total, offset, left };
            return Ok(Head::Record);
        }
        if self.pending.len() < END_BYTES {
            return Ok(Head::End);
        }
        if reader.u64()? != self.records || reader.u64()? != self.data {
            return Err(DecodeError::Inconsistent { field: "count of records" });
        }
        self.state = State::Ended;
        Ok(Head::Says(Event::End))
    }
}

/// What a complete head is.
enum Head {
    Says(Event<'static>),
    /// A record's; its data follows.
    Record,
    /// The first part of the end.
    End,
}

/// Takes at most `count` bytes off the front.
fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, tail) = bytes.split_at(count.min(bytes.len()));
    *bytes = tail;
    head
}

/// The bytes of data behind a record's head; none behind the end's.
fn check_record(offset: u64, length: u32, total: u64, end: u64) -> Result<usize, DecodeError> {
    const BLOCK: u64 = BLOCK_BYTES as u64;
    if length == 0 {
        let field = "end of the image";
        return if offset == total { Ok(0) } else { Err(DecodeError::Inconsistent { field }) };
    }
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    if bytes > RECORD_MAX_BYTES {
        let limit = RECORD_MAX_BYTES as u64;
        return Err(DecodeError::Limit { field: "record length", value: length.into(), limit });
    }
    let after = offset.checked_add(length.into()).filter(|after| *after <= total);
    let Some(after) = after else {
        return Err(DecodeError::Limit { field: "record offset", value: offset, limit: total });
    };
    if offset < end || !offset.is_multiple_of(BLOCK) {
        return Err(DecodeError::Inconsistent { field: "record offset" });
    }
    if !u64::from(length).is_multiple_of(BLOCK) && after != total {
        return Err(DecodeError::Inconsistent { field: "record length" });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANY: ByteCount = ByteCount(u64::MAX);

    fn encode(image: &[u8], part: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(ByteCount(image.len() as u64), &mut out);
        image.chunks(part).for_each(|part| encoder.push(part, &mut out).unwrap());
        encoder.finish(&mut out).unwrap();
        out
    }

    fn decode(stream: &[u8], piece: usize) -> Result<Vec<Event<'_>>, DecodeError> {
        let mut decoder = Decoder::new(ANY);
        let mut events = Vec::new();
        for mut piece in stream.chunks(piece.max(1)) {
            while let Some(event) = decoder.next(&mut piece)? {
                events.push(event);
            }
            assert!(piece.is_empty());
        }
        decoder.finish()?;
        Ok(events)
    }

    fn image(events: &[Event<'_>]) -> Vec<u8> {
        let mut image = Vec::new();
        for event in events {
            match event {
                Event::Start { total } => image.resize(usize::try_from(total.0).unwrap(), 0),
                Event::Data { offset, bytes } => {
                    let start = usize::try_from(*offset).unwrap();
                    image[start..start + bytes.len()].copy_from_slice(bytes);
                }
                Event::End => {}
            }
        }
        image
    }

    prop_compose! {
        /// Blocks of one value each, and a tail.
        fn any_image()(blocks in prop::collection::vec(0..3_u8, 0..40), tail in prop::collection::vec(0..2_u8, 0..100)) -> Vec<u8> {
            blocks.into_iter().flat_map(|fill| [fill; BLOCK_BYTES]).chain(tail).collect()
        }
    }

    proptest! {
        #[test]
        fn an_image_survives(plain in any_image(), part in 1..9_usize, piece in 1..70_000_usize) {
            let stream = encode(&plain, part * BLOCK_BYTES);
            let events = decode(&stream, piece).unwrap();
            prop_assert_eq!(image(&events), plain);
            prop_assert_eq!(events.last(), Some(&Event::End));
        }

        #[test]
        fn zero_blocks_are_not_sent(plain in any_image()) {
            let stream = encode(&plain, 4 * BLOCK_BYTES);
            for event in decode(&stream, stream.len()).unwrap() {
                if let Event::Data { bytes, .. } = event {
                    prop_assert!(bytes.chunks(BLOCK_BYTES).all(|block| !is_zero(block)));
                }
            }
        }

        #[test]
        fn a_cut_stream_is_not_taken_for_a_whole_one(plain in any_image(), at: prop::sample::Index) {
            let stream = encode(&plain, BLOCK_BYTES);
            let cut = &stream[..at.index(stream.len())];
            prop_assert!(matches!(decode(cut, 5000), Err(DecodeError::Truncated { .. })), "{:?}", decode(cut, 5000));
        }

        #[test]
        fn foreign_bytes_never_panic_and_pieces_do_not_matter(plain in any_image(), at: prop::sample::Index, flip: u8, piece in 1..9000_usize) {
            let mut stream = encode(&plain, BLOCK_BYTES);
            let at = at.index(stream.len());
            stream[at] ^= flip;
            let told = |piece| decode(&stream, piece).map(|events| image(&events)).map_err(|error| std::mem::discriminant(&error));
            let (whole, pieces) = (told(stream.len()), told(piece));
            prop_assert_eq!(whole, pieces);
        }
    }

    #[test]
    fn the_layout_is_the_one_in_the_table() {
        let mut plain = vec![0; 2 * BLOCK_BYTES];
        plain[BLOCK_BYTES] = 9;
        plain.extend([7, 8]);
        let stream = encode(&plain, 8 * BLOCK_BYTES);
        assert_eq!(&stream[..10], b"CAIRNSPR\x01\0");
        assert_eq!(stream[10..16], [0; 6]);
        assert_eq!(stream[16..24], 8194_u64.to_le_bytes());
        assert_eq!(stream[24..32], 4096_u64.to_le_bytes());
        assert_eq!(stream[32..36], 4098_u32.to_le_bytes());
        assert_eq!(stream[36 + 4098..36 + 4098 + 8], 8194_u64.to_le_bytes());
        assert_eq!(stream[36 + 4098 + 8..][..4], [0; 4]);
        assert_eq!(stream[36 + 4098 + 12..][..8], 1_u64.to_le_bytes());
        assert_eq!(stream[36 + 4098 + 20..], 4098_u64.to_le_bytes());
    }

    #[test]
    fn a_long_run_of_data_is_cut_into_records() {
        let plain = vec![1; 2 * RECORD_MAX_BYTES + BLOCK_BYTES];
        let stream = encode(&plain, plain.len());
        let events = decode(&stream, stream.len()).unwrap();
        assert_eq!(events.len(), 5);
        assert_eq!(image(&events), plain);
    }

    #[test]
    fn the_encoder_refuses_an_image_other_than_announced() {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(ByteCount(5000), &mut out);
        assert_eq!(encoder.push(&[1; 100], &mut out), Err(EncodeError::Unaligned { bytes: 100 }));
        assert_eq!(
            encoder.push(&[1; 5001], &mut out),
            Err(EncodeError::TooLong { announced: 5000 })
        );
        encoder.skip(ByteCount(4096)).unwrap();
        let short = EncodeError::TooShort { announced: 5000, found: 4096 };
        assert_eq!(encoder.finish(&mut out), Err(short));
    }

    #[test]
    fn records_out_of_bounds_are_refused() {
        let refused = |offset: u64, length: u32| {
            let mut stream = Vec::new();
            drop(Encoder::new(ByteCount(10_000), &mut stream));
            let mut record = Writer::default();
            record.u64(offset);
            record.u32(length);
            stream.extend(record.finish());
            decode(&stream, stream.len()).unwrap_err()
        };
        let inconsistent = |field| DecodeError::Inconsistent { field };
        assert_eq!(refused(100, 4096), inconsistent("record offset"));
        assert_eq!(refused(0, 100), inconsistent("record length"));
        assert_eq!(refused(9999, 0), inconsistent("end of the image"));
        let limit = |field, value, limit| DecodeError::Limit { field, value, limit };
        assert_eq!(refused(8192, 4096), limit("record offset", 8192, 10_000));
        assert_eq!(refused(u64::MAX - 4095, 4096), limit("record offset", u64::MAX - 4095, 10_000));
        assert_eq!(refused(0, 1_048_577), limit("record length", 1_048_577, 1_048_576));
        let mut small = Decoder::new(ByteCount(9_999));
        let stream = encode(&[0; 10_000], 20_480);
        let too_large = Err(limit("image bytes", 10_000, 9_999));
        assert_eq!(small.next(&mut &stream[..]), too_large);
        assert_eq!(small.next(&mut &[][..]), too_large);
        assert_eq!(small.finish().map(|()| None), too_large);
    }

    #[test]
    fn what_follows_the_end_is_refused() {
        let stream = [encode(&[1; 10], 4096).as_slice(), &[0]].concat();
        assert_eq!(decode(&stream, 1000), Err(DecodeError::Trailing { count: 1 }));
    }
}
