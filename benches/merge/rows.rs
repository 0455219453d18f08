//! Inputs: rows of a time-series table, and columns of the kinds that such tables have.

use std::{fs::File, path::Path, sync::Arc};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::{
    arrow::ArrowWriter, basic::Compression, file::metadata::SortingColumn,
    file::properties::WriterProperties,
};

/// A small generator: the same rows each time matter, not good randomness.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn integer(&mut self, limit: u64) -> i64 {
        i64::try_from(self.below(limit)).expect("limits are small")
    }
}

/// How the keys of a file lie.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    /// Anywhere in the range.
    Unsorted,
    /// Sorted, one row in a hundred late by a few: rows as they arrive.
    Arriving,
    /// Sorted, and the file says so.
    Sorted,
}

/// What stands beside the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Columns {
    /// Nothing.
    Keys,
    /// Tags of 64 values.
    Tags,
    /// Random floats.
    Floats,
    /// Counters that grow by small steps.
    Counters,
    /// Texts of 100 characters.
    Messages,
    /// A tag, a float and a counter.
    Usual,
}

/// Rows with keys in `first..first + span`.
pub(crate) fn batch(
    seed: u64,
    rows: usize,
    (first, span): (i64, u64),
    order: Order,
    columns: Columns,
) -> RecordBatch {
    let mut random = Random::new(seed);
    let mut keys: Vec<i64> = (0..rows).map(|_| first + random.integer(span)).collect();
    match order {
        Order::Unsorted => {}
        Order::Sorted => keys.sort_unstable(),
        Order::Arriving => {
            keys.sort_unstable();
            for row in (100..rows).step_by(100) {
                keys.swap(
                    row,
                    row - 1 - usize::try_from(random.below(20)).expect("small"),
                );
            }
        }
    }
    let mut all: Vec<(&str, ArrayRef)> =
        vec![("__timestamp", Arc::new(Int64Array::from(keys)) as ArrayRef)];
    let has = |one: Columns| columns == one || columns == Columns::Usual;
    if has(Columns::Tags) {
        let tags = (0..rows).map(|_| format!("host-{}", random.below(64)));
        all.push(("host", Arc::new(StringArray::from_iter_values(tags))));
    }
    if has(Columns::Floats) {
        let floats = (0..rows).map(|_| random.below(1 << 52) as f64 / 1024.0);
        all.push(("value", Arc::new(Float64Array::from_iter_values(floats))));
    }
    if has(Columns::Counters) {
        let mut last = 0;
        let counters = (0..rows).map(|_| {
            last += random.integer(1000);
            last
        });
        all.push(("count", Arc::new(Int64Array::from_iter_values(counters))));
    }
    if columns == Columns::Messages {
        let texts = (0..rows).map(|row| {
            let word = random.below(1000);
            format!(
                "{row:08} request {word:04} took {:<75}",
                random.below(1 << 40)
            )
        });
        all.push(("message", Arc::new(StringArray::from_iter_values(texts))));
    }
    RecordBatch::try_from_iter(all).expect("columns of one length")
}

/// Writes a file as a writer does, snappy.
pub(crate) fn write(path: &Path, batch: &RecordBatch, order: Order, row_group_rows: usize) {
    let sorting = SortingColumn {
        column_idx: 0,
        descending: false,
        nulls_first: false,
    };
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(row_group_rows))
        .set_compression(Compression::SNAPPY)
        .set_sorting_columns(matches!(order, Order::Sorted).then(|| vec![sorting]))
        .build();
    let file = File::create(path).expect("an input");
    let mut writer =
        ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("a writer");
    writer.write(batch).expect("rows are written");
    writer.close().expect("the file is ended");
}
