//! Inputs that are nearly in order: no row is far from its place, as in files of whoever writes
//! rows as they arrive. Each of their row groups is sorted by itself when its turn comes, so
//! that few of them are in memory, and those while they are in the processor's cache.

use super::{
    MergeError, SortColumn,
    footers::{self, GroupKeys},
    inputs::Input,
    parts::Part,
    strategy::InputSummary,
};
use arrow::datatypes::DataType;

/// With fewer row groups an input is sorted as a whole.
const GROUPS_MIN: usize = 8;
/// Row groups with fewer rows are not worth opening a file for.
const GROUP_ROWS_MIN: u64 = 2048;
/// Of an input's row groups, no more than this part may be open together.
const OPEN_PART_MAX: usize = 3;

/// Cuts inputs that are nearly in order into their row groups; the other parts stay as they are.
pub(super) fn cut(
    inputs: &[Input],
    (column, key_type): (&SortColumn, &DataType),
    parts: Vec<Part>,
    described: Vec<InputSummary>,
) -> Result<(Vec<Part>, Vec<InputSummary>), MergeError> {
    let mut cut = (Vec::with_capacity(parts.len()), Vec::new());
    for (part, summary) in parts.into_iter().zip(described) {
        let is_whole = part.groups.end == usize::MAX;
        // Whose footer lied has no range any more.
        let is_wanted = is_whole && !summary.seems_sorted && summary.key_range.is_some();
        let is_large = summary.row_count >= GROUPS_MIN as u64 * GROUP_ROWS_MIN;
        let groups = if is_wanted && is_large {
            footers::keys_of(&inputs[part.input], column, key_type)?
        } else {
            None
        };
        let Some(groups) = groups.filter(|groups| are_nearly_sorted(groups, summary.row_count))
        else {
            cut.0.push(part);
            cut.1.push(summary);
            continue;
        };
        let row_bytes = summary.decoded_bytes / summary.row_count.max(1);
        for group in groups {
            cut.0.push(Part {
                groups: group.index..group.index + 1,
                row_count: group.row_count,
                ..part.clone()
            });
            cut.1.push(InputSummary {
                row_count: group.row_count,
                decoded_bytes: row_bytes.saturating_mul(group.row_count),
                key_range: Some((group.first, group.last)),
                ..summary.clone()
            });
        }
    }
    Ok(cut)
}

/// Whether only few of an input's row groups overlap anywhere.
fn are_nearly_sorted(groups: &[GroupKeys], row_count: u64) -> bool {
    let count = groups.len();
    if count < GROUPS_MIN
        || row_count / (count as u64) < GROUP_ROWS_MIN
        || groups.iter().any(|group| group.may_have_nulls)
    {
        return false;
    }
    // What begins at a key does so before others end there.
    let starts = groups.iter().map(|group| (group.first, false));
    let ends = groups.iter().map(|group| (group.last, true));
    let mut changes: Vec<(i64, bool)> = starts.chain(ends).collect();
    changes.sort_unstable();
    let mut open = 0;
    changes.into_iter().all(|(_, ends)| {
        open = if ends { open - 1 } else { open + 1 };
        open * OPEN_PART_MAX <= count
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    fn groups(ranges: impl IntoIterator<Item = (i64, i64)>) -> Vec<GroupKeys> {
        let bound = |key| -> ArrayRef { Arc::new(Int64Array::from(vec![key])) };
        let groups = ranges.into_iter().enumerate();
        groups
            .map(|(index, (first, last))| GroupKeys {
                index,
                row_count: 8124,
                first,
                last,
                may_have_nulls: false,
                bounds: [bound(first), bound(last)],
            })
            .collect()
    }

    fn is_cut(groups: &[GroupKeys]) -> bool {
        are_nearly_sorted(groups, 8124 * groups.len() as u64)
    }

    #[test]
    fn only_inputs_whose_row_groups_hardly_overlap_are_cut() {
        assert!(is_cut(&groups((0..9).map(|i| (i * 10, i * 10 + 25)))));
        assert!(!is_cut(&groups((0..9).map(|i| (i * 10, i * 10 + 35)))));
        assert!(!is_cut(&groups((0..9).map(|_| (0, 100)))));
        assert!(!is_cut(&groups((0..7).map(|i| (i * 10, i * 10)))));
    }

    #[test]
    fn nulls_and_tiny_row_groups_are_sorted_with_the_whole_input() {
        let mut some = groups((0..20).map(|i| (i * 10, i * 10 + 15)));
        assert!(!are_nearly_sorted(&some, 20 * 2000));
        some[3].may_have_nulls = true;
        assert!(!is_cut(&some));
    }
}
