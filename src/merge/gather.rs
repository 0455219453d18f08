//! Collects rows from many batches into output batches, runs of rows at once.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use arrow::{
    array::{
        Array, ArrayData, ArrayRef, AsArray, GenericByteViewArray, GenericByteViewBuilder,
        RecordBatch, make_array,
    },
    buffer::{Buffer, NullBuffer},
    compute::{concat, interleave},
    datatypes::{ArrowNativeType, BinaryViewType, ByteViewType, DataType, StringViewType},
};

use super::{
    flat::words,
    keys::RowRef,
    picks::{Pick, Rows, are_scattered, copy_nulls, copy_words, cut, fetch_nulls, fetch_words},
};

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
    rows: OnceLock<Vec<RowRef>>,
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
        let added = Pick::new(slot, row, count);
        self.row_count += count;
        self.size_bytes += row_bytes * count as u64;
        if let Some(last) = self.picks.last_mut()
            && last.slot == slot
            && last.row + last.count == added.row
        {
            last.count += added.count;
            return;
        }
        self.picks.push(added);
    }

    /// One column of some rows where it is: arrays, and which rows of them.
    pub(super) fn pieces(
        &self,
        index: usize,
        start: usize,
        count: usize,
    ) -> (Vec<ArrayRef>, Rows<'_>) {
        if let Some((_, column)) = self.copied.iter().find(|(copied, _)| *copied == index) {
            let pick = Pick::new(0, start, count);
            let picks = Rows::Runs(Cow::Owned(vec![pick]));
            return (vec![ArrayRef::clone(column)], picks);
        }
        let columns = self.batches.iter();
        let columns = columns.map(|batch| ArrayRef::clone(batch.column(index)));
        let rows = if self.is_scattered() {
            Rows::Scattered(&self.rows()[start..start + count])
        } else if start == 0 && count == self.row_count {
            Rows::Runs(Cow::Borrowed(&self.picks[..]))
        } else {
            Rows::Runs(Cow::Owned(cut(&self.picks, start, count)))
        };
        (columns.collect(), rows)
    }

    fn is_scattered(&self) -> bool {
        are_scattered(self.row_count, self.picks.len())
    }

    /// The picks row by row.
    fn rows(&self) -> &[RowRef] {
        self.rows.get_or_init(|| {
            let mut rows = Vec::with_capacity(self.row_count);
            for pick in &self.picks {
                rows.extend(pick.rows());
            }
            rows
        })
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
        let columns: Vec<&dyn Array> = self
            .batches
            .iter()
            .map(|batch| batch.column(index).as_ref())
            .collect();
        let rows = if self.is_scattered() {
            Rows::Scattered(self.rows())
        } else {
            Rows::Runs(Cow::Borrowed(&self.picks))
        };
        if let Some(gathered) = gather_words(&columns, self.row_count, &rows) {
            return gathered;
        }
        if self.row_count >= self.picks.len() * COPY_PIECE_ROWS {
            let pieces: Vec<ArrayRef> = self.picks.iter().map(piece).collect();
            let pieces: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
            return concat(&pieces).map_err(|e| e.to_string());
        }
        interleave(&columns, &in_words(self.rows())).map_err(|e| e.to_string())
    }

    /// Keeps a column that was copied, for whoever asks next.
    pub(super) fn keep_column(&mut self, index: usize, column: ArrayRef) {
        self.copied.push((index, column));
    }
}

/// The rows of some arrays in another order.
pub(super) fn permute(chunks: &[ArrayRef], order: &[RowRef]) -> Result<ArrayRef, String> {
    let columns: Vec<&dyn Array> = chunks.iter().map(AsRef::as_ref).collect();
    if let Some(gathered) = gather_words(&columns, order.len(), &Rows::Scattered(order)) {
        return gathered;
    }
    interleave(&columns, &in_words(order)).map_err(|e| e.to_string())
}

/// Texts of few rows, in another order, in memory of their own; `None` for other arrays. They are
/// in the cache now, and will be read one after the other.
pub(super) fn permute_texts(chunks: &[ArrayRef], order: &[RowRef]) -> Option<ArrayRef> {
    match chunks.first()?.data_type() {
        DataType::Utf8View => copy_texts::<StringViewType>(chunks, order),
        DataType::BinaryView => copy_texts::<BinaryViewType>(chunks, order),
        _ => None,
    }
}

fn copy_texts<T: ByteViewType>(chunks: &[ArrayRef], order: &[RowRef]) -> Option<ArrayRef> {
    let arrays = chunks.iter().map(|chunk| chunk.as_byte_view_opt::<T>());
    let arrays: Vec<&GenericByteViewArray<T>> = arrays.collect::<Option<_>>()?;
    let bytes = arrays.iter().map(|array| array.total_buffer_bytes_used());
    let bytes = u32::try_from(bytes.sum::<usize>()).ok()?;
    let texts = GenericByteViewBuilder::<T>::with_capacity(order.len());
    let mut texts = texts.with_fixed_block_size(bytes.max(1));
    for at in order {
        let (array, row) = (arrays[at.batch as usize], at.row as usize);
        if array.is_null(row) {
            texts.append_null();
        } else {
            texts.append_value(array.value(row));
        }
    }
    Some(Arc::new(texts.finish()))
}

/// Rows as Arrow names them.
fn in_words(rows: &[RowRef]) -> Vec<(usize, usize)> {
    let rows = rows.iter();
    rows.map(|at| (at.batch as usize, at.row as usize))
        .collect()
}

/// Copies rows of arrays whose values are words; `None` for other arrays.
fn gather_words(
    arrays: &[&dyn Array],
    row_count: usize,
    rows: &Rows<'_>,
) -> Option<Result<ArrayRef, String>> {
    let data_type = arrays.first()?.data_type().clone();
    let buffer = match data_type.primitive_width()? {
        8 => gather_values::<u64>(arrays, row_count, rows)?,
        4 => gather_values::<u32>(arrays, row_count, rows)?,
        _ => return None,
    };
    let nulls: Vec<Option<&NullBuffer>> = arrays
        .iter()
        .map(|array| array.nulls().filter(|nulls| nulls.null_count() > 0))
        .collect();
    let nulls = match rows {
        Rows::Runs(picks) => copy_nulls(&nulls, picks, row_count),
        Rows::Scattered(rows) => fetch_nulls(&nulls, rows),
    };
    let data = ArrayData::builder(data_type)
        .len(row_count)
        .add_buffer(buffer)
        .nulls(nulls)
        .build();
    Some(data.map(make_array).map_err(|e| e.to_string()))
}

fn gather_values<T: ArrowNativeType>(
    arrays: &[&dyn Array],
    row_count: usize,
    rows: &Rows<'_>,
) -> Option<Buffer> {
    let slices = arrays.iter().map(|array| words::<T>(*array));
    let slices: Vec<&[T]> = slices.collect::<Option<_>>()?;
    let mut values = Vec::with_capacity(row_count);
    match rows {
        Rows::Runs(picks) => copy_words(&slices, picks, &mut values),
        Rows::Scattered(rows) => fetch_words(&slices, rows, &mut values),
    }
    Some(Buffer::from_vec(values))
}

#[cfg(test)]
mod tests {
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
