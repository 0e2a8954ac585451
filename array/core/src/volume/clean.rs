//! Which segments are cleaned: their live blocks are written again, and what is dead in them goes.

use crate::units::SegmentIndex;

/// How many blocks may be stored for each live one, of the segments that can be cleaned.
pub const SPACE_AMPLIFICATION: u64 = 2;

/// How full a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    pub segment: SegmentIndex,
    /// Sealed into it.
    pub blocks: u32,
    pub live: u32,
}

/// The segments to clean, emptiest first: so many that what stays is within [`SPACE_AMPLIFICATION`], but no more live blocks
/// than `budget`. Segments without a live block are not among them: they just go.
#[must_use]
pub fn choose(fills: impl IntoIterator<Item = Fill>, budget: u64) -> Vec<SegmentIndex> {
    let mut fills: Vec<Fill> = fills.into_iter().filter(|fill| fill.live > 0).collect();
    // By the share that lives; among equals the same order every time.
    fills.sort_by(|a, b| {
        let (left, right) =
            (u64::from(a.live) * u64::from(b.blocks), u64::from(b.live) * u64::from(a.blocks));
        left.cmp(&right).then(a.segment.cmp(&b.segment))
    });
    let live: u64 = fills.iter().map(|fill| u64::from(fill.live)).sum();
    let mut stored: u64 = fills.iter().map(|fill| u64::from(fill.blocks)).sum();
    let mut moved = 0;
    let mut chosen = Vec::new();
    for fill in fills {
        let next = moved + u64::from(fill.live);
        if stored <= live * SPACE_AMPLIFICATION || next > budget {
            break;
        }
        moved = next;
        stored -= u64::from(fill.blocks.saturating_sub(fill.live));
        chosen.push(fill.segment);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn cleaning_keeps_the_bound_with_the_least_to_move(fills in vec((1_u32..1000, 0_u32..1000), 0..50)) {
            let fills: Vec<Fill> = (0..).zip(fills)
                .map(|(index, (blocks, live))| Fill { segment: SegmentIndex(index), blocks, live: live.min(blocks) })
                .collect();
            let chosen = choose(fills.iter().copied(), u64::MAX);
            let live: u64 = fills.iter().map(|fill| u64::from(fill.live)).sum();
            let stays = |fill: &&Fill| fill.live > 0 && !chosen.contains(&fill.segment);
            let moved: u64 = fills.iter().filter(|fill| chosen.contains(&fill.segment)).map(|fill| u64::from(fill.live)).sum();
            let stored: u64 = moved + fills.iter().filter(stays).map(|fill| u64::from(fill.blocks)).sum::<u64>();
            prop_assert!(stored <= SPACE_AMPLIFICATION * live, "{} of {}", stored, live);
            // Nothing that stays is emptier than what is moved.
            let share = |fill: &Fill| f64::from(fill.live) / f64::from(fill.blocks);
            let fullest = fills.iter().filter(|fill| chosen.contains(&fill.segment)).map(share).fold(0.0, f64::max);
            let emptiest = fills.iter().filter(stays).map(share).fold(1.0, f64::min);
            prop_assert!(fullest <= emptiest + 1e-9);
            prop_assert!(choose(fills.iter().copied(), 0).is_empty());
        }
    }
}
