//! Which rows of some arrays are wanted, in what order, and how words and nulls are fetched.

use std::borrow::Cow;

use arrow::{
    array::BooleanBufferBuilder,
    buffer::{BooleanBuffer, NullBuffer},
};

use super::keys::RowRef;

/// Consecutive rows of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pick {
    /// The batch, as the output batch counts.
    pub(super) slot: u32,
    /// The first row there.
    pub(super) row: u32,
    /// Rows.
    pub(super) count: u32,
}

/// With fewer rows a pick, rows are fetched one by one.
const RUN_ROWS_MIN: usize = 4;

impl Pick {
    /// Batches have far fewer rows than `u32` counts.
    pub(super) fn new(slot: u32, row: usize, count: usize) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "neither batches nor output batches have more rows than 32 bits count"
        )]
        let (row, count) = (row as u32, count as u32);
        Self { slot, row, count }
    }

    /// Its rows, one by one.
    pub(super) fn rows(self) -> impl Iterator<Item = RowRef> {
        (self.row..self.row + self.count).map(move |row| RowRef {
            batch: self.slot,
            row,
        })
    }
}

/// Whether rows that so many picks name are rather fetched one by one.
pub(super) fn are_scattered(row_count: usize, pick_count: usize) -> bool {
    row_count < pick_count * RUN_ROWS_MIN
}

/// Rows of some arrays, in order.
#[derive(Debug)]
pub(super) enum Rows<'a> {
    /// Many that follow one another.
    Runs(Cow<'a, [Pick]>),
    /// From all over the arrays.
    Scattered(&'a [RowRef]),
}

impl Rows<'_> {
    /// All rows, one by one, in blocks of up to `N`.
    pub(super) fn for_each_block<const N: usize>(
        &self,
        mut take: impl FnMut(&[RowRef]) -> Result<(), String>,
    ) -> Result<(), String> {
        let picks = match self {
            Self::Runs(picks) => picks,
            Self::Scattered(rows) => return rows.chunks(N).try_for_each(take),
        };
        let mut block = Vec::with_capacity(N);
        let mut rows = picks.iter().flat_map(|pick| pick.rows());
        loop {
            block.clear();
            block.extend(rows.by_ref().take(N));
            if block.is_empty() {
                return Ok(());
            }
            take(&block)?;
        }
    }
}

/// The picks of `count` rows from `start` on.
pub(super) fn cut(picks: &[Pick], start: usize, count: usize) -> Vec<Pick> {
    let (mut skip, mut left) = (start, count);
    let mut found = Vec::new();
    for whole in picks {
        let rows = whole.count as usize;
        if left == 0 {
            break;
        }
        if skip >= rows {
            skip -= rows;
            continue;
        }
        let taken = (rows - skip).min(left);
        found.push(Pick::new(whole.slot, whole.row as usize + skip, taken));
        (skip, left) = (0, left - taken);
    }
    found
}

/// Appends the words of scattered rows.
#[inline]
pub(super) fn fetch_words<T: Copy>(slices: &[&[T]], rows: &[RowRef], into: &mut Vec<T>) {
    // One slice and one bound are quicker than two; both loops know how many words come.
    match slices {
        [only] => into.extend(rows.iter().map(|at| only[at.row as usize])),
        _ => into.extend(
            rows.iter()
                .map(|at| slices[at.batch as usize][at.row as usize]),
        ),
    }
}

/// Which scattered rows are null; `None` when no array has nulls.
pub(super) fn fetch_nulls(nulls: &[Option<&NullBuffer>], rows: &[RowRef]) -> Option<NullBuffer> {
    nulls.iter().any(Option::is_some).then(|| {
        let is_valid = |i: usize| {
            let at = rows[i];
            nulls[at.batch as usize].is_none_or(|nulls| nulls.is_valid(at.row as usize))
        };
        NullBuffer::new(BooleanBuffer::collect_bool(rows.len(), is_valid))
    })
}

/// Appends the words of runs of rows.
pub(super) fn copy_words<T: Copy>(slices: &[&[T]], picks: &[Pick], into: &mut Vec<T>) {
    for pick in picks {
        let (row, count) = (pick.row as usize, pick.count as usize);
        into.extend_from_slice(&slices[pick.slot as usize][row..row + count]);
    }
}

/// Which rows of runs are null; `None` when no array has nulls.
pub(super) fn copy_nulls(
    nulls: &[Option<&NullBuffer>],
    picks: &[Pick],
    row_count: usize,
) -> Option<NullBuffer> {
    nulls.iter().any(Option::is_some).then(|| {
        let mut valid = BooleanBufferBuilder::new(row_count);
        for pick in picks {
            let (row, count) = (pick.row as usize, pick.count as usize);
            match nulls[pick.slot as usize] {
                None => valid.append_n(count, true),
                Some(nulls) => valid.append_buffer(&nulls.inner().slice(row, count)),
            }
        }
        NullBuffer::new(valid.finish())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_picks_hold_the_rows_between() {
        let picks = [Pick::new(0, 10, 3), Pick::new(1, 0, 5), Pick::new(0, 13, 2)];
        assert_eq!(cut(&picks, 0, 10), picks);
        assert_eq!(cut(&picks, 2, 3), [Pick::new(0, 12, 1), Pick::new(1, 0, 2)]);
        assert_eq!(cut(&picks, 3, 5), [Pick::new(1, 0, 5)]);
        assert_eq!(cut(&picks, 9, 1), [Pick::new(0, 14, 1)]);
    }

    #[test]
    fn runs_and_scattered_rows_are_the_same_rows() {
        let picks = [Pick::new(1, 2, 3), Pick::new(0, 0, 1), Pick::new(1, 5, 2)];
        let rows: Vec<RowRef> = picks.iter().flat_map(|pick| pick.rows()).collect();
        let (zero, one) = ([10, 11], [20, 21, 22, 23, 24, 25, 26]);
        let slices: [&[i32]; 2] = [&zero, &one];
        let (mut copied, mut fetched) = (Vec::new(), Vec::new());
        copy_words(&slices, &picks, &mut copied);
        fetch_words(&slices, &rows, &mut fetched);
        assert_eq!(copied, [22, 23, 24, 10, 25, 26]);
        assert_eq!(fetched, copied);
        let null = NullBuffer::from(vec![true, true, true, false, true, false, true]);
        let nulls = [None, Some(&null)];
        let expected = NullBuffer::from(vec![true, false, true, true, false, true]);
        assert_eq!(copy_nulls(&nulls, &picks, 6).as_ref(), Some(&expected));
        assert_eq!(fetch_nulls(&nulls, &rows), Some(expected));
        assert_eq!(fetch_nulls(&[None, None], &rows), None);
        let mut blocks = Vec::new();
        for rows in [Rows::Runs(picks[..].into()), Rows::Scattered(&rows)] {
            rows.for_each_block::<4>(|block| {
                blocks.push(block.to_vec());
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(blocks[..2], [rows[..4].to_vec(), rows[4..].to_vec()]);
        assert_eq!(blocks[2..], blocks[..2]);
    }
}
