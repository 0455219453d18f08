//! What rows and pages take in memory, from footers alone or from what was decoded.

use arrow::{
    array::{Array, ArrayRef, AsArray},
    datatypes::DataType,
};
use parquet::{
    basic::Type as PhysicalType,
    file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData},
    schema::types::Type,
};

use super::texts::{Held, WorkSchema};

/// A page of most writers together with a dictionary.
const USUAL_PAGES_BYTES: u64 = 2 << 20;
/// Statistics of strings this long or longer may be cut off.
const TRUNCATED_FROM_BYTES: usize = 64;

/// Bytes that an array takes. Of texts in views those that it shows, because the pages
/// around are shared with its neighbours.
pub(super) fn array_bytes(array: &ArrayRef) -> u64 {
    let shown = match array.data_type() {
        DataType::Utf8View => array.as_string_view().total_buffer_bytes_used(),
        DataType::BinaryView => array.as_binary_view().total_buffer_bytes_used(),
        // Arrays that were read from scratch share one buffer: each has its own part of it.
        _ => {
            let own = array.to_data().get_slice_memory_size();
            return own.unwrap_or_else(|_| array.get_array_memory_size()) as u64;
        }
    };
    (shown + array.len() * 17) as u64
}

/// Bytes of the pages that a reader of all columns holds at once, estimated.
pub(super) fn pages_bytes(metadata: &ParquetMetaData) -> u64 {
    // DuckDB writes one page for each column of a row group.
    let by_duckdb = metadata
        .file_metadata()
        .created_by()
        .is_some_and(|by| by.starts_with("DuckDB"));
    let limit = if by_duckdb {
        u64::MAX
    } else {
        USUAL_PAGES_BYTES
    };
    let group_bytes = |group: &RowGroupMetaData| {
        let sizes = group
            .columns()
            .iter()
            .map(ColumnChunkMetaData::uncompressed_size);
        sizes
            .map(|size| u64::try_from(size).unwrap_or(0).min(limit))
            .fold(0, u64::saturating_add)
    };
    metadata
        .row_groups()
        .iter()
        .map(group_bytes)
        .max()
        .unwrap_or(0)
}

/// What a decoded row takes in memory, from a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowSize {
    pub(super) bytes: u64,
    /// False when strings hide behind dictionaries whose entries may have any length.
    pub(super) is_certain: bool,
}

/// Estimates the size of a decoded row; `work` says how texts are held.
pub(super) fn row_size(metadata: &ParquetMetaData, work: Option<&WorkSchema>) -> RowSize {
    let rows: u64 = metadata
        .row_groups()
        .iter()
        .map(|group| u64::try_from(group.num_rows()).unwrap_or(0))
        .sum();
    let mut size = RowSize {
        bytes: 0,
        is_certain: true,
    };
    if rows == 0 {
        return RowSize {
            bytes: 1,
            is_certain: true,
        };
    }
    let mut total_bytes = 0_u64;
    for group in metadata.row_groups() {
        for column in group.columns() {
            let held = match (work, column.column_path().parts()) {
                (Some(work), [name]) => work.held_by_name(name),
                _ => &Held::Plain,
            };
            let (bytes, is_certain) = chunk_size(column, held);
            total_bytes = total_bytes.saturating_add(bytes);
            size.is_certain &= is_certain;
        }
    }
    size.bytes = (total_bytes / rows).max(1);
    size
}

/// Decoded bytes of a column chunk, and whether that is more than a guess.
fn chunk_size(column: &ColumnChunkMetaData, held: &Held) -> (u64, bool) {
    let values = u64::try_from(column.num_values()).unwrap_or(0);
    let fixed = |bytes: u64| {
        (
            values.saturating_mul(bytes).saturating_add(values / 8),
            true,
        )
    };
    match column.column_type() {
        PhysicalType::BOOLEAN => fixed(1),
        PhysicalType::INT32 | PhysicalType::FLOAT => fixed(4),
        PhysicalType::INT64 | PhysicalType::INT96 | PhysicalType::DOUBLE => fixed(8),
        PhysicalType::FIXED_LEN_BYTE_ARRAY => {
            let length = match column.column_descr().self_type() {
                Type::PrimitiveType { type_length, .. } => u64::try_from(*type_length).unwrap_or(0),
                Type::GroupType { .. } => 0,
            };
            // Decimals are decoded to at least 16 bytes.
            fixed(length.max(16))
        }
        PhysicalType::BYTE_ARRAY => {
            let around = values.saturating_mul(5);
            let stored = u64::try_from(column.uncompressed_size()).unwrap_or(0);
            match held {
                Held::Plain => {}
                Held::Views => return (values.saturating_mul(17).saturating_add(stored), true),
                Held::Numbers(_) => return fixed(4),
            }
            if let Some(bytes) = column.unencoded_byte_array_data_bytes() {
                return (
                    around.saturating_add(u64::try_from(bytes).unwrap_or(0)),
                    true,
                );
            }
            if column.dictionary_page_offset().is_none() {
                return (around.saturating_add(stored), true);
            }
            let longest = column.statistics().and_then(|statistics| {
                let length = statistics
                    .min_bytes_opt()?
                    .len()
                    .max(statistics.max_bytes_opt()?.len());
                // Writers cut long values off; short ones are what they seem.
                Some((length as u64, length < TRUNCATED_FROM_BYTES))
            });
            let (length, is_certain) = longest.unwrap_or((32, false));
            (
                around.saturating_add(stored.max(values.saturating_mul(length))),
                is_certain,
            )
        }
    }
}
