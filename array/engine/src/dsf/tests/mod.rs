//! What every test of the DSF needs: a place for one, and segments to put into it.

mod crash;
mod faults;
mod kill;
mod model;
mod owner;
pub(super) mod record;

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

use bytes::Bytes;
use cairn_core::id::SegmentId;

use super::*;

/// A place for a DSF in a temporary folder of its own; the DSF's folder does not exist yet.
struct Place {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store").join("segments.dsf");
        Self { _folder: folder, path }
    }

    fn create(&self, capacity: u32) -> Dsf {
        Dsf::create(&self.path, DsfId([7; 16]), SlotCount(capacity)).unwrap()
    }

    fn open(&self) -> Dsf {
        Dsf::open(&self.path).unwrap()
    }

    fn disk_bytes(&self) -> u64 {
        disk_bytes(&self.path)
    }
}

fn disk_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// The segment that these tests call number `name`: of 4 MiB for some, otherwise small. Made once.
fn segment(name: u32) -> CheckedSegment {
    static MADE: Mutex<BTreeMap<u32, CheckedSegment>> = Mutex::new(BTreeMap::new());
    MADE.lock().unwrap().entry(name).or_insert_with(|| make_segment(name)).clone()
}

fn make_segment(name: u32) -> CheckedSegment {
    let mut dice = Dice(u64::from(name) + 1);
    let length = if name % 16 == 3 { 4 << 20 } else { 1 + dice.below(9000) };
    let bytes: Bytes = (0..length).map(|_| dice.byte()).collect();
    CheckedSegment::check(SegmentId::of(&bytes), bytes).unwrap()
}

fn bytes_of(name: u32) -> Bytes {
    segment(name).bytes().clone()
}

fn id(name: u32) -> SegmentId {
    segment(name).id()
}

fn put(name: u32, class: SegmentClass) -> Put {
    Put { segment: segment(name), class }
}

fn put_data(dsf: &mut Dsf, names: impl IntoIterator<Item = u32>) {
    for name in names {
        let stored = dsf.put(&[put(name, SegmentClass::Data)]).pop().unwrap();
        assert_eq!(stored.unwrap(), Stored::New);
    }
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // splitmix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u32) -> u32 {
        u32::try_from(self.next() % u64::from(limit)).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn class(&mut self) -> SegmentClass {
        SegmentClass::ALL[self.below(4) as usize]
    }
}
