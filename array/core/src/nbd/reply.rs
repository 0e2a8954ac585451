//! Replies. Each function adds one to what is to be sent.

pub(super) const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const FLAG_DONE: u16 = 1;
const KIND_OFFSET_DATA: u16 = 1;
const KIND_BLOCK_STATUS: u16 = 5;
const KIND_ERROR: u16 = 0x8001;
const STATE_HOLE: u32 = 1;
const STATE_ZERO: u32 = 2;

/// The number under which block status is told.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// What a request failed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    NotPermitted,
    Io,
    Invalid,
    NoSpace,
    Ending,
}

impl Errno {
    const fn number(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Ending => 108,
        }
    }
}

/// Bytes in a row that are stored, or are not and so are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRun {
    pub length: u32,
    pub stored: bool,
}

/// That a request was done.
pub fn done(out: &mut Vec<u8>, cookie: u64) {
    simple(out, cookie, 0);
}

/// That a request failed.
pub fn failed(out: &mut Vec<u8>, structured: bool, cookie: u64, errno: Errno) {
    if structured {
        chunk(out, KIND_ERROR, cookie, 6);
        out.extend_from_slice(&errno.number().to_be_bytes());
        out.extend_from_slice(&[0, 0]);
    } else {
        simple(out, cookie, errno.number());
    }
}

/// The head of what was read: `length` bytes go behind it.
pub fn data_head(out: &mut Vec<u8>, structured: bool, cookie: u64, offset: u64, length: u32) {
    if structured {
        chunk(out, KIND_OFFSET_DATA, cookie, 8 + length);
        out.extend_from_slice(&offset.to_be_bytes());
    } else {
        simple(out, cookie, 0);
    }
}

/// Which parts of a range are stored.
pub fn block_status(out: &mut Vec<u8>, cookie: u64, runs: &[StatusRun]) {
    let length = 4 + 8 * u32::try_from(runs.len()).unwrap_or(0);
    chunk(out, KIND_BLOCK_STATUS, cookie, length);
    out.extend_from_slice(&BASE_ALLOCATION_ID.to_be_bytes());
    for run in runs {
        let state = if run.stored { 0 } else { STATE_HOLE | STATE_ZERO };
        out.extend_from_slice(&run.length.to_be_bytes());
        out.extend_from_slice(&state.to_be_bytes());
    }
}

pub(super) fn simple(out: &mut Vec<u8>, cookie: u64, error: u32) {
    out.extend_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

fn chunk(out: &mut Vec<u8>, kind: u16, cookie: u64, length: u32) {
    out.extend_from_slice(&STRUCTURED_MAGIC.to_be_bytes());
    out.extend_from_slice(&FLAG_DONE.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_have_the_lengths_that_they_tell() {
        let mut out = Vec::new();
        done(&mut out, 7);
        assert_eq!((out.len(), out[15]), (16, 7));
        for (structured, length) in [(false, 16), (true, 26)] {
            out.clear();
            failed(&mut out, structured, 7, Errno::NoSpace);
            assert_eq!(out.len(), length);
            assert!(out.contains(&28));
        }
        out.clear();
        data_head(&mut out, true, 7, 4096, 512);
        assert_eq!((out.len(), &out[16..20]), (28, &520_u32.to_be_bytes()[..]));
        out.clear();
        let runs = [StatusRun { length: 9, stored: true }, StatusRun { length: 8, stored: false }];
        block_status(&mut out, 7, &runs);
        assert_eq!((out.len(), &out[16..20], out[39]), (40, &20_u32.to_be_bytes()[..], 3));
    }
}
