//! INT96 timestamps reach further than nanoseconds in 64 bits, and the decoder lets those wrap
//! around: 9999-12-31 would silently become a day of another year. So each such column is
//! looked at before anything is decoded, and read in microseconds where it must be.

use std::{ops::RangeInclusive, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::{
    arrow::arrow_reader::ArrowReaderMetadata,
    basic::Type as PhysicalType,
    column::reader::{get_column_reader, get_typed_column_reader},
    data_type::{Int96, Int96Type},
    errors::Result as ParquetResult,
    file::metadata::ColumnChunkMetaData,
};

use super::{guard::InputBytes, pages::checked_pages};

/// Far more than any writer puts into a page of such a column.
const PAGE_BYTES_MAX: u64 = 64 << 20;
const RECORDS_AT_ONCE: usize = 8192;
const JULIAN_DAY_OF_EPOCH: i128 = 2_440_588;
const NS_PER_DAY: i128 = 86_400_000_000_000;
const FITS_NS: RangeInclusive<i128> = i64::MIN as i128..=i64::MAX as i128;
const FITS_US: RangeInclusive<i128> = i64::MIN as i128 * 1000..=i64::MAX as i128 * 1000;

/// The schema under which a file is read without any timestamp changing; `None` when that is its own.
pub(super) fn exact_schema(
    bytes: &InputBytes,
    footer: &ArrowReaderMetadata,
) -> Result<Option<SchemaRef>, String> {
    let descr = footer.parquet_schema();
    let mut fields: Vec<Arc<Field>> = footer.schema().fields().iter().cloned().collect();
    let mut changed = false;
    for (leaf, column) in descr.columns().iter().enumerate() {
        if column.physical_type() != PhysicalType::INT96 {
            continue;
        }
        let name = column.path().string();
        let values = scan(bytes, footer, leaf)
            .map_err(|e| format!("column {name:?} cannot be read: {e}"))?;
        if values.fit_ns {
            continue;
        }
        let field = &mut fields[descr.get_column_root_idx(leaf)];
        if !values.fit_us || field.data_type().is_nested() {
            return Err(format!(
                "column {name:?} holds INT96 timestamps outside of the years 1678 to 2261, which \
                 no type holds unchanged; write it as a 64-bit timestamp"
            ));
        }
        let in_us = DataType::Timestamp(TimeUnit::Microsecond, None);
        *field = Arc::new(field.as_ref().clone().with_data_type(in_us));
        changed = true;
    }
    Ok(changed.then(|| Arc::new(Schema::new(fields)) as SchemaRef))
}

/// Which units hold all values of a column.
struct Values {
    fit_ns: bool,
    fit_us: bool,
}

fn scan(bytes: &InputBytes, footer: &ArrowReaderMetadata, leaf: usize) -> ParquetResult<Values> {
    let bytes = Arc::new(bytes.clone().with_page_limit(PAGE_BYTES_MAX));
    let mut found = Values {
        fit_ns: true,
        fit_us: true,
    };
    for group in footer.metadata().row_groups() {
        let rows = usize::try_from(group.num_rows())?;
        scan_chunk(&bytes, group.column(leaf), rows, &mut found)?;
    }
    Ok(found)
}

fn scan_chunk(
    bytes: &Arc<InputBytes>,
    chunk: &ColumnChunkMetaData,
    rows: usize,
    found: &mut Values,
) -> ParquetResult<()> {
    let pages = checked_pages(bytes, chunk, rows, PAGE_BYTES_MAX)?;
    let reader = get_column_reader(chunk.column_descr_ptr(), pages);
    let mut reader = get_typed_column_reader::<Int96Type>(reader);
    let mut values: Vec<Int96> = Vec::new();
    let (mut definitions, mut repetitions) = (Vec::new(), Vec::new());
    loop {
        values.clear();
        definitions.clear();
        repetitions.clear();
        let (records, _, levels) = reader.read_records(
            RECORDS_AT_ONCE,
            Some(&mut definitions),
            Some(&mut repetitions),
            &mut values,
        )?;
        for value in &values {
            let ns = nanoseconds(value);
            found.fit_ns &= FITS_NS.contains(&ns);
            found.fit_us &= FITS_US.contains(&ns) && ns % 1000 == 0;
        }
        if records == 0 && levels == 0 {
            return Ok(());
        }
    }
}

fn nanoseconds(value: &Int96) -> i128 {
    let [low, high, day] = *value.data() else {
        return i128::MAX;
    };
    let of_day = (u64::from(high) << 32 | u64::from(low)).cast_signed();
    (i128::from(day.cast_signed()) - JULIAN_DAY_OF_EPOCH) * NS_PER_DAY + i128::from(of_day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_count_from_noon_of_the_year_4713_before_our_time() {
        let mut value = Int96::new();
        value.set_data(7, 0, 2_440_588);
        assert_eq!(nanoseconds(&value), 7);
        value.set_data(0, 0, 2_440_587);
        assert_eq!(nanoseconds(&value), -NS_PER_DAY);
        // 9999-12-31
        value.set_data(0, 0, 5_373_484);
        assert!(!FITS_NS.contains(&nanoseconds(&value)));
        assert!(FITS_US.contains(&nanoseconds(&value)));
    }
}
