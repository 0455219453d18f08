//! Collects rows from many batches into output batches, runs of rows at once.

use std::sync::OnceLock;

use arrow::{
    array::{Array, ArrayRef, RecordBatch},
    compute::{concat, interleave},
};

/// Consecutive rows of one batch.
#[derive(Debug, Clone, Copy)]
struct Pick {
    slot: u32,
    row: u32,
    count: u32,
}

/// From this many rows a piece on, pieces are copied as wholes.
const COPY_PIECE_ROWS: usize = 16;

/// Rows of an output batch: where they are, not yet copied.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    batches: Vec<RecordBatch>,
    picks: Vec<Pick>,
    row_count: usize,
    /// Decoded bytes, estimated.
    size_bytes: u64,
    /// Columns that were copied already.
    copied: Vec<(usize, ArrayRef)>,
    /// The picks row by row, made for the first column that needs them.
    rows: OnceLock<Vec<(usize, usize)>>,
}

impl Gathered {
    /// Rows so far.
    pub(super) fn row_count(&self) -> usize {
        self.row_count
    }

    /// Bytes of the rows so far, estimated.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Takes part of a batch; the slot that it gives names the batch in [`add_rows`](Self::add_rows).
    pub(super) fn add_batch(&mut self, batch: RecordBatch) -> u32 {
        self.batches.push(batch);
        u32::try_from(self.batches.len() - 1).unwrap_or(u32::MAX)
    }

    /// Appends consecutive rows of a batch. Batches have far fewer rows than `u32` counts.
    pub(super) fn add_rows(&mut self, slot: u32, row: usize, count: usize, row_bytes: u64) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a batch has at most 8192 rows"
        )]
        let (row, added) = (row as u32, count as u32);
        self.row_count += count;
        self.size_bytes += row_bytes * count as u64;
        if let Some(last) = self.picks.last_mut()
            && last.slot == slot
            && last.row + last.count == row
        {
            last.count += added;
            return;
        }
        self.picks.push(Pick {
            slot,
            row,
            count: added,
        });
    }

    /// The rows for which `kept` is set.
    pub(super) fn keep_only(self, kept: &[bool]) -> Self {
        let row_bytes = self.size_bytes / self.row_count.max(1) as u64;
        let mut rows = Self {
            batches: self.batches,
            ..Self::default()
        };
        let mut kept = kept.iter();
        for pick in &self.picks {
            for (row, _) in (pick.row..pick.row + pick.count)
                .zip(kept.by_ref().take(pick.count as usize))
                .filter(|(_, kept)| **kept)
            {
                rows.add_rows(pick.slot, row as usize, 1, row_bytes);
            }
        }
        rows
    }

    /// One row, as a batch; `None` when there are fewer.
    pub(super) fn row(&self, row: usize) -> Option<RecordBatch> {
        let mut offset = row;
        for pick in &self.picks {
            if offset < pick.count as usize {
                let batch = &self.batches[pick.slot as usize];
                return Some(batch.slice(pick.row as usize + offset, 1));
            }
            offset -= pick.count as usize;
        }
        None
    }

    /// Copies one column.
    pub(super) fn column(&self, index: usize) -> Result<ArrayRef, String> {
        if let Some((_, column)) = self.copied.iter().find(|(copied, _)| *copied == index) {
            return Ok(ArrayRef::clone(column));
        }
        let piece = |pick: &Pick| {
            self.batches[pick.slot as usize]
                .column(index)
                .slice(pick.row as usize, pick.count as usize)
        };
        if let [only] = &self.picks[..] {
            return Ok(piece(only));
        }
        if self.row_count >= self.picks.len() * COPY_PIECE_ROWS {
            let pieces: Vec<ArrayRef> = self.picks.iter().map(piece).collect();
            let pieces: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
            return concat(&pieces).map_err(|e| e.to_string());
        }
        let columns: Vec<&dyn Array> = self
            .batches
            .iter()
            .map(|batch| batch.column(index).as_ref())
            .collect();
        let rows = self.rows.get_or_init(|| {
            let mut rows = Vec::with_capacity(self.row_count);
            for pick in &self.picks {
                rows.extend((0..pick.count).map(|i| (pick.slot as usize, (pick.row + i) as usize)));
            }
            rows
        });
        interleave(&columns, rows).map_err(|e| e.to_string())
    }

    /// Keeps a column that was copied, for whoever asks next.
    pub(super) fn keep_column(&mut self, index: usize, column: ArrayRef) {
        self.copied.push((index, column));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{array::Int64Array, datatypes::Int64Type};

    use super::*;

    #[test]
    fn kept_rows_stay_in_order_and_single_rows_are_found() {
        let batch = |values: &[i64]| {
            let column: ArrayRef = Arc::new(Int64Array::from(values.to_vec()));
            RecordBatch::try_from_iter([("v", column)]).unwrap()
        };
        let mut rows = Gathered::default();
        let one = rows.add_batch(batch(&[0, 1, 2, 3]));
        let two = rows.add_batch(batch(&[10, 11]));
        rows.add_rows(one, 1, 3, 8);
        rows.add_rows(two, 0, 2, 8);
        let values = |column: ArrayRef| {
            use arrow::array::AsArray;
            column.as_primitive::<Int64Type>().values().to_vec()
        };
        let single = rows.row(3).unwrap();
        assert_eq!(values(ArrayRef::clone(single.column(0))), [10]);
        assert!(rows.row(5).is_none());
        let kept = rows.keep_only(&[true, false, true, false, true]);
        assert_eq!((kept.row_count(), kept.size_bytes()), (3, 24));
        assert_eq!(values(kept.column(0).unwrap()), [1, 3, 11]);
    }
}
