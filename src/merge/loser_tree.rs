//! Who comes next among many sorted runs.

/// A tournament: each inner node remembers who lost there, so a new winner costs one walk
/// from its leaf to the root.
pub(super) struct LoserTree {
    losers: Vec<usize>,
    winner: usize,
}

const NOBODY: usize = usize::MAX;

impl LoserTree {
    /// Who comes first.
    pub(super) fn winner(&self) -> usize {
        self.winner
    }

    /// Plays the first round. `wins(a, b)`: whether `a` comes before `b`.
    pub(super) fn new(count: usize, wins: impl Fn(usize, usize) -> bool) -> Self {
        let mut tree = Self {
            losers: vec![NOBODY; count],
            winner: 0,
        };
        for leaf in 0..count {
            let mut current = leaf;
            let mut node = usize::midpoint(leaf, count);
            while node > 0 {
                if tree.losers[node] == NOBODY {
                    tree.losers[node] = current;
                    current = NOBODY;
                    break;
                }
                if wins(tree.losers[node], current) {
                    std::mem::swap(&mut tree.losers[node], &mut current);
                }
                node /= 2;
            }
            if current != NOBODY {
                tree.winner = current;
            }
        }
        tree
    }

    /// Plays again along the way of a winner whose next key changed.
    #[inline]
    pub(super) fn replay(&mut self, winner: usize, wins: impl Fn(usize, usize) -> bool) {
        let mut current = winner;
        let mut node = usize::midpoint(winner, self.losers.len());
        while node > 0 {
            if wins(self.losers[node], current) {
                std::mem::swap(&mut self.losers[node], &mut current);
            }
            node /= 2;
        }
        self.winner = current;
    }

    /// The best of those that lost to the winner directly: the next one after it.
    pub(super) fn runner_up(
        &self,
        winner: usize,
        wins: impl Fn(usize, usize) -> bool,
    ) -> Option<usize> {
        let mut best = None;
        let mut node = usize::midpoint(winner, self.losers.len());
        while node > 0 {
            let loser = self.losers[node];
            if best.is_none_or(|best| wins(loser, best)) {
                best = Some(loser);
            }
            node /= 2;
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_loser_tree_gives_what_a_stable_sort_gives(
            runs in prop::collection::vec(prop::collection::vec(0_u8..10, 0..20), 1..40)
        ) {
            let runs: Vec<Vec<u8>> = runs.into_iter().map(|mut run| { run.sort_unstable(); run }).collect();
            let mut expected: Vec<(u8, usize)> =
                runs.iter().enumerate().flat_map(|(i, run)| run.iter().map(move |&key| (key, i))).collect();
            expected.sort_unstable();

            let positions = std::cell::RefCell::new(vec![0; runs.len()]);
            let wins = |a: usize, b: usize| {
                let positions = positions.borrow();
                let head = |i: usize| runs[i].get(positions[i]).map_or((true, 0, i), |&key| (false, key, i));
                head(a) < head(b)
            };
            let mut tree = LoserTree::new(runs.len(), wins);
            let mut merged = Vec::new();
            loop {
                let at = positions.borrow()[tree.winner];
                let Some(&key) = runs[tree.winner].get(at) else { break };
                let winner = tree.winner;
                merged.push((key, winner));
                let others = (0..runs.len()).filter(|&i| i != winner);
                let second = others.reduce(|best, i| if wins(i, best) { i } else { best });
                prop_assert_eq!(tree.runner_up(winner, wins), second);
                positions.borrow_mut()[winner] += 1;
                tree.replay(winner, wins);
            }
            prop_assert_eq!(merged, expected);
        }
    }
}
