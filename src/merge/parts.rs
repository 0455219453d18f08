//! What runs are made of: inputs, or some of their row groups.

use std::ops::Range;

use arrow::array::ArrayRef;

use super::inputs::Input;

/// Consecutive row groups of one input that are handled together.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Place of the input.
    pub(super) input: usize,
    /// Its row groups.
    pub(super) groups: Range<usize>,
    /// Their rows.
    pub(super) row_count: u64,
    /// Set when this is one row group that may be copied.
    pub(super) copy: Option<Copyable>,
}

/// A row group in the wanted order, without nulls in its key.
#[derive(Debug, Clone)]
pub(super) struct Copyable {
    /// Its last key.
    pub(super) last: i64,
    /// Smallest and largest value of the sort column.
    pub(super) bounds: [ArrayRef; 2],
    /// The same of further columns whose bounds are wanted.
    pub(super) other_bounds: Vec<PlacedBounds>,
}

/// A column's place in the united schema, its smallest and its largest value.
pub(super) type PlacedBounds = (usize, [ArrayRef; 2]);

impl Part {
    /// A whole input.
    pub(super) fn whole(index: usize, input: &Input) -> Self {
        Self {
            input: index,
            groups: 0..usize::MAX,
            row_count: input.row_count,
            copy: None,
        }
    }
}
