//! Why a merge did not happen.

use std::path::PathBuf;

/// An input that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadInput {
    /// Its place in [`MergeRequest::inputs`](super::MergeRequest::inputs).
    pub index: usize,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// This process or its machine lacked something while it was read, such as open files or memory: the
    /// file may be sound.
    pub is_lack: bool,
}

/// One column with types that cannot be united.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column:?} is {left_type} in {} and {right_type} in {}; {reason}", left_file.display(), right_file.display())]
pub struct TypeConflict {
    /// The column.
    pub column: String,
    /// Type in the first file.
    pub left_type: String,
    /// The first file.
    pub left_file: PathBuf,
    /// Type in the second file.
    pub right_type: String,
    /// The second file.
    pub right_file: PathBuf,
    /// Why they cannot be united.
    pub reason: String,
}

/// Why a merge did not happen. Nothing is left behind: neither output nor scratch.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Some inputs cannot be read; the others may be merged without them.
    #[error("{} of the inputs cannot be read, first {}: {}", .0.len(),
        .0.first().map(|bad| bad.path.display().to_string()).unwrap_or_default(),
        .0.first().map(|bad| bad.reason.as_str()).unwrap_or_default())]
    BadInputs(Vec<BadInput>),
    /// Two files hold types of one column that no type can hold without change.
    #[error(transparent)]
    TypeConflict(Box<TypeConflict>),
    /// A column of the sort order is missing in an input, or cannot be ordered.
    #[error("sort column {column:?} {reason} in {}", file.display())]
    SortColumn {
        /// The column.
        column: String,
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key by which rows are unique leaves a sort column out.
    #[error(
        "dedup.by leaves the sort column {column:?} out, so rows with the same key may lie anywhere; add it to dedup.by"
    )]
    DedupKey {
        /// The sort column.
        column: String,
    },
    /// The merge was asked to stop.
    #[error("the merge was stopped")]
    Cancelled,
    /// Scratch or output could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The output could not be encoded.
    #[error("{}: cannot be written: {reason}", path.display())]
    Encode {
        /// The output.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// An invariant did not hold; nothing was published.
    #[error("{invariant} does not hold for {}: {reason}", output.display())]
    Invariant {
        /// Its name.
        invariant: &'static str,
        /// The output that was thrown away.
        output: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The inputs need more memory than the budget allows, even with scratch.
    #[error(
        "the memory budget of {budget_bytes} bytes is too small: {reason}; raise worker.memory_budget"
    )]
    Budget {
        /// The budget.
        budget_bytes: u64,
        /// What needed more.
        reason: String,
    },
}
