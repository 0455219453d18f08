//! The catalog as it is stored, for `verify`: what cannot be used is shown, not passed over.
//!
//! [`Audit`] reads in pieces (one first folder of a table at a time) and changes only through
//! [`Audit::mend`], which does nothing when what was seen is not so any more.

use std::{collections::BTreeSet, time::Duration};

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::CatalogError;
use crate::model::{
    DataPath, DropItem, IndexEntry, LayerName, MergePlan, MergeQueue, MoveItem, PartitionDir,
    TableRef, WriterId,
};

/// Records as they come; the first error ends them.
pub type RecordStream<'a, T> = BoxStream<'a, Result<T, CatalogError>>;

/// One entry of the index.
#[derive(Debug, Clone)]
pub struct StoredEntry {
    /// The path under which it stands, as it came.
    pub path: String,
    /// Its exact text: what [`Mend::Entry`] compares.
    pub text: String,
    /// What it says, or why it cannot be used.
    pub entry: Result<IndexEntry, String>,
}

/// Which list an item stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemState {
    /// Waiting.
    Idle,
    /// Handed out.
    Processing,
    /// Given up.
    Failed,
}

/// Work that was queued.
#[derive(Debug, Clone)]
pub enum Work {
    /// Files to be merged.
    Merge(MergePlan),
    /// A file to be deleted.
    Drop(DropItem),
    /// A file to be moved.
    Move(MoveItem),
}

/// What the catalog holds beside the index.
#[derive(Debug, Clone)]
pub enum Record {
    /// An item of a queue.
    Item {
        /// The list, or the file, that it stands in.
        place: String,
        /// Which list.
        state: ItemState,
        /// Its exact text.
        text: String,
        /// What it says, or why it cannot be used.
        work: Result<Work, String>,
        /// Why it was given up.
        reason: Option<String>,
    },
    /// An output whose bytes may be there before its entry.
    Announced {
        /// What [`Mend::Announced`] names.
        field: String,
        /// Its exact text.
        text: String,
        /// The file.
        path: DataPath,
        /// Its layer.
        layer: LayerName,
        /// When, Unix seconds; `None` where that is not recorded.
        at_s: Option<i64>,
    },
    /// A file that is not merged any more.
    SetAside {
        /// The file.
        path: String,
    },
    /// A partition of which its own file says something else than its entries do.
    Sums {
        /// The partition.
        dir: PartitionDir,
        /// What differs.
        reason: String,
    },
    /// Something that is none of the above.
    Strange {
        /// Where.
        place: String,
        /// What is wrong.
        reason: String,
    },
}

/// A folder's count, as it is kept and as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderCount {
    /// What is kept.
    pub kept: String,
    /// Entries in the folder.
    pub files: u64,
}

/// What to do with an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemFate {
    /// It goes.
    Remove,
    /// It goes to the failed list with a reason.
    Fail(String),
    /// It is worked on again at once.
    Release,
    /// A plan loses some of its paths.
    WithoutPaths(Vec<String>),
}

/// One repair.
#[derive(Debug, Clone)]
pub enum Mend {
    /// Replaces an entry, or forgets it. The old text is kept aside.
    Entry {
        /// Its path as it stands.
        path: String,
        /// Its text as it was seen.
        seen: String,
        /// What takes its place.
        new: Option<Box<IndexEntry>>,
    },
    /// Changes an item.
    Item {
        /// Its list.
        place: String,
        /// Its text as it was seen.
        seen: String,
        /// What becomes of it.
        fate: ItemFate,
    },
    /// Sets a folder's count, or a partition's sums, to what its entries say.
    Folder(PartitionDir),
    /// Puts files into plans.
    Plan {
        /// Where they wait.
        queue: MergeQueue,
        /// The files.
        paths: Vec<DataPath>,
    },
    /// Queues the deletion of bytes that the index does not name.
    Drop {
        /// The file.
        path: DataPath,
        /// The layer that holds the bytes.
        layer: LayerName,
        /// Whose queue.
        writer: WriterId,
        /// Not before this has passed.
        grace: Duration,
    },
    /// Forgets an announcement.
    Announced {
        /// Its field.
        field: String,
        /// Its text as it was seen.
        seen: String,
    },
}

/// A catalog under the eyes of `verify`.
#[async_trait]
pub trait Audit: Send + Sync {
    /// The time by which items are due, Unix seconds.
    async fn now_s(&self) -> Result<i64, CatalogError>;

    /// Every table that anything is known of, and what stands where a table's name should.
    async fn tables(&self) -> Result<(BTreeSet<TableRef>, Vec<Record>), CatalogError>;

    /// First folders of a table that anything is known of.
    async fn first_folders(&self, table: &TableRef) -> Result<BTreeSet<String>, CatalogError>;

    /// The entries below a first folder. One may come twice.
    fn entries<'a>(
        &'a self,
        table: &'a TableRef,
        first_folder: &'a str,
    ) -> RecordStream<'a, StoredEntry>;

    /// Merge plans below a first folder, those that wait before those that were handed out. Empty
    /// where plans are made when they are needed.
    fn merges<'a>(&'a self, table: &'a TableRef, first_folder: &'a str)
    -> RecordStream<'a, Record>;

    /// What is known beside index and merge plans: of one first folder, or of the whole table
    /// where [`is_table_wide`](Self::is_table_wide).
    fn records<'a>(
        &'a self,
        table: &'a TableRef,
        first_folder: &'a str,
    ) -> RecordStream<'a, Record>;

    /// Whether `records` are those of a whole table, whatever the first folder.
    fn is_table_wide(&self) -> bool;

    /// Whether plans are stored, so that a file can be in none.
    fn has_plans(&self) -> bool;

    /// The counts that are kept for folders below a first folder: folder, count as text.
    async fn folder_counts(
        &self,
        table: &TableRef,
        first_folder: &str,
    ) -> Result<Vec<(String, String)>, CatalogError>;

    /// A folder's count and its files, looked at in one step; `None` when there are too many.
    async fn count_folder(
        &self,
        table: &TableRef,
        dir: &PartitionDir,
    ) -> Result<Option<FolderCount>, CatalogError>;

    /// What stands under a path now.
    async fn stored(
        &self,
        table: &TableRef,
        path: &str,
    ) -> Result<Option<StoredEntry>, CatalogError>;

    /// Which of these files are in the index and in no plan of this queue, looked at in one step.
    /// `None` when there is too much to look at.
    async fn unplanned(
        &self,
        queue: &MergeQueue,
        paths: &[DataPath],
    ) -> Result<Option<Vec<DataPath>>, CatalogError>;

    /// Makes a repair; `false` when it is not needed any more.
    async fn mend(&self, table: &TableRef, mend: &Mend) -> Result<bool, CatalogError>;
}
