//! How the output is written: compression, encodings, dictionaries, pages, statistics.

use std::path::Path;

use parquet::{
    arrow::add_encoded_arrow_schema_to_metadata,
    basic::{Compression as ParquetCompression, Encoding, Type as PhysicalType, ZstdLevel},
    errors::ParquetError,
    file::{
        metadata::{KeyValue, SortingColumn},
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnDescriptor,
};

use super::{
    Compression, MergeError, MergeOptions,
    context::Shares,
    dedup,
    flat::{self, FlatColumn},
    schema::{UnitedSchema, VERSION_KEY},
    texts::WorkSchema,
    writer::encode_error,
};

/// A dictionary of numbers that grows beyond this does not pay: about 16,000 values.
const NUMBER_DICTIONARY_BYTES_MAX: usize = 128 << 10;
/// A dictionary of texts that grows beyond this does not pay.
const TEXT_DICTIONARY_BYTES_MAX: usize = 512 << 10;
/// A page.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// Neither pages nor dictionaries get smaller than this.
const COLUMN_BYTES_MIN: usize = 16 << 10;
/// A bloom filter says yes in vain for one in a hundred values that are not there.
const BLOOM_FILTER_ERROR_RATE: f64 = 0.01;
/// Distinct values that a bloom filter has room for, at most: half a megabyte. It shrinks to what is there.
const BLOOM_FILTER_VALUES_MAX: usize = 1 << 18;
/// The compression as the format names it.
pub(super) fn parquet_compression(
    compression: Compression,
) -> Result<ParquetCompression, ParquetError> {
    Ok(match compression {
        Compression::None => ParquetCompression::UNCOMPRESSED,
        Compression::Snappy => ParquetCompression::SNAPPY,
        Compression::Lz4 => ParquetCompression::LZ4_RAW,
        Compression::Zstd(level) => ParquetCompression::ZSTD(ZstdLevel::try_new(level)?),
    })
}

/// Whether a column is to have a bloom filter.
pub(super) fn has_bloom_filter(leaf: &ColumnDescriptor, options: &MergeOptions) -> bool {
    matches!(leaf.path().parts(), [name] if options.bloom_filter_columns.contains(name))
        && leaf.physical_type() != PhysicalType::BOOLEAN
}

/// Our own writers for the columns that they can write.
pub(super) fn flat_columns(
    united: &UnitedSchema,
    work: &WorkSchema,
    options: &MergeOptions,
    properties: &WriterProperties,
    shares: &Shares,
) -> Vec<Option<FlatColumn>> {
    let limits = flat::Limits::new(
        column_bytes(united, shares.row_group_bytes),
        options.row_group_rows,
        usize::try_from(shares.row_group_bytes / 4).unwrap_or(usize::MAX),
    );
    let first_key = options.order_by.first().map(|column| column.name.as_str());
    united
        .schema
        .fields()
        .iter()
        .enumerate()
        .map(|(index, field)| {
            let descr = united
                .parquet
                .columns()
                .iter()
                .find(|leaf| leaf.path().parts() == [field.name().as_str()])?;
            if !FlatColumn::supports(descr, field.data_type(), properties) {
                return None;
            }
            FlatColumn::new(
                descr,
                field.data_type(),
                properties,
                &limits,
                work.interner(index),
                // Sorted integers have small steps.
                first_key == Some(field.name()) && !field.data_type().is_floating(),
            )
        })
        .collect()
}

/// Each column has a page and a dictionary in the making: many columns get smaller ones.
fn column_bytes(united: &UnitedSchema, row_group_bytes: u64) -> usize {
    let leaf_count = united.parquet.num_columns().max(1) as u64;
    usize::try_from(row_group_bytes / 4 / leaf_count)
        .unwrap_or(usize::MAX)
        .max(COLUMN_BYTES_MIN)
}

/// What `parquet` is told of the output.
pub(super) fn properties(
    path: &Path,
    united: &UnitedSchema,
    options: &MergeOptions,
    row_group_bytes: u64,
) -> Result<WriterProperties, MergeError> {
    let compression =
        parquet_compression(options.compression).map_err(|e| encode_error(path, &e))?;
    let sorting: Vec<SortingColumn> = options
        .order_by
        .iter()
        .map_while(|column| {
            let leaf = united
                .parquet
                .columns()
                .iter()
                .position(|leaf| leaf.path().parts() == [column.name.as_str()])?;
            Some(SortingColumn {
                column_idx: i32::try_from(leaf).ok()?,
                descending: column.descending,
                nulls_first: column.nulls_first,
            })
        })
        .collect();
    let mut key_values = united.key_values.clone();
    key_values.push(KeyValue::new(
        VERSION_KEY.to_owned(),
        env!("CARGO_PKG_VERSION").to_owned(),
    ));
    key_values.extend(options.dedup.as_ref().map(dedup::note));
    let column_bytes = column_bytes(united, row_group_bytes);
    let mut builder = WriterProperties::builder()
        .set_created_by(concat!("gigamerge version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(compression)
        .set_data_page_size_limit(PAGE_BYTES_MAX.min(column_bytes))
        .set_dictionary_page_size_limit(TEXT_DICTIONARY_BYTES_MAX.min(column_bytes))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_sorting_columns((!sorting.is_empty()).then_some(sorting))
        .set_key_value_metadata(Some(key_values));
    for leaf in united.parquet.columns() {
        let column = leaf.path().parts().first().map_or("", String::as_str);
        let own = options.compression_of(column);
        if own != options.compression {
            let own = parquet_compression(own).map_err(|e| encode_error(path, &e))?;
            builder = builder.set_column_compression(leaf.path().clone(), own);
        }
        if has_bloom_filter(leaf, options) {
            let values = options.row_group_rows.min(BLOOM_FILTER_VALUES_MAX);
            builder = builder
                .set_column_bloom_filter_fpp(leaf.path().clone(), BLOOM_FILTER_ERROR_RATE)
                .set_column_bloom_filter_max_ndv(leaf.path().clone(), values as u64);
        }
        if leaf.physical_type() != PhysicalType::BYTE_ARRAY {
            builder = builder.set_column_dictionary_page_size_limit(
                leaf.path().clone(),
                NUMBER_DICTIONARY_BYTES_MAX.min(column_bytes),
            );
        }
        let is_first_key = options
            .order_by
            .first()
            .is_some_and(|first| leaf.path().parts() == [first.name.as_str()]);
        if is_first_key
            && matches!(
                leaf.physical_type(),
                PhysicalType::INT32 | PhysicalType::INT64
            )
        {
            // Sorted integers have small steps.
            builder = builder
                .set_column_dictionary_enabled(leaf.path().clone(), false)
                .set_column_encoding(leaf.path().clone(), Encoding::DELTA_BINARY_PACKED);
        }
    }
    let mut properties = builder.build();
    if let Some(hint) = &united.hint {
        add_encoded_arrow_schema_to_metadata(hint, &mut properties);
    }
    Ok(properties)
}
