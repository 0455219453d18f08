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
    /// How often it was claimed, this time included.
    pub attempts: u32,
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
    /// Its name in the next layer: same folder and iteration. Names of the original repeat, so
    /// a file may be there already.
    pub path_to: DataPath,
    /// The next layer; `None` when there is none and the file is to be deleted.
    pub layer_to: Option<LayerName>,
    /// Not before this time, Unix seconds.
    pub due_s: i64,
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
