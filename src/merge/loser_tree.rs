//! Who comes next among many sorted runs.

/// Somebody in the tournament: who it is, and what it goes on with.
pub(super) type Entrant<H> = (usize, H);

/// A tournament: each inner node remembers who lost there, so a new winner costs one walk
/// from its leaf to the root. What losers go on with stands beside them, where it is compared.
pub(super) struct LoserTree<H> {
    /// The first one stands for nobody.
    losers: Vec<Entrant<H>>,
    winner: Entrant<H>,
}

const NOBODY: usize = usize::MAX;

impl<H: Copy> LoserTree<H> {
    /// Who comes first.
    #[inline]
    pub(super) fn winner(&self) -> Entrant<H> {
        self.winner
    }

    /// Plays the first round of at least one. `wins(a, b)`: whether `a` comes before `b`.
    pub(super) fn new(
        heads: &[H],
        end: H,
        wins: impl Fn(&Entrant<H>, &Entrant<H>) -> bool,
    ) -> Self {
        let mut tree = Self {
            losers: vec![(NOBODY, end); heads.len()],
            winner: (0, heads.first().copied().unwrap_or(end)),
        };
        for (leaf, head) in heads.iter().enumerate() {
            let mut current = (leaf, *head);
            let mut node = usize::midpoint(leaf, heads.len());
            while node > 0 {
                if tree.losers[node].0 == NOBODY {
                    tree.losers[node] = current;
                    current.0 = NOBODY;
                    break;
                }
                if wins(&tree.losers[node], &current) {
                    std::mem::swap(&mut tree.losers[node], &mut current);
                }
                node /= 2;
            }
            if current.0 != NOBODY {
                tree.winner = current;
            }
        }
        tree
    }

    /// Plays again along the way of the winner, which goes on with `head`.
    #[inline]
    pub(super) fn replay(&mut self, head: H, wins: impl Fn(&Entrant<H>, &Entrant<H>) -> bool) {
        let mut current = (self.winner.0, head);
        let mut node = usize::midpoint(current.0, self.losers.len());
        while node > 0 {
            let loser = &mut self.losers[node];
            if wins(loser, &current) {
                std::mem::swap(loser, &mut current);
            }
            node /= 2;
        }
        self.winner = current;
    }

    /// The best of those that lost to the winner directly: the next one after it.
    #[inline]
    pub(super) fn runner_up(
        &self,
        wins: impl Fn(&Entrant<H>, &Entrant<H>) -> bool,
    ) -> Option<Entrant<H>> {
        let mut best: Option<Entrant<H>> = None;
        let mut node = usize::midpoint(self.winner.0, self.losers.len());
        while node > 0 {
            let loser = self.losers[node];
            if best.is_none_or(|best| wins(&loser, &best)) {
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

    const END: u16 = u16::MAX;

    proptest! {
        #[test]
        fn a_loser_tree_gives_what_a_stable_sort_gives(
            runs in prop::collection::vec(prop::collection::vec(0_u8..10, 0..20), 1..40)
        ) {
            let runs: Vec<Vec<u8>> = runs.into_iter().map(|mut run| { run.sort_unstable(); run }).collect();
            let mut expected: Vec<(u8, usize)> =
                runs.iter().enumerate().flat_map(|(i, run)| run.iter().map(move |&key| (key, i))).collect();
            expected.sort_unstable();

            let head = |i: usize, position: usize| runs[i].get(position).map_or(END, |&key| u16::from(key));
            let wins = |(a, one): &Entrant<u16>, (b, two): &Entrant<u16>| (one, a) < (two, b);
            let mut heads: Vec<u16> = (0..runs.len()).map(|i| head(i, 0)).collect();
            let mut positions = vec![0; runs.len()];
            let mut tree = LoserTree::new(&heads, END, wins);
            let mut merged = Vec::new();
            while tree.winner().1 != END {
                let (winner, key) = tree.winner();
                merged.push((u8::try_from(key).unwrap(), winner));
                let others = (0..runs.len()).filter(|&i| i != winner).map(|i| (i, heads[i]));
                let second = others.reduce(|best, other| if wins(&other, &best) { other } else { best });
                prop_assert_eq!(tree.runner_up(wins), second);
                positions[winner] += 1;
                heads[winner] = head(winner, positions[winner]);
                tree.replay(heads[winner], wins);
            }
            prop_assert_eq!(merged, expected);
        }
    }
}
