//! Footers on their way into memory. Whatever they claim is compared with the file's size and the
//! budget first.

use std::{collections::HashSet, sync::Arc};

use parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
    basic::Type as PhysicalType,
    errors::ParquetError,
    file::{
        metadata::{ParquetMetaData, RowGroupMetaData},
        reader::{ChunkReader, Length},
    },
    schema::types::SchemaDescriptor,
};

use super::{footer_shape::footer_shape, guard::InputBytes, int96, intervals, thrift::NESTING_MAX};

/// Footer length and magic.
const TAIL_BYTES: u64 = 8;
/// The magic of a file whose footer is encrypted.
const ENCRYPTED_MAGIC: [u8; 4] = *b"PARE";
/// More rows for each byte than any encoding reaches.
const ROWS_PER_BYTE_MAX: u64 = 1 << 20;
/// A footer of one table has a few hundred columns; beyond this it is an attack or an accident.
const COLUMN_COUNT_MAX: usize = 20_000;

/// Reads a footer that may take so much memory.
pub(super) fn read_footer(
    bytes: &InputBytes,
    limit_bytes: u64,
) -> Result<ArrowReaderMetadata, String> {
    check_shape(bytes, limit_bytes)?;
    // Types come from Parquet alone: a hint must not turn one column of two files into two types.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let unreadable = |e: ParquetError| format!("its footer cannot be read: {e}");
    let footer = ArrowReaderMetadata::load(bytes, options.clone()).map_err(unreadable)?;
    let footer = match intervals::as_bytes(footer.metadata()).map_err(unreadable)? {
        None => footer,
        Some(metadata) => {
            ArrowReaderMetadata::try_new(Arc::new(metadata), options.clone()).map_err(unreadable)?
        }
    };
    let columns = footer.parquet_schema().columns();
    if !columns
        .iter()
        .any(|c| c.physical_type() == PhysicalType::INT96)
    {
        return Ok(footer);
    }
    // Columns are read here, so what is read has to be possible.
    check_footer(footer.metadata(), bytes.len())?;
    match int96::exact_schema(bytes, &footer)? {
        None => Ok(footer),
        Some(schema) => {
            let metadata = Arc::clone(footer.metadata());
            ArrowReaderMetadata::try_new(metadata, options.with_schema(schema)).map_err(unreadable)
        }
    }
}

/// Refuses footers that would take too much memory, or whose schema is too deep to be walked,
/// before the decoder sees them.
fn check_shape(bytes: &InputBytes, limit_bytes: u64) -> Result<(), String> {
    let tail_start = bytes.len().saturating_sub(TAIL_BYTES);
    let tail = bytes.get_bytes(tail_start, 8).map_err(|e| e.to_string())?;
    let Some((length, magic)) = tail.split_first_chunk::<4>() else {
        return Err("it has no footer".into());
    };
    if magic == ENCRYPTED_MAGIC {
        return Err("it is encrypted; it can only be merged by who has its keys".into());
    }
    if magic != b"PAR1" {
        return Err(
            "it does not end as a Parquet file does (PAR1); it was cut off, or is none".into(),
        );
    }
    let length_bytes = u64::from(u32::from_le_bytes(*length));
    let Some(start) = tail_start.checked_sub(length_bytes) else {
        return Err(format!(
            "it claims a footer of {length_bytes} bytes, more than the file has"
        ));
    };
    let too_large = |held_bytes: u64| {
        format!(
            "its footer takes {held_bytes} bytes of memory, more than the {limit_bytes} bytes that \
             the memory budget leaves for one; if the file is sound, raise worker.memory_budget"
        )
    };
    if length_bytes > limit_bytes {
        return Err(too_large(length_bytes));
    }
    let length = usize::try_from(length_bytes).map_err(|e| e.to_string())?;
    let footer = bytes.get_bytes(start, length).map_err(|e| e.to_string())?;
    let shape = footer_shape(&footer).ok_or("its footer is damaged")?;
    if shape.depth > NESTING_MAX {
        return Err(format!(
            "its schema is nested {} levels deep; {NESTING_MAX} are supported",
            shape.depth
        ));
    }
    if shape.has_secrets {
        return Err(
            "columns of it are encrypted; it can only be merged by who has their keys".into(),
        );
    }
    let held_bytes = shape.held_bytes.saturating_add(length_bytes);
    if held_bytes > limit_bytes {
        return Err(too_large(held_bytes));
    }
    Ok(())
}

/// The types as the writer gave them, whatever was changed for the decoder.
pub(super) fn own_schema(metadata: &ParquetMetaData) -> Arc<SchemaDescriptor> {
    metadata.row_groups().first().map_or_else(
        || metadata.file_metadata().schema_descr_ptr(),
        RowGroupMetaData::schema_descr_ptr,
    )
}

/// The row count, when everything the footer claims is possible.
pub(super) fn check_footer(metadata: &ParquetMetaData, size_bytes: u64) -> Result<u64, String> {
    let descr = metadata.file_metadata().schema_descr();
    if descr.num_columns() > COLUMN_COUNT_MAX {
        return Err(format!(
            "it claims {} columns; {COLUMN_COUNT_MAX} are supported",
            descr.num_columns()
        ));
    }
    if descr.num_columns() == 0 {
        return Err("it has no columns".into());
    }
    let mut names = HashSet::new();
    for field in descr.root_schema().get_fields() {
        if !names.insert(field.name()) {
            return Err(format!("it has two columns named {:?}", field.name()));
        }
    }
    let mut row_count = 0_u64;
    for group in metadata.row_groups() {
        let rows = u64::try_from(group.num_rows())
            .map_err(|_| "a row group claims a negative number of rows")?;
        row_count = row_count
            .checked_add(rows)
            .ok_or("it claims more rows than can be counted")?;
        if group.columns().len() != descr.num_columns() {
            return Err("a row group lacks columns".into());
        }
        for column in group.columns() {
            if column.uncompressed_size() < 0 || column.num_values() < 0 {
                return Err(format!(
                    "column {:?} claims a negative size",
                    column.column_path().string()
                ));
            }
            let first = column
                .dictionary_page_offset()
                .unwrap_or(column.data_page_offset());
            let first =
                u64::try_from(first).map_err(|_| "a column chunk starts before the file")?;
            let length = u64::try_from(column.compressed_size())
                .map_err(|_| "a column chunk claims a negative size")?;
            if first.checked_add(length).is_none_or(|end| end > size_bytes) {
                return Err(format!(
                    "column {:?} reaches beyond the end of the file",
                    column.column_path().string()
                ));
            }
        }
    }
    if i64::try_from(row_count) != Ok(metadata.file_metadata().num_rows()) {
        return Err(format!(
            "it claims {} rows, its row groups {row_count}",
            metadata.file_metadata().num_rows()
        ));
    }
    if row_count > size_bytes.saturating_mul(ROWS_PER_BYTE_MAX) {
        return Err(format!("it claims {row_count} rows in {size_bytes} bytes"));
    }
    Ok(row_count)
}
