//! What a merge is asked for, and what it tells.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use serde_json::Value;

use super::MergeError;

/// What to merge, where to, and how.
#[derive(Debug, Clone)]
pub struct MergeRequest {
    /// The files, in the order that decides between equal rows. No link is followed on the way to
    /// them: paths are to be as `canonicalize` gives them, or below such a folder.
    pub inputs: Vec<PathBuf>,
    /// Where the output is written. Must not exist; nobody else may know the name yet.
    pub output: PathBuf,
    /// An existing folder for sorted runs that do not fit into memory. Files made there are removed on every exit.
    pub scratch: PathBuf,
    /// How.
    pub options: MergeOptions,
}

/// How a merge sorts and writes.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeOptions {
    /// The sort order, first column first. Not empty.
    pub order_by: Vec<SortColumn>,
    /// How pages are compressed.
    pub compression: Compression,
    /// How those of some columns are compressed instead. Columns that no input has do no harm, here and below.
    pub column_compression: BTreeMap<String, Compression>,
    /// Columns that get bloom filters, unless they are nested or boolean.
    pub bloom_filter_columns: Vec<String>,
    /// Rows with the same key become one; `None` keeps all rows.
    pub dedup: Option<Dedup>,
    /// Rows in a row group, at most.
    pub row_group_rows: usize,
    /// Memory that the merge may use at once, bytes.
    pub memory_budget_bytes: u64,
    /// Threads that work at once: 1, or 2 for any larger number.
    pub thread_count: usize,
    /// Columns whose exact smallest and largest values are reported, where they exist and can be ordered.
    pub bounds_of: Vec<String>,
}

/// Which rows are the same, and which of them stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dedup {
    /// The key: every sort column, and any others. Nulls are equal to each other, and so are NaN and, -0 and 0.
    pub by: Vec<String>,
    /// The row that stays.
    pub keep: Keep,
}

/// Which of the rows with the same key stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// The first one, in the order of the inputs.
    First,
    /// The last one.
    Last,
    /// The one with the largest value in this column, nulls being smallest and NaN largest; of equal ones the last.
    Max(String),
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("first"),
            Self::Last => f.write_str("last"),
            Self::Max(column) => write!(f, "max({column})"),
        }
    }
}

/// One column of a sort order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortColumn {
    /// The column's name.
    pub name: String,
    /// Largest first.
    pub descending: bool,
    /// Nulls before everything else instead of after.
    pub nulls_first: bool,
}

impl MergeOptions {
    /// How pages of a column, or of the parts of a nested one, are compressed.
    pub(super) fn compression_of(&self, column: &str) -> Compression {
        let own = self.column_compression.get(column);
        own.copied().unwrap_or(self.compression)
    }
}

/// Page compression of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not compressed.
    None,
    /// Snappy.
    Snappy,
    /// LZ4, raw blocks.
    Lz4,
    /// Zstandard at a level from 1 to 22.
    Zstd(i32),
}

/// Stops a merge from outside and tells how far it is.
#[derive(Debug, Default)]
pub struct MergeControl {
    cancelled: AtomicBool,
    pub(super) rows_read: AtomicU64,
    pub(super) rows_written: AtomicU64,
    pub(super) rows_total: AtomicU64,
}

impl MergeControl {
    /// Asks the merge to stop between batches; it then returns [`MergeError::Cancelled`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// An error once the merge is to stop.
    pub(super) fn check(&self) -> Result<(), MergeError> {
        if self.is_cancelled() {
            return Err(MergeError::Cancelled);
        }
        Ok(())
    }

    /// Rows of all inputs; 0 until their footers are read.
    pub fn rows_total(&self) -> u64 {
        self.rows_total.load(Ordering::Relaxed)
    }

    /// Rows read and rows written so far.
    pub fn progress(&self) -> (u64, u64) {
        (
            self.rows_read.load(Ordering::Relaxed),
            self.rows_written.load(Ordering::Relaxed),
        )
    }
}

/// What a finished merge did.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeReport {
    /// Rows of the output; by ROWS-KEPT, with those below as many as the inputs have.
    pub row_count: u64,
    /// Rows that were left out because another one with the same key stays.
    pub collapsed_row_count: u64,
    /// Row groups of the output.
    pub row_group_count: u64,
    /// Bytes of the inputs.
    pub input_bytes: u64,
    /// Bytes of the output, on disk.
    pub output_bytes: u64,
    /// Files, or parts of files, that were read in the order in which they are.
    pub streamed_run_count: u64,
    /// Groups of files that were sorted in memory.
    pub sorted_run_count: u64,
    /// Row groups that were copied undecoded, because their keys overlap no other rows.
    pub copied_row_group_count: u64,
    /// Sorted runs that went through scratch.
    pub spilled_run_count: u64,
    /// For each column of `bounds_of` that has a value: name, smallest, largest.
    pub bounds: Vec<ColumnBounds>,
}

/// Smallest and largest value of one column, nulls and NaN not counted. Integers are exact JSON integers.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnBounds {
    /// The column's name.
    pub column: String,
    /// Smallest value.
    pub min: Value,
    /// Largest value.
    pub max: Value,
}

/// What a file's footer says, without decoding its pages.
#[derive(Debug, Clone, PartialEq)]
pub struct FileSummary {
    /// Rows in the file.
    pub row_count: u64,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// The file declares the wanted order (`sorting_columns` of every row group) and its statistics
    /// agree; and its rows are unique by the wanted key, if any.
    pub is_sorted: bool,
    /// Bounds of the wanted columns; exact ones from statistics, else read from the column itself.
    pub bounds: Vec<ColumnBounds>,
}
