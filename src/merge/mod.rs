//! Merges Parquet files into one sorted file.
//!
//! Synchronous: callers run it on threads of their own and stop it through [`MergeControl`].

mod error;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use serde_json::Value;

pub use error::{BadInput, MergeError};

/// What to merge, where to, and how.
#[derive(Debug, Clone)]
pub struct MergeRequest {
    /// The files, in the order that decides between equal rows.
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
    /// Rows in a row group, at most.
    pub row_group_rows: usize,
    /// Memory that the merge may use at once, bytes.
    pub memory_budget_bytes: u64,
    /// Columns whose exact smallest and largest values are reported, where they exist and can be ordered.
    pub bounds_of: Vec<String>,
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
    rows_read: AtomicU64,
    rows_written: AtomicU64,
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

    /// Rows decoded and rows written so far.
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
    /// Rows of the inputs, and, by ROWS-KEPT, of the output.
    pub row_count: u64,
    /// Bytes of the inputs.
    pub input_bytes: u64,
    /// Bytes of the output, on disk.
    pub output_bytes: u64,
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
    /// The file declares the wanted order (`sorting_columns` of every row group) and its statistics agree.
    pub is_sorted: bool,
    /// Bounds of the wanted columns; exact ones from statistics, else read from the column itself.
    pub bounds: Vec<ColumnBounds>,
}
