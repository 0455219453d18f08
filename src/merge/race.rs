//! Which of many sorted runs goes on.

use std::cmp::Ordering;

use super::{
    keys::{Class, KeySpace},
    loser_tree::{Entrant, LoserTree},
};

/// Bits of a head: class (2), key (64), whether it is a row (1), rank (61).
const RANK_BITS: u32 = 61;
const KEY_SHIFT: u32 = RANK_BITS + 1;
/// Ranks of one input: its place, then the run in scratch.
const RUN_BITS: u32 = 24;

/// Rows that are equal stand in the order of their ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(u64);

impl Rank {
    /// Rows of an input, or of a part of one.
    pub(super) fn of_part(part: usize) -> Self {
        Self((part as u64) << RUN_BITS)
    }

    /// The same input's rows in one of the runs in scratch. An input that is sorted in pieces has
    /// runs that stand in the order of its rows.
    #[inline]
    pub(super) fn in_run(self, index: usize) -> Self {
        Self(self.0 + index as u64)
    }

    /// The input, or the part of one.
    pub(super) fn part(self) -> u64 {
        self.0 >> RUN_BITS
    }
}

/// What a run goes on with, as one number: smaller ones go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Head(u128);

impl Head {
    /// Behind every row.
    pub(super) const END: Self = Self(u128::MAX);

    /// A row, or the bound of a run that waits. A bound goes before rows with the same key,
    /// because what it hides may come first.
    #[inline]
    pub(super) fn new((class, key): (Class, u64), is_row: bool, rank: Rank) -> Self {
        let place = u128::from(is_row) << RANK_BITS | u128::from(rank.0);
        Self((class as u128) << 126 | u128::from(key) << KEY_SHIFT | place)
    }

    #[inline]
    fn key(self) -> u128 {
        self.0 >> KEY_SHIFT
    }

    /// Among rows with equal keys.
    #[inline]
    pub(super) fn place(self) -> u128 {
        self.0 & ((1 << KEY_SHIFT) - 1)
    }
}

/// A run as the race sees it.
pub(super) trait Racer<K: KeySpace> {
    /// What it goes on with.
    fn head(&self, space: &K) -> Head;

    /// Its key in full: a block and the place there.
    fn key(&self) -> Option<(&K::Block, usize)>;
}

/// The race of some runs.
pub(super) struct Race(LoserTree<Head>);

impl Race {
    /// The race of at least one run.
    pub(super) fn new<K: KeySpace, R: Racer<K>>(space: &K, runs: &[R]) -> Self {
        let heads: Vec<Head> = runs.iter().map(|run| run.head(space)).collect();
        let wins = |a: &_, b: &_| wins(space, runs, a, b);
        Self(LoserTree::new(&heads, Head::END, wins))
    }

    /// The run that goes on; `None` when all are at their end.
    #[inline]
    pub(super) fn winner(&self) -> Option<usize> {
        let (winner, head) = self.0.winner();
        (head != Head::END).then_some(winner)
    }

    /// After the winner went on.
    #[inline]
    pub(super) fn replay<K: KeySpace, R: Racer<K>>(&mut self, space: &K, runs: &[R]) {
        let head = runs[self.0.winner().0].head(space);
        self.0.replay(head, |a, b| wins(space, runs, a, b));
    }

    /// The run that comes after the winner, and what it goes on with.
    #[inline]
    pub(super) fn runner_up<K: KeySpace, R: Racer<K>>(
        &self,
        space: &K,
        runs: &[R],
    ) -> Option<Entrant<Head>> {
        self.0.runner_up(|a, b| wins(space, runs, a, b))
    }
}

#[inline]
fn wins<K: KeySpace, R: Racer<K>>(
    space: &K,
    runs: &[R],
    &(a, one): &Entrant<Head>,
    &(b, two): &Entrant<Head>,
) -> bool {
    if K::HEADS_ARE_EXACT || one.key() != two.key() {
        return one < two;
    }
    comes_before(space, (one, runs[a].key()), (two, runs[b].key()))
}

/// A head, and the key that it is of.
type Full<'a, B> = (Head, Option<(&'a B, usize)>);

/// Whether one key and rank go before another.
#[inline]
pub(super) fn comes_before<K: KeySpace>(
    space: &K,
    (one, one_key): Full<'_, K::Block>,
    (two, two_key): Full<'_, K::Block>,
) -> bool {
    let (Some((one_keys, i)), Some((two_keys, j))) = (one_key, two_key) else {
        return one < two;
    };
    if K::HEADS_ARE_EXACT || one.key() != two.key() {
        return one < two;
    }
    match space.compare(one_keys, i, two_keys, j) {
        Ordering::Less => true,
        Ordering::Greater => false,
        Ordering::Equal => one.place() < two.place(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_stand_in_the_order_of_class_key_bound_and_rank() {
        let head = |class, key, is_row, part| Head::new((class, key), is_row, Rank::of_part(part));
        let ordered = [
            head(Class::NullFirst, 0, true, 9),
            head(Class::Value, 1, false, 7),
            head(Class::Value, 1, true, 3),
            head(Class::Value, 1, true, 4),
            head(Class::Value, u64::MAX, true, 0),
            head(Class::NullLast, 0, true, 0),
            Head::END,
        ];
        assert!(ordered.is_sorted());
        assert!(Rank::of_part(3).in_run(5) < Rank::of_part(4));
        assert_eq!(Rank::of_part(3).in_run(5).part(), 3);
    }
}
