//! Large inputs in parts of some row groups, so that what goes through scratch is sorted in lots
//! of one size, and what is nearly in order is open only for its own time.

use arrow::datatypes::DataType;
use parquet::file::metadata::RowGroupMetaData;

use super::{
    MergeControl, MergeError, SortColumn,
    footers::{group_keys, key_range},
    inputs::Input,
    parts::Part,
    strategy::InputSummary,
};

/// How inputs are split.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    /// The first sort column and its type, when ranges of keys can be known.
    pub(super) key: Option<(&'a SortColumn, &'a DataType)>,
    /// Decoded bytes and rows that a part should have, at most.
    pub(super) part_bytes: u64,
    pub(super) part_rows: u64,
}

/// Parts, and what is known of each.
type Parts = (Vec<Part>, Vec<InputSummary>);

/// Splits the inputs that must be sorted and are larger than a part should be. Gives `None` when
/// there are none.
pub(super) fn split_large(
    rules: Rules<'_>,
    inputs: &[Input],
    parts: &[Part],
    described: &[InputSummary],
    control: &MergeControl,
) -> Result<Option<Parts>, MergeError> {
    // Whose size is not believed is sorted in pieces of what it turns out to be.
    let is_large = |summary: &InputSummary| {
        !summary.seems_sorted
            && !summary.is_copyable
            && (summary.decoded_bytes > rules.part_bytes || summary.row_count > rules.part_rows)
            && summary.decoded_bytes < u64::MAX
    };
    if !described.iter().any(is_large) {
        return Ok(None);
    }
    let (mut split, mut summaries) = (Vec::new(), Vec::new());
    for (part, summary) in parts.iter().zip(described) {
        if !is_large(summary) {
            split.push(part.clone());
            summaries.push(summary.clone());
            continue;
        }
        control.check()?;
        let footer = inputs[part.input]
            .footer()
            .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
        let groups = footer.metadata().row_groups();
        let end = part.groups.end.min(groups.len());
        let row_bytes = summary.decoded_bytes / summary.row_count.max(1);
        let keys = rules
            .key
            .and_then(|(column, data_type)| group_keys(&footer, column, data_type));
        let nulls_first = rules.key.is_some_and(|(column, _)| column.nulls_first);
        for (groups, row_count) in lots(&groups[..end], part.groups.start, row_bytes, rules) {
            let own = keys.iter().flatten();
            let own = own.filter(|key| groups.contains(&key.index));
            summaries.push(InputSummary {
                row_count,
                decoded_bytes: row_bytes.saturating_mul(row_count),
                // What is not believed of the whole is not believed of a part.
                key_range: summary.key_range.and_then(|_| key_range(own, nulls_first)),
                ..summary.clone()
            });
            split.push(Part {
                input: part.input,
                groups,
                row_count,
                copy: None,
            });
        }
    }
    Ok(Some((split, summaries)))
}

/// Consecutive row groups from `start` on, in lots of about the same number of rows.
fn lots(
    groups: &[RowGroupMetaData],
    start: usize,
    row_bytes: u64,
    rules: Rules<'_>,
) -> Vec<(std::ops::Range<usize>, u64)> {
    let rows = |group: &RowGroupMetaData| u64::try_from(group.num_rows()).unwrap_or(0);
    let all: Vec<u64> = groups.iter().map(rows).collect();
    let rows = rules.part_bytes / row_bytes.max(1);
    split_evenly(&all, start, rows.min(rules.part_rows))
}

/// Ranges of `rows` from `start` on, as few as have about `rows_wanted` each.
fn split_evenly(
    rows: &[u64],
    start: usize,
    rows_wanted: u64,
) -> Vec<(std::ops::Range<usize>, u64)> {
    let total: u64 = rows.iter().skip(start).sum();
    let count = total.div_ceil(rows_wanted.max(1)).max(1);
    let share = total.div_ceil(count);
    let mut found = Vec::new();
    let (mut first, mut own) = (start, 0_u64);
    for (index, rows) in rows.iter().enumerate().skip(start) {
        own += rows;
        if own >= share {
            found.push((first..index + 1, own));
            (first, own) = (index + 1, 0);
        }
    }
    if own > 0 {
        found.push((first..rows.len(), own));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_groups_are_divided_evenly_and_all_of_them() {
        assert_eq!(split_evenly(&[10; 5], 0, 100), [(0..5, 50)]);
        assert_eq!(
            split_evenly(&[10; 6], 0, 25),
            [(0..2, 20), (2..4, 20), (4..6, 20)]
        );
        assert_eq!(split_evenly(&[10; 6], 2, 20), [(2..4, 20), (4..6, 20)]);
        // A row group is never divided.
        assert_eq!(split_evenly(&[100, 1, 1], 0, 10), [(0..1, 100), (1..3, 2)]);
        assert_eq!(split_evenly(&[], 0, 10), []);
    }
}
