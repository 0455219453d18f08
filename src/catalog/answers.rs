//! What a [`Catalog`](super::Catalog) is asked and what it answers.

use std::time::Duration;

use crate::model::{
    DataPath, IndexEntry, Iteration, LayerName, MergeQueue, SetAside, TableRef, WriterId,
};

/// Which entries of a table are wanted.
#[derive(Debug, Clone, Default)]
pub struct EntryFilter {
    /// Only files that hold times at or after this, nanoseconds.
    pub after_ns: Option<i64>,
    /// Only files that hold times at or before this, nanoseconds.
    pub before_ns: Option<i64>,
    /// Only this partition or those below it.
    pub folder: Option<String>,
    /// Only this iteration.
    pub iteration: Option<Iteration>,
}

impl EntryFilter {
    /// Whether an entry is wanted; edges are inclusive.
    pub fn matches(&self, entry: &IndexEntry) -> bool {
        self.after_ns.is_none_or(|after| entry.max_time_ns >= after)
            && self
                .before_ns
                .is_none_or(|before| entry.min_time_ns <= before)
            && self
                .iteration
                .is_none_or(|iteration| entry.path.iteration() == iteration)
            && self.folder.as_ref().is_none_or(|folder| {
                let folder = folder.trim_matches('/');
                folder.is_empty()
                    || entry
                        .path
                        .as_str()
                        .strip_prefix(folder)
                        .is_some_and(|rest| rest.starts_with('/'))
            })
    }
}

/// What a finished merge asks the catalog to record, all or nothing.
#[derive(Debug, Clone)]
pub struct MergeCommit {
    /// The new file; `None` when nothing was left to merge.
    pub output: Option<IndexEntry>,
    /// Inputs whose rows are in `output`: they leave the index and are deleted after `grace`.
    pub sources: Vec<DataPath>,
    /// Inputs that could not be read: they stay in the index.
    pub set_aside: Vec<SetAside>,
    /// How long readers may still open the sources.
    pub grace: Duration,
}

/// What a finished move asks the catalog to record, all or nothing.
#[derive(Debug, Clone)]
pub struct MoveCommit {
    /// The layer and the name of the copy; `None` when the file expires, which a catalog allows in
    /// a last layer whose time is over for the file only.
    pub to: Option<(LayerName, DataPath)>,
    /// How long readers may still open the bytes in the old layer.
    pub grace: Duration,
}

/// What became of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitOutcome {
    /// The index now names the output instead of the sources.
    Committed,
    /// The plan is no longer ours; nothing changed. The output must go.
    LeaseLost,
    /// A source left the index meanwhile; nothing changed. The output must go, the plan may be tried again.
    SourceGone(String),
    /// The index names the output's path already; nothing changed. The bytes under that name are not ours.
    OutputExists,
}

/// What became of something in quarantine that was to be retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retried {
    /// It is due now.
    Planned,
    /// It left the quarantine, but files of its iteration are not merged.
    Final,
    /// It left the quarantine; the index has its files no more.
    Gone,
    /// It was not there any more; nothing changed.
    Absent,
}

/// Files that [`Catalog::refresh`](super::Catalog::refresh) met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Files that were registered now.
    pub registered_count: u64,
    /// Files that were left alone and reported for the first time.
    pub left_alone_count: u64,
    /// Unreferenced outputs of interrupted merges that were removed.
    pub orphans_removed_count: u64,
}

/// An output that was announced and never committed, and that nobody can commit any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadOutput {
    /// Where the output belongs.
    pub queue: MergeQueue,
    /// The bytes, if they were published at all.
    pub path: DataPath,
    /// The inputs of its plan, as far as they are known.
    pub sources: Vec<DataPath>,
    /// The layer that they lie in.
    pub sources_layer: LayerName,
    /// What the catalog compares before it forgets it.
    pub token: String,
}

/// A merge whose inputs still wait for their deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// The table.
    pub table: TableRef,
    /// The layer of inputs and output.
    pub layer: LayerName,
    /// Their writer.
    pub writer: WriterId,
    /// The file that took their place.
    pub output: DataPath,
    /// The inputs that wait, sorted.
    pub sources: Vec<DataPath>,
    /// How many inputs the merge had.
    pub sources_count: usize,
    /// When the bytes of the first may be deleted, Unix seconds.
    pub due_s: i64,
}

/// What the catalog says of the file of a claimed delete.
#[derive(Debug, Clone, PartialEq)]
pub enum DropState {
    /// Nothing names it: its bytes may go.
    Unnamed,
    /// The index names its path.
    Named(Box<IndexEntry>),
    /// The path was used again since, and what a merge replaced there keeps its bytes for so long.
    KeptFor(Duration),
}

/// What became of bringing replaced files back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undeleted {
    /// The index names them instead of the output, whose bytes are deleted after a grace of their own.
    Done,
    /// The index does not name the output any more; nothing changed.
    OutputGone,
    /// Some of them do not wait any more; nothing changed.
    BeingDeleted,
}

/// How much work stands in the queues.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueDepths {
    /// Merge plans waiting, due or not.
    pub merges_idle_count: u64,
    /// Merge plans handed out.
    pub merges_processing_count: u64,
    /// Deletes waiting, due or not.
    pub drops_idle_count: u64,
    /// Deletes handed out.
    pub drops_processing_count: u64,
    /// Moves waiting, due or not.
    pub moves_idle_count: u64,
    /// Moves handed out.
    pub moves_processing_count: u64,
    /// Items that were given up, with their reason.
    pub failed_count: u64,
}
