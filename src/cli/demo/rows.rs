//! Counts rows and sums a hash of each, so that two sets of files can be compared whatever their order.

use std::{
    error::Error,
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type, Int64Type},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::DemoError;

/// A multiset of rows, as far as a sum can tell. A missing column counts like a null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct RowTally {
    pub(super) rows: u64,
    hash_sum: u64,
}

impl RowTally {
    pub(super) fn add(&mut self, batch: &RecordBatch) -> Result<(), Box<dyn Error>> {
        let mut hashes = vec![0_u64; batch.num_rows()];
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            add_column(&mut hashes, field.name(), column)?;
        }
        self.rows += hashes.len() as u64;
        self.hash_sum = hashes
            .into_iter()
            .fold(self.hash_sum, |sum, hash| sum.wrapping_add(mix(hash)));
        Ok(())
    }
}

/// A plain sum of sums would not notice values that swapped rows.
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

fn add_column(row_hashes: &mut [u64], name: &str, column: &ArrayRef) -> Result<(), Box<dyn Error>> {
    let mut put = |row: usize, value: &dyn Fn(&mut DefaultHasher)| {
        if column.is_valid(row) {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            value(&mut hasher);
            row_hashes[row] = row_hashes[row].wrapping_add(hasher.finish());
        }
    };
    match column.data_type() {
        DataType::Int64 => {
            let values = column.as_primitive::<Int64Type>();
            (0..values.len()).for_each(|row| put(row, &|hasher| values.value(row).hash(hasher)));
        }
        DataType::Float64 => {
            let values = column.as_primitive::<Float64Type>();
            (0..values.len())
                .for_each(|row| put(row, &|hasher| values.value(row).to_bits().hash(hasher)));
        }
        DataType::Utf8 => {
            let values = column.as_string::<i32>();
            (0..values.len()).for_each(|row| put(row, &|hasher| values.value(row).hash(hasher)));
        }
        other => return Err(format!("column {name:?} has an unexpected type: {other}").into()),
    }
    Ok(())
}

/// Adds a file's rows to `tally`; says whether they stand in order of time.
pub(super) fn tally_file(path: &Path, tally: &mut RowTally) -> Result<bool, DemoError> {
    read(path, tally).map_err(DemoError::file(path))
}

fn read(path: &Path, tally: &mut RowTally) -> Result<bool, Box<dyn Error>> {
    let mut last = i64::MIN;
    let mut is_sorted = true;
    for batch in ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?.build()? {
        let batch = batch?;
        tally.add(&batch)?;
        let times = batch
            .column_by_name("__timestamp")
            .ok_or("no column __timestamp")?;
        for time in times.as_primitive::<Int64Type>().values() {
            is_sorted &= last <= *time;
            last = *time;
        }
    }
    Ok(is_sorted)
}
