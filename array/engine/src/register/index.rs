//! Which blocks are stored already: a bounded index by block hash.
//!
//! It is a cache that grows with what it holds: past 8 Mi blocks (32 GiB of distinct content) an old entry gives way to a
//! new one. A forgotten block is stored twice, never wrongly shared, since whole hashes are compared.
//!
//! Why shards that grow by themselves: one table of the full size is touched all over by a small image (335 MB for
//! 1 GiB, and a page fault for every third block); one that doubles as a whole holds both copies at its largest moment.
//!
//! Invariant: behind an empty entry no entry of the same window follows; nothing is ever taken out, only replaced.

use cairn_core::id::BlockHash;

use super::Place;

const SHARDS: usize = 256;
/// Entries of a shard: at first, and at most.
const FIRST: usize = 64;
const MOST: usize = 1 << 15;
/// Entries that may hold a hash: those that follow the one it points to.
const WINDOW: usize = 16;
const ENTRY_BYTES: usize = 40;

/// The hash, then the place plus one (little-endian; zero: empty).
type Entry = [u8; ENTRY_BYTES];

pub(super) struct BlockIndexCache {
    shards: Vec<Shard>,
}

struct Shard {
    /// A power of two of them.
    entries: Vec<Entry>,
    used: usize,
    /// Which entry of a full window gives way next.
    turn: usize,
}

impl BlockIndexCache {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::new(FIRST)).collect() }
    }

    pub(super) fn get(&self, hash: &BlockHash) -> Option<Place> {
        let (shard, point) = point(hash);
        self.shards[shard].get(hash, point)
    }

    /// Remembers where a block is that [`Self::get`] did not know.
    pub(super) fn insert(&mut self, hash: &BlockHash, place: Place) {
        let (shard, point) = point(hash);
        let shard = &mut self.shards[shard];
        if shard.used >= shard.entries.len() / 4 * 3 {
            shard.grow();
        }
        let mut entry = [0; ENTRY_BYTES];
        entry[..32].copy_from_slice(hash.as_bytes());
        entry[32..].copy_from_slice(&(place.pack() + 1).to_le_bytes());
        while !shard.put(&entry, point) && shard.grow() {}
    }
}

impl Shard {
    fn new(entries: usize) -> Self {
        Self { entries: vec![[0; ENTRY_BYTES]; entries], used: 0, turn: 0 }
    }

    fn window(&self, point: usize) -> impl Iterator<Item = usize> + use<> {
        let mask = self.entries.len() - 1;
        (point..point + WINDOW).map(move |at| at & mask)
    }

    fn get(&self, hash: &BlockHash, point: usize) -> Option<Place> {
        for at in self.window(point) {
            let (key, value) = self.entries[at].split_first_chunk::<32>()?;
            let value = u64::from_le_bytes(*value.first_chunk()?);
            if value == 0 {
                return None;
            }
            if key == hash.as_bytes() {
                return Some(Place::unpack(value - 1));
            }
        }
        None
    }

    /// Puts an entry into its window. Of a full one an old entry gives way, unless the shard can grow: false then.
    fn put(&mut self, entry: &Entry, point: usize) -> bool {
        let free = self.window(point).find(|at| self.entries[*at][32..] == [0; 8]);
        let at = match free {
            Some(at) => {
                self.used += 1;
                at
            }
            None if self.entries.len() < MOST => return false,
            None => {
                self.turn = (self.turn + 1) % WINDOW;
                (point + self.turn) & (self.entries.len() - 1)
            }
        };
        self.entries[at] = *entry;
        true
    }

    /// Doubles the shard; false when it has its full size.
    fn grow(&mut self) -> bool {
        if self.entries.len() >= MOST {
            return false;
        }
        let mut larger = Self::new(self.entries.len() * 2);
        for entry in self.entries.iter().filter(|entry| entry[32..] != [0; 8]) {
            if let Some(hash) = entry.first_chunk() {
                // An entry that finds no room is forgotten, as it would be in a full shard.
                larger.put(entry, point(&BlockHash(*hash)).1);
            }
        }
        *self = larger;
        true
    }
}

/// The shard, and where in it the window starts (to be reduced to its size).
fn point(hash: &BlockHash) -> (usize, usize) {
    let [shard, a, b, c, ..] = *hash.as_bytes();
    (usize::from(shard), u32::from_le_bytes([a, b, c, 0]) as usize)
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
        for number in 0..100_000 {
            assert_eq!(index.get(&hash(number)), None);
            index.insert(
                &hash(number),
                Place::New { frame: u32::try_from(number).unwrap(), block: 5 },
            );
        }
        for number in 0..100_000 {
            let place = Place::New { frame: u32::try_from(number).unwrap(), block: 5 };
            assert_eq!(index.get(&hash(number)), Some(place));
        }
    }

    #[test]
    fn a_full_window_forgets_but_never_lies() {
        let mut index = BlockIndexCache::new();
        let same_window = |number: u8| {
            let mut bytes = [number; 32];
            bytes[..4].fill(0);
            BlockHash(bytes)
        };
        let place = |number: u8| Place::Prior { segment: number.into(), frame: 1, block: 2 };
        for number in 1..=40 {
            index.insert(&same_window(number), place(number));
        }
        let known: Vec<u8> =
            (1..=40).filter(|number| index.get(&same_window(*number)).is_some()).collect();
        assert_eq!(known.len(), WINDOW);
        assert!(
            known.iter().all(|number| index.get(&same_window(*number)) == Some(place(*number)))
        );
        assert_eq!(index.shards[0].entries.len(), MOST);
    }

    #[test]
    fn memory_follows_the_content_and_stays_bounded() {
        let bytes = |index: &BlockIndexCache| -> usize {
            index.shards.iter().map(|shard| shard.entries.len() * ENTRY_BYTES).sum()
        };
        let mut index = BlockIndexCache::new();
        assert!(bytes(&index) <= 1 << 20);
        for number in 0..100_000_u32 {
            index.insert(&hash(number.into()), Place::New { frame: number, block: 0 });
        }
        assert!(bytes(&index) <= 4 * 100_000 * ENTRY_BYTES, "{}", bytes(&index));
        const { assert!(SHARDS * MOST * ENTRY_BYTES <= 336 << 20) };
    }
}
