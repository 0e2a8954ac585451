//! The erasure code of a stripe: systematic Reed-Solomon over GF(2^8) with a Cauchy matrix.
//!
//! The field has the polynomial 0x11d. Parity place `p` (`k ≤ p < 255`) holds `Σ inv(p ⊕ j) · data[j]` over the data places
//! `j < k`: the matrix of ISA-L's `gf_gen_cauchy1`, of which every square part is invertible (Blömer et al., "An XOR-Based
//! Erasure-Resilient Coding Scheme", 1995).
//!
//! ```text
//!            sources (as many as the stripe has data shards)        wanted
//!   place 0 ─ 64 KiB ┬ 64 KiB ┬ 64 KiB ┬ tail, zeros behind it ┐
//!   place 1 ─ 64 KiB ┼ 64 KiB ┼ 64 KiB ┼ …                     ├──► place 2
//!   place 4 ─ 64 KiB ┴ 64 KiB ┴ 64 KiB ┴ …                     ┘    place 3
//!                strip by strip, so that all of them stay in the cache
//! ```
//!
//! Invariants: a row depends on its own place alone, so more parity never changes the parity that is there; places behind the
//! last data shard are zeros, cost nothing and need no source; segments shorter than the parity count as padded with zeros.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use rusty_erasure::{Coder, Matrix, gf};

use crate::stripe_map::{MAX_DATA, MAX_WIDTH, ShardPlace};

/// Bytes of each shard that are worked on at once: few enough that a wide stripe's strips fit in the L2 cache.
pub const STRIP_BYTES: usize = 64 << 10;

/// What stands for a source behind its end.
static ZEROS: [u8; STRIP_BYTES] = [0; STRIP_BYTES];

/// Loss patterns whose recipes are kept. A fleet in one state shows as many as its stripes have rotations.
const CACHED_RECIPES: usize = 256;

/// Why shards cannot be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErasureError {
    #[error("no stripe has k = {k} with {data} data shards")]
    Shape { k: u8, data: u8 },
    #[error("no shard has place {place} in a stripe with k = {k} and {data} data shards")]
    Place { place: u8, k: u8, data: u8 },
    #[error("{need} different shards are needed to rebuild this stripe, {have} are there")]
    TooFew { have: usize, need: usize },
    #[error("no shard is wanted")]
    NothingWanted,
    #[error("{given} slices given where the recipe has {expected}")]
    SliceCount { given: usize, expected: usize },
    #[error("output strips must be of one length of at most {STRIP_BYTES} bytes")]
    StripBytes,
}

/// How to compute some shards of a stripe from others: encoding and rebuilding alike.
#[derive(Clone, Debug)]
pub struct Recipe {
    sources: Vec<ShardPlace>,
    wanted: Vec<ShardPlace>,
    coder: Coder,
}

impl Recipe {
    /// The recipe for parity places from all data shards of a stripe that has `data` of them.
    ///
    /// # Errors
    /// As [`Recipe::new`].
    pub fn encode(k: u8, data: u8, parity: &[ShardPlace]) -> Result<Self, ErasureError> {
        let present: Vec<_> = (0..data).map(ShardPlace).collect();
        Self::new(k, data, &present, parity)
    }

    /// The recipe for the wanted places from any of the present ones, in a stripe with `k` data places of which the
    /// first `data` hold a shard. Lower places are preferred as sources; [`Recipe::sources`] says which are used.
    ///
    /// # Errors
    /// [`ErasureError::TooFew`] when fewer than `data` different places are present; [`ErasureError::Shape`] and
    /// [`ErasureError::Place`] when the stripe or a place in it cannot exist.
    pub fn new(
        k: u8,
        data: u8,
        present: &[ShardPlace],
        wanted: &[ShardPlace],
    ) -> Result<Self, ErasureError> {
        if usize::from(k) > MAX_DATA || data == 0 || data > k {
            return Err(ErasureError::Shape { k, data });
        }
        let bad =
            |place: &&ShardPlace| (data..k).contains(&place.0) || usize::from(place.0) >= MAX_WIDTH;
        if let Some(place) = present.iter().chain(wanted).find(bad) {
            return Err(ErasureError::Place { place: place.0, k, data });
        }
        let mut sources = present.to_vec();
        sources.sort_unstable();
        sources.dedup();
        if wanted.is_empty() {
            return Err(ErasureError::NothingWanted);
        }
        if sources.len() < usize::from(data) {
            return Err(ErasureError::TooFew { have: sources.len(), need: data.into() });
        }
        sources.truncate(data.into());
        let coder = combine(k, data, &sources, wanted).ok_or(ErasureError::Shape { k, data })?;
        Ok(Self { sources, wanted: wanted.to_vec(), coder })
    }

    /// The places whose shards [`Recipe::strip`] and [`Recipe::whole`] take, in that order.
    #[must_use]
    pub fn sources(&self) -> &[ShardPlace] {
        &self.sources
    }

    /// The places whose shards they make, in that order.
    #[must_use]
    pub fn wanted(&self) -> &[ShardPlace] {
        &self.wanted
    }

    /// Computes the same range of every wanted shard. A source may be shorter than the outputs (zeros follow) or longer (the
    /// rest is not looked at).
    ///
    /// # Errors
    /// [`ErasureError::SliceCount`] and [`ErasureError::StripBytes`].
    pub fn strip(&self, sources: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), ErasureError> {
        expect_count(sources.len(), self.sources.len())?;
        expect_count(outputs.len(), self.wanted.len())?;
        let bytes = outputs.first().map_or(0, |output| output.len());
        if bytes > STRIP_BYTES || outputs.iter().any(|output| output.len() != bytes) {
            return Err(ErasureError::StripBytes);
        }
        let padded: Vec<_> = sources.iter().map(|source| padded(source, bytes)).collect();
        let padded: Vec<&[u8]> = padded.iter().map(AsRef::as_ref).collect();
        self.coder.encode(&padded, outputs).map_err(|_| ErasureError::StripBytes)
    }

    /// Computes whole shards, strip by strip. `lengths` are those of the wanted shards.
    ///
    /// # Errors
    /// [`ErasureError::SliceCount`].
    pub fn whole(
        &self,
        sources: &[&[u8]],
        lengths: &[usize],
    ) -> Result<Vec<Vec<u8>>, ErasureError> {
        expect_count(lengths.len(), self.wanted.len())?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut shards = vec![vec![0; longest]; lengths.len()];
        for start in (0..longest).step_by(STRIP_BYTES) {
            let end = longest.min(start + STRIP_BYTES);
            let strips: Vec<_> = sources.iter().map(|source| part(source, start, end)).collect();
            let mut outputs: Vec<_> =
                shards.iter_mut().map(|shard| &mut shard[start..end]).collect();
            self.strip(&strips, &mut outputs)?;
        }
        for (shard, length) in shards.iter_mut().zip(lengths) {
            shard.truncate(*length);
        }
        Ok(shards)
    }
}

/// Recipes by loss pattern, so that the matrix is inverted once and not once for each stripe.
#[derive(Debug, Default)]
pub struct Recipes(HashMap<Pattern, Arc<Recipe>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pattern {
    k: u8,
    data: u8,
    present: Vec<ShardPlace>,
    wanted: Vec<ShardPlace>,
}

impl Recipes {
    /// As [`Recipe::new`], from the cache when the pattern was seen before.
    ///
    /// # Errors
    /// As [`Recipe::new`].
    pub fn get(
        &mut self,
        k: u8,
        data: u8,
        present: &[ShardPlace],
        wanted: &[ShardPlace],
    ) -> Result<Arc<Recipe>, ErasureError> {
        let pattern = Pattern { k, data, present: present.to_vec(), wanted: wanted.to_vec() };
        if let Some(recipe) = self.0.get(&pattern) {
            return Ok(Arc::clone(recipe));
        }
        let recipe = Arc::new(Recipe::new(k, data, present, wanted)?);
        if self.0.len() >= CACHED_RECIPES {
            self.0.clear();
        }
        self.0.insert(pattern, Arc::clone(&recipe));
        Ok(recipe)
    }
}

/// The coder whose "parity" is the wanted places and whose "data" is the sources: the rows of the wanted places times the
/// inverse of the rows of the sources. `None` cannot happen for places that [`Recipe::new`] let through.
fn combine(k: u8, data: u8, sources: &[ShardPlace], wanted: &[ShardPlace]) -> Option<Coder> {
    let columns = usize::from(data);
    let rows = |places: &[ShardPlace]| {
        let bytes = places.iter().flat_map(|place| (0..data).map(|j| coefficient(k, *place, j)));
        Matrix::from_bytes(places.len(), columns, bytes.collect()).ok()
    };
    let product = rows(wanted)?.multiply(&rows(sources)?.invert().ok()?).ok()?;
    let identity = (0..columns * columns).map(|at| u8::from(at / columns == at % columns));
    let bytes = identity.chain(product.as_bytes().iter().copied()).collect();
    let matrix = Matrix::from_bytes(columns + wanted.len(), columns, bytes).ok()?;
    rusty_erasure::coder(matrix).ok()
}

/// What the data shard at place `column` is multiplied by in the shard at `place`.
fn coefficient(k: u8, place: ShardPlace, column: u8) -> u8 {
    if place.0 < k { u8::from(place.0 == column) } else { gf::inv(place.0 ^ column) }
}

fn expect_count(given: usize, expected: usize) -> Result<(), ErasureError> {
    if given == expected { Ok(()) } else { Err(ErasureError::SliceCount { given, expected }) }
}

/// What a shard has of the range; shorter, or nothing, when it ends before.
fn part(shard: &[u8], start: usize, end: usize) -> &[u8] {
    shard.get(start..end.min(shard.len())).unwrap_or_default()
}

fn padded(source: &[u8], bytes: usize) -> Cow<'_, [u8]> {
    match source.get(..bytes) {
        Some(head) => Cow::Borrowed(head),
        None if source.is_empty() => Cow::Borrowed(&ZEROS[..bytes]),
        None => {
            let mut strip = source.to_vec();
            strip.resize(bytes, 0);
            Cow::Owned(strip)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Multiplication by the schoolbook, apart from any table: the oracle.
    fn multiply(mut a: u8, b: u8) -> u8 {
        (0..8).fold(0, |product, bit| {
            let term = if b >> bit & 1 == 1 { a } else { 0 };
            a = (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1d };
            product ^ term
        })
    }

    fn inverse(a: u8) -> u8 {
        (1..=255).find(|b| multiply(a, *b) == 1).unwrap()
    }

    fn byte(shard: &[u8], at: usize) -> u8 {
        shard.get(at).copied().unwrap_or(0)
    }

    fn parity_by_hand(data: &[Vec<u8>], place: u8, bytes: usize) -> Vec<u8> {
        let factors: Vec<_> = (0..).zip(data).map(|(j, _)| inverse(place ^ j)).collect();
        let at = |at| {
            factors.iter().zip(data).fold(0, |sum, (f, shard)| sum ^ multiply(*f, byte(shard, at)))
        };
        (0..bytes).map(at).collect()
    }

    fn places(places: std::ops::Range<u8>) -> Vec<ShardPlace> {
        places.map(ShardPlace).collect()
    }

    fn slices(shards: &[Vec<u8>]) -> Vec<&[u8]> {
        shards.iter().map(Vec::as_slice).collect()
    }

    prop_compose! {
        /// k, m, and up to k data shards of different lengths.
        fn any_stripe()(k in 1..=32_u8, m in 1..=8_u8)(
            k in Just(k),
            m in Just(m),
            data in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..=usize::from(k)),
        ) -> (u8, u8, Vec<Vec<u8>>) {
            (k, m, data)
        }
    }

    fn encode(k: u8, m: u8, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let count = u8::try_from(data.len()).unwrap();
        let longest = data.iter().map(Vec::len).max().unwrap();
        let recipe = Recipe::encode(k, count, &places(k..k + m)).unwrap();
        recipe.whole(&slices(data), &vec![longest; m.into()]).unwrap()
    }

    proptest! {
        #[test]
        fn parity_is_what_the_schoolbook_says((k, m, data) in any_stripe()) {
            let parity = encode(k, m, &data);
            for (place, shard) in (k..).zip(&parity) {
                prop_assert_eq!(shard, &parity_by_hand(&data, place, shard.len()));
            }
        }

        #[test]
        fn any_losses_up_to_m_are_rebuilt((k, m, data) in any_stripe(), seed in prop::collection::vec(any::<u32>(), 40)) {
            let parity = encode(k, m, &data);
            let mut shards: Vec<_> = (0..).map(ShardPlace).zip(data.clone()).collect();
            shards.extend((k..).map(ShardPlace).zip(parity));
            let mut order: Vec<_> = (0..shards.len()).collect();
            order.sort_by_key(|at| seed[*at]);
            let (lost, kept) = order.split_at(m.into());
            let present: Vec<_> = kept.iter().map(|at| shards[*at].0).collect();
            let wanted: Vec<_> = lost.iter().map(|at| shards[*at].0).collect();
            let lengths: Vec<_> = lost.iter().map(|at| shards[*at].1.len()).collect();
            let recipe = Recipe::new(k, u8::try_from(data.len()).unwrap(), &present, &wanted).unwrap();
            prop_assert_eq!(recipe.sources().len(), data.len());
            let of = |place| shards.iter().find(|(other, _)| *other == place).unwrap().1.as_slice();
            let sources: Vec<_> = recipe.sources().iter().map(|place| of(*place)).collect();
            let rebuilt = recipe.whole(&sources, &lengths).unwrap();
            for (at, shard) in lost.iter().zip(rebuilt) {
                prop_assert_eq!(&shards[*at].1, &shard);
            }
        }

        #[test]
        fn more_parity_keeps_the_parity_that_is_there((k, m, data) in any_stripe()) {
            let few = encode(k, m, &data);
            let many = encode(k, m + 3, &data);
            prop_assert_eq!(&few[..], &many[..m.into()]);
        }
    }

    #[test]
    fn the_matrix_is_the_one_of_isa_l() {
        for (k, m) in [(2, 1), (10, 10), (31, 19), (32, 26), (32, 223)] {
            let width = usize::from(k) + usize::from(m);
            let mut theirs = vec![0; width * usize::from(k)];
            rusty_erasure::isal::gf_gen_cauchy1_matrix(&mut theirs, width, k.into()).unwrap();
            let ours: Vec<_> = (0..k + m)
                .flat_map(|place| (0..k).map(move |j| coefficient(k, ShardPlace(place), j)))
                .collect();
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn shards_longer_than_a_strip_are_worked_on_in_strips() {
        let data: Vec<Vec<u8>> = [3 * STRIP_BYTES + 17, STRIP_BYTES + 1, 5]
            .iter()
            .zip([1_u8, 7, 11])
            .map(|(bytes, step)| (0_u8..251).cycle().take(*bytes).map(|at| at ^ step).collect())
            .collect();
        let parity = encode(4, 2, &data);
        assert_eq!(parity[1], parity_by_hand(&data, 5, 3 * STRIP_BYTES + 17));
        let present = [ShardPlace(2), ShardPlace(5), ShardPlace(4)];
        let recipe = Recipe::new(4, 3, &present, &[ShardPlace(1), ShardPlace(0)]).unwrap();
        let rebuilt = recipe
            .whole(&[&data[2], &parity[0], &parity[1]], &[data[1].len(), data[0].len()])
            .unwrap();
        assert_eq!(rebuilt, [data[1].clone(), data[0].clone()]);
    }

    #[test]
    fn what_cannot_be_rebuilt_is_refused() {
        let two = [ShardPlace(0), ShardPlace(0), ShardPlace(4)];
        assert_eq!(
            Recipe::new(3, 3, &two, &[ShardPlace(1)]).unwrap_err(),
            ErasureError::TooFew { have: 2, need: 3 }
        );
        assert_eq!(
            Recipe::new(3, 2, &two, &[ShardPlace(2)]).unwrap_err(),
            ErasureError::Place { place: 2, k: 3, data: 2 }
        );
        assert_eq!(
            Recipe::new(33, 2, &two, &[ShardPlace(1)]).unwrap_err(),
            ErasureError::Shape { k: 33, data: 2 }
        );
        assert_eq!(
            Recipe::new(3, 2, &two, &[ShardPlace(255)]).unwrap_err(),
            ErasureError::Place { place: 255, k: 3, data: 2 }
        );
        let recipe = Recipe::encode(2, 2, &[ShardPlace(2)]).unwrap();
        assert_eq!(
            recipe.whole(&[b"a"], &[1]).unwrap_err(),
            ErasureError::SliceCount { given: 1, expected: 2 }
        );
        let mut long = vec![0; STRIP_BYTES + 1];
        assert_eq!(recipe.strip(&[b"a", b"b"], &mut [&mut long]), Err(ErasureError::StripBytes));
    }

    #[test]
    fn a_pattern_seen_before_is_not_inverted_again() {
        let mut recipes = Recipes::default();
        let first = recipes.get(2, 2, &places(1..3), &places(0..1)).unwrap();
        let again = recipes.get(2, 2, &places(1..3), &places(0..1)).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        for parity in (32..255).map(ShardPlace) {
            recipes.get(32, 1, &places(0..1), &[parity]).unwrap();
            recipes.get(32, 2, &places(0..2), &[parity]).unwrap();
        }
        assert!(recipes.0.len() <= CACHED_RECIPES);
    }
}
