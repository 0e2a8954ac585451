//! Which blocks are stored already: a bounded index by block hash.
//!
//! It is a cache of fixed size, four places to a bucket: past 8 Mi blocks (32 GiB of distinct content) an old entry
//! gives way to a new one. A forgotten block is stored twice, never wrongly shared, since whole hashes are compared.
//! Its memory is touched as it fills, so a small image costs little.

use cairn_core::id::BlockHash;

use super::Place;

const BUCKETS: usize = 1 << 21;
const WAYS: usize = 4;
const ENTRY_BYTES: usize = 40;

/// 40 bytes an entry: the hash, then the place plus one (little-endian; zero: empty).
pub(super) struct BlockIndexCache {
    entries: Vec<u8>,
    /// Which way of a full bucket gives way next.
    turn: usize,
}

impl BlockIndexCache {
    pub(super) fn new() -> Self {
        // vec![0] is calloc: pages that are never touched take no memory.
        Self { entries: vec![0; BUCKETS * WAYS * ENTRY_BYTES], turn: 0 }
    }

    pub(super) fn get(&self, hash: &BlockHash) -> Option<Place> {
        let start = bucket(hash) * WAYS * ENTRY_BYTES;
        let ways = self.entries[start..start + WAYS * ENTRY_BYTES].as_chunks::<ENTRY_BYTES>().0;
        ways.iter().find_map(|way| {
            let (key, value) = way.split_first_chunk::<32>()?;
            let value = u64::from_le_bytes(*value.first_chunk()?);
            (value != 0 && key == hash.as_bytes()).then(|| Place::unpack(value - 1))
        })
    }

    /// Remembers where a block is that [`Self::get`] did not know.
    pub(super) fn insert(&mut self, hash: &BlockHash, place: Place) {
        let start = bucket(hash) * WAYS * ENTRY_BYTES;
        let ways = self.entries[start..start + WAYS * ENTRY_BYTES].as_chunks_mut::<ENTRY_BYTES>().0;
        let free = ways.iter().position(|way| way[32..] == [0; 8]);
        let way = free.unwrap_or_else(|| {
            self.turn = (self.turn + 1) % WAYS;
            self.turn
        });
        ways[way][..32].copy_from_slice(hash.as_bytes());
        ways[way][32..].copy_from_slice(&(place.pack() + 1).to_le_bytes());
    }
}

fn bucket(hash: &BlockHash) -> usize {
    let [a, b, c, d, ..] = *hash.as_bytes();
    u32::from_le_bytes([a, b, c, d]) as usize % BUCKETS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> BlockHash {
        BlockHash::of(&number.to_le_bytes())
    }

    #[test]
    fn finds_what_was_inserted_and_nothing_else() {
        let mut index = BlockIndexCache::new();
        for number in 0..10_000 {
            assert_eq!(index.get(&hash(number)), None);
            index.insert(
                &hash(number),
                Place::New { frame: u32::try_from(number).unwrap(), block: 5 },
            );
        }
        for number in 0..10_000 {
            let place = Place::New { frame: u32::try_from(number).unwrap(), block: 5 };
            assert_eq!(index.get(&hash(number)), Some(place));
        }
    }

    #[test]
    fn a_full_bucket_forgets_but_never_lies() {
        let mut index = BlockIndexCache::new();
        let same_bucket = |number: u8| {
            let mut bytes = [number; 32];
            bytes[..4].fill(0);
            BlockHash(bytes)
        };
        let place = |number: u8| Place::Prior { segment: number.into(), frame: 1, block: 2 };
        for number in 1..=9 {
            index.insert(&same_bucket(number), place(number));
        }
        let known: Vec<u8> =
            (1..=9).filter(|number| index.get(&same_bucket(*number)).is_some()).collect();
        assert_eq!(known.len(), WAYS);
        assert!(
            known.iter().all(|number| index.get(&same_bucket(*number)) == Some(place(*number)))
        );
    }
}
