//! What footers say about rows without decoding them: order, ranges, sizes.

use arrow::{
    array::{Array, ArrayRef, UInt64Array},
    datatypes::DataType,
};
use parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, statistics::StatisticsConverter},
    file::metadata::{ParquetMetaData, RowGroupMetaData},
};

use super::{
    MergeError, SortColumn,
    bounds::BoundsOf,
    context::Shares,
    decode::DecodeLimits,
    inputs::Input,
    keys::{has_integer_order, ordered_integers},
    scan::scan_column,
    sizes::{pages_bytes, row_size},
    strategy::InputSummary,
    texts::WorkSchema,
    widen,
};

/// Statistics of one column for each row group.
struct GroupRanges {
    min: ArrayRef,
    max: ArrayRef,
    null_counts: UInt64Array,
    is_exact: bool,
    is_deprecated: bool,
}

fn group_ranges(footer: &ArrowReaderMetadata, column: &str) -> Option<GroupRanges> {
    let metadata = footer.metadata();
    let converter = StatisticsConverter::try_new(column, footer.schema(), footer.parquet_schema())
        .ok()?
        .with_missing_null_counts_as_zero(false);
    let leaf = converter.parquet_column_index()?;
    let groups = || metadata.row_groups().iter();
    let all_true = |flags: arrow::array::BooleanArray| flags.iter().all(|flag| flag == Some(true));
    let statistics = |group: &RowGroupMetaData| {
        group
            .column(leaf)
            .statistics()
            .is_some_and(parquet::file::statistics::Statistics::is_min_max_deprecated)
    };
    Some(GroupRanges {
        min: converter.row_group_mins(groups()).ok()?,
        max: converter.row_group_maxes(groups()).ok()?,
        null_counts: converter.row_group_null_counts(groups()).ok()?,
        is_exact: converter
            .row_group_is_min_value_exact(groups())
            .is_ok_and(all_true)
            && converter
                .row_group_is_max_value_exact(groups())
                .is_ok_and(all_true),
        is_deprecated: groups().any(statistics),
    })
}

/// First and last key of one row group, and whether nulls may be in it.
pub(super) struct GroupKeys {
    /// Its place in the file.
    pub(super) index: usize,
    pub(super) row_count: u64,
    pub(super) first: i64,
    pub(super) last: i64,
    pub(super) may_have_nulls: bool,
    /// Smallest and largest value.
    pub(super) bounds: [ArrayRef; 2],
}

/// As [`group_keys`], of an input whose footer may have to be read again.
pub(super) fn keys_of(
    input: &Input,
    column: &SortColumn,
    data_type: &DataType,
) -> Result<Option<Vec<GroupKeys>>, MergeError> {
    let footer = input
        .footer()
        .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
    Ok(group_keys(&footer, column, data_type))
}

/// Key ranges of the row groups that hold rows; `None` where statistics are missing or a
/// type's statistics cannot be relied on (floats leave NaN out).
pub(super) fn group_keys(
    footer: &ArrowReaderMetadata,
    column: &SortColumn,
    data_type: &DataType,
) -> Option<Vec<GroupKeys>> {
    if !has_integer_order(data_type) || data_type.is_floating() {
        return None;
    }
    let ranges = group_ranges(footer, &column.name)?;
    if ranges.is_deprecated && ranges.min.data_type().is_unsigned_integer() {
        return None;
    }
    let keys = |values: &ArrayRef| {
        ordered_integers(&widen::cast(values, data_type).ok()?, column.descending)
    };
    let (low, high) = (keys(&ranges.min)?, keys(&ranges.max)?);
    let mut groups = Vec::new();
    for (index, group) in footer.metadata().row_groups().iter().enumerate() {
        if group.num_rows() == 0 {
            continue;
        }
        if ranges.min.is_null(index) || ranges.max.is_null(index) {
            return None;
        }
        let (first, last) = if column.descending {
            (high[index], low[index])
        } else {
            (low[index], high[index])
        };
        let may_have_nulls =
            ranges.null_counts.is_null(index) || ranges.null_counts.value(index) > 0;
        groups.push(GroupKeys {
            index,
            row_count: u64::try_from(group.num_rows()).unwrap_or(0),
            first,
            last,
            may_have_nulls,
            bounds: [ranges.min.slice(index, 1), ranges.max.slice(index, 1)],
        });
    }
    Some(groups)
}

/// First and last key of some row groups, nulls included.
pub(super) fn key_range<'a>(
    groups: impl Iterator<Item = &'a GroupKeys> + Clone,
    nulls_first: bool,
) -> Option<(i64, i64)> {
    let has_nulls = groups.clone().any(|group| group.may_have_nulls);
    let first = groups.clone().map(|group| group.first).min()?;
    let last = groups.map(|group| group.last).max()?;
    match (has_nulls, nulls_first) {
        (false, _) => Some((first, last)),
        (true, false) => Some((first, i64::MAX)),
        (true, true) => None,
    }
}

/// Describes an input for the choice of a strategy.
pub(super) fn describe(
    input: &Input,
    order_by: &[SortColumn],
    key_type: Option<&DataType>,
    keys_are_integers: bool,
    shares: &Shares,
    work: &WorkSchema,
) -> Result<InputSummary, MergeError> {
    let footer = input
        .footer()
        .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
    let metadata = footer.metadata();
    // Sorting takes 56 bytes for each row besides; wider types and partly filled buffers some more.
    let size = row_size(metadata, Some(work));
    let margin_bytes = if size.is_certain {
        size.bytes / 16
    } else {
        size.bytes / 4
    };
    let row_bytes = size.bytes.saturating_add(margin_bytes + 56);
    let groups = order_by
        .first()
        .zip(key_type)
        .and_then(|(column, data_type)| group_keys(&footer, column, data_type));
    let nulls_first = order_by.first().is_some_and(|column| column.nulls_first);
    let key_range = groups
        .as_ref()
        .filter(|_| keys_are_integers)
        .and_then(|groups| key_range(groups.iter(), nulls_first));
    let follow = groups
        .as_ref()
        .is_some_and(|groups| groups.len() > 1 && follow_one_another(groups, nulls_first));
    Ok(InputSummary {
        row_count: input.row_count,
        decoded_bytes: input.row_count.saturating_mul(row_bytes),
        stream_bytes: pages_bytes(metadata).saturating_add(3 * shares.stream_batch_bytes),
        seems_sorted: follow || declares_order(metadata, order_by) && input.row_count > 0,
        key_range,
        is_copyable: false,
    })
}

/// Bytes that a row takes in the pages of a file, not compressed.
pub(super) fn stored_row_bytes(metadata: &ParquetMetaData) -> u64 {
    let groups = metadata.row_groups().iter();
    let (rows, bytes) = groups.fold((0_u64, 0_u64), |(rows, bytes), group| {
        let number = |value: i64| u64::try_from(value).unwrap_or(0);
        let chunks = group.columns().iter();
        let chunks = chunks.map(|chunk| number(chunk.uncompressed_size()));
        (
            rows.saturating_add(number(group.num_rows())),
            chunks.fold(bytes, u64::saturating_add),
        )
    });
    bytes / rows.max(1)
}

fn follow_one_another(groups: &[GroupKeys], nulls_first: bool) -> bool {
    groups.windows(2).all(|pair| {
        let nulls_between = if nulls_first {
            pair[1].may_have_nulls
        } else {
            pair[0].may_have_nulls
        };
        pair[0].last <= pair[1].first && !nulls_between
    })
}

/// Whether every row group declares an order that begins with the wanted one.
pub(super) fn declares_order(metadata: &ParquetMetaData, order_by: &[SortColumn]) -> bool {
    let descr = metadata.file_metadata().schema_descr();
    metadata.row_groups().iter().all(|group| {
        let declared = group.sorting_columns().map_or(&[][..], Vec::as_slice);
        declared.len() >= order_by.len()
            && declared.iter().zip(order_by).all(|(declared, wanted)| {
                let leaf = usize::try_from(declared.column_idx)
                    .ok()
                    .filter(|&leaf| leaf < descr.num_columns());
                leaf.is_some_and(|leaf| descr.column(leaf).path().parts() == [wanted.name.as_str()])
                    && declared.descending == wanted.descending
                    && declared.nulls_first == wanted.nulls_first
            })
    })
}

/// Whether we wrote a file; every row of it was compared then.
pub(super) fn is_by_us(footer: &ArrowReaderMetadata) -> bool {
    let created_by = footer.metadata().file_metadata().created_by();
    created_by.is_some_and(|by| by.starts_with("gigamerge version "))
}

/// Whether a file declares the wanted order and its statistics agree.
pub(super) fn is_sorted(
    input: &Input,
    footer: &ArrowReaderMetadata,
    order_by: &[SortColumn],
) -> bool {
    let Some(first) = order_by.first() else {
        return false;
    };
    let Ok(field) = input.schema.field_with_name(&first.name) else {
        return false;
    };
    let groups_with_rows = footer
        .metadata()
        .row_groups()
        .iter()
        .filter(|group| group.num_rows() > 0)
        .count();
    declares_order(footer.metadata(), order_by)
        && (groups_with_rows < 2
            || group_keys(footer, first, field.data_type())
                .is_some_and(|groups| follow_one_another(&groups, first.nulls_first)))
}

/// Smallest and largest integer of a column; `None` when it holds nothing but nulls.
pub(super) fn integer_range(
    input: &Input,
    column: &str,
    limits: DecodeLimits,
) -> Result<Option<(i128, i128)>, MergeError> {
    let footer = input
        .footer()
        .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
    Ok(column_bounds(input, &footer, column, limits)?.integers())
}

/// Exact bounds of a column: from statistics where they are complete and exact, else from its values.
pub(super) fn column_bounds(
    input: &Input,
    footer: &ArrowReaderMetadata,
    column: &str,
    limits: DecodeLimits,
) -> Result<BoundsOf, MergeError> {
    if let Some(bounds) = statistics_bounds(footer, column) {
        return Ok(bounds);
    }
    let mut bounds = BoundsOf::default();
    scan_column(input, column, limits, |array| {
        bounds.update(array);
        Ok(())
    })?;
    Ok(bounds)
}

/// Smallest and largest value of a column in each row group, where statistics are exact; both
/// null when it holds nothing but nulls.
pub(super) fn exact_bounds(
    footer: &ArrowReaderMetadata,
    column: &str,
) -> Vec<Option<[ArrayRef; 2]>> {
    let groups = footer.metadata().row_groups().iter().enumerate();
    let ranges = exact_ranges(footer, column);
    let bounds = |(index, group): (usize, &RowGroupMetaData)| {
        let ranges = ranges.as_ref()?;
        is_known(ranges, group, index)
            .then(|| [ranges.min.slice(index, 1), ranges.max.slice(index, 1)])
    };
    groups.map(bounds).collect()
}

fn statistics_bounds(footer: &ArrowReaderMetadata, column: &str) -> Option<BoundsOf> {
    let ranges = exact_ranges(footer, column)?;
    let groups = footer.metadata().row_groups().iter().enumerate();
    for (index, group) in groups {
        if !is_known(&ranges, group, index) {
            return None;
        }
    }
    let mut bounds = BoundsOf::default();
    (bounds.update(&ranges.min) && bounds.update(&ranges.max)).then_some(bounds)
}

/// Whether statistics know the values of a row group: its bounds, or that there are none.
fn is_known(ranges: &GroupRanges, group: &RowGroupMetaData, index: usize) -> bool {
    let only_nulls = !ranges.null_counts.is_null(index)
        && i64::try_from(ranges.null_counts.value(index)) == Ok(group.num_rows());
    !ranges.min.is_null(index) && !ranges.max.is_null(index) || only_nulls
}

/// Statistics of a column whose smallest and largest values are not cut off.
fn exact_ranges(footer: &ArrowReaderMetadata, column: &str) -> Option<GroupRanges> {
    let ranges = group_ranges(footer, column)?;
    let data_type = ranges.min.data_type();
    // Fixed-width values are never cut off, though not every writer says so.
    let is_whole =
        data_type.is_integer() || data_type.is_temporal() || *data_type == DataType::Boolean;
    if ranges.is_deprecated && data_type.is_unsigned_integer()
        || !(is_whole || ranges.is_exact)
        || data_type.is_floating()
    {
        return None;
    }
    Some(ranges)
}
