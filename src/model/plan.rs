//! Work that the catalog hands out.

use std::fmt;

use super::{DataPath, Iteration, LayerName, PartitionDir, PlanId, TableRef, WriterId};

/// Where merge plans of one partition, iteration, layer and writer wait.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MergeQueue {
    /// The table.
    pub table: TableRef,
    /// The iteration of the plans' inputs.
    pub iteration: Iteration,
    /// The partition that inputs and output lie in.
    pub dir: PartitionDir,
    /// The layer of inputs and output.
    pub layer: LayerName,
    /// The writer of the inputs.
    pub writer: WriterId,
}

impl fmt::Display for MergeQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} iteration {}",
            self.table, self.dir, self.iteration
        )
    }
}

/// Files to be merged into one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergePlan {
    /// Its id; unique only together with its paths (see [`PlanId`]).
    pub id: PlanId,
    /// Where it waits.
    pub queue: MergeQueue,
    /// The inputs, in the order in which they were registered, each once.
    pub paths: Vec<DataPath>,
    /// Paths that the item named and that were refused, with the reason.
    pub refused_paths: Vec<(String, String)>,
    /// Sum of the inputs' sizes as registered.
    pub size_bytes: u64,
    /// When it may be claimed (waiting) or taken over (processing), Unix seconds.
    pub due_s: i64,
    /// How often it was claimed, this time included. Only grows: outputs are named after it.
    pub attempts: u32,
    /// Of these, those that ended by no fault of its files: a stop, a full disk, a server away.
    pub forgiven: u32,
    /// Of these, those that failed and said why.
    pub failed: u32,
    /// Half of a plan under suspicion: it runs alone.
    pub is_suspect: bool,
}

impl MergePlan {
    /// Attempts that count against its files, this one included.
    pub fn counted_attempts(&self) -> u32 {
        self.attempts.saturating_sub(self.forgiven)
    }

    /// Earlier attempts of which nobody heard again: they took their process with them, or it was
    /// killed meanwhile.
    pub fn deaths(&self) -> u32 {
        self.counted_attempts()
            .saturating_sub(1)
            .saturating_sub(self.failed)
    }

    /// Whether nothing else may run beside it: it may end the process.
    pub fn runs_alone(&self) -> bool {
        self.is_suspect || self.deaths() > 0
    }
}

/// Some of a plan's files, to become a plan of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanPart {
    /// The files, in the plan's order.
    pub paths: Vec<DataPath>,
    /// Sum of their sizes.
    pub size_bytes: u64,
}

/// A file whose bytes are to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropItem {
    /// Its id.
    pub id: PlanId,
    /// The table.
    pub table: TableRef,
    /// The layer that holds the bytes.
    pub layer: LayerName,
    /// The writer whose queue it stands in.
    pub writer: WriterId,
    /// The file.
    pub path: DataPath,
    /// Not before this time, Unix seconds.
    pub due_s: i64,
}

/// A file that is to leave its layer, because its time there is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveItem {
    /// Its id.
    pub id: PlanId,
    /// The table.
    pub table: TableRef,
    /// The writer whose queue it stands in.
    pub writer: WriterId,
    /// The file.
    pub path_from: DataPath,
    /// The layer that holds its bytes.
    pub layer_from: LayerName,
    /// Where it goes in the next layer: same folder and iteration. Names of the original repeat, so
    /// only these count, and the copy gets a name of its own.
    pub path_to: DataPath,
    /// The next layer; `None` when there is none and the file is to be deleted.
    pub layer_to: Option<LayerName>,
    /// Not before this time, Unix seconds.
    pub due_s: i64,
    /// How often it was claimed, this time included. Only grows: copies are named after it.
    pub attempts: u32,
    /// Of these, those that ended by no fault of the file.
    pub forgiven: u32,
}

impl MoveItem {
    /// Attempts that count against the file, this one included.
    pub fn counted_attempts(&self) -> u32 {
        self.attempts.saturating_sub(self.forgiven)
    }
}

/// A partition and how much is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// The partition.
    pub dir: PartitionDir,
    /// Files in it, in all layers.
    pub files_count: u64,
}

/// An input that a merge left out: it stays in the index, readable, and is not planned again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// The file.
    pub path: DataPath,
    /// Why it cannot be merged.
    pub reason: String,
}

/// What stands in quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuarantineKind {
    /// A file that cannot be merged.
    File,
    /// A plan that was given up, with its files.
    Plan,
    /// An item of a queue that cannot be used.
    Item,
    /// A file that cannot be read and so is not in the index. It is looked at again by itself.
    Unregistered,
}

/// Something that nobody works on until an operator says so. Its files stay readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// What it is.
    pub kind: QuarantineKind,
    /// The table.
    pub table: TableRef,
    /// Names it within its table: the path of a file, else an id.
    pub id: String,
    /// Its files that the index still has.
    pub paths: Vec<DataPath>,
    /// Why it is here.
    pub reason: String,
    /// Since when, Unix seconds; 0 when that is not known.
    pub at_s: i64,
    /// Where the catalog keeps it, for messages: a key or a file.
    pub place: String,
    /// Its text there, exactly; empty where it has none.
    pub text: String,
}
