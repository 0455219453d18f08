//! Where the lake's files and the work on them are recorded.
//!
//! [`Catalog`] has two implementations that pass one suite of tests: Redis, shared with
//! writers and readers of other makes, and the embedded one (`metadata.json` files).
//! The life of a merge: [`due_merges`](Catalog::due_merges) →
//! [`claim_merge`](Catalog::claim_merge) → [`resolve`](Catalog::resolve) →
//! [`announce_output`](Catalog::announce_output) → bytes are published →
//! [`commit_merge`](Catalog::commit_merge). Whoever cannot go on gives the plan back with
//! [`release_merge`](Catalog::release_merge) or ends it with [`fail_merge`](Catalog::fail_merge).
//!
//! A writer needs [`connect`] and [`batch`](Catalog::batch):
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use gigamerge::{
//!     catalog::{self, ConnectOptions},
//!     model::{DataPath, IndexEntry, LayerName, TableRef, WriterId},
//! };
//!
//! let catalog = catalog::connect("redis://localhost:6379/0", ConnectOptions::default()).await?;
//! let time_ns = 1_705_327_200_000_000_000;
//! let entry = IndexEntry {
//!     layer: LayerName::default(),
//!     table: TableRef::new("metrics", "cpu")?,
//!     path: DataPath::parse("date=2024-01-15/hour=14/0a1b.1.parquet")?,
//!     size_bytes: 48_213,
//!     row_count: 1_000,
//!     chunk_time_ns: time_ns,
//!     min_time_ns: time_ns,
//!     max_time_ns: time_ns + 999_000_000,
//!     min: serde_json::Map::new(),
//!     max: serde_json::Map::new(),
//!     writer: WriterId::default(),
//!     extra: serde_json::Map::new(),
//! };
//! // The bytes are in place under this name: only now may the index name them.
//! catalog.batch(&[entry], &[]).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A reader asks for what a time range holds, and gets it as it comes:
//!
//! ```no_run
//! # async fn example(catalog: &dyn gigamerge::catalog::Catalog) -> Result<(), Box<dyn std::error::Error>> {
//! use futures_util::TryStreamExt;
//! use gigamerge::{catalog::EntryFilter, model::TableRef};
//!
//! let filter = EntryFilter {
//!     after_ns: Some(1_705_327_200_000_000_000),
//!     ..EntryFilter::default()
//! };
//! let mut files = catalog.query(&TableRef::new("metrics", "cpu")?, &filter);
//! while let Some(entry) = files.try_next().await? {
//!     println!("{} holds {} rows", entry.path, entry.row_count);
//! }
//! # Ok(())
//! # }
//! ```

mod answers;
pub mod audit;
mod connect;
mod error;
pub mod json;
mod policy;
pub mod redis;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{TryStreamExt, stream::BoxStream};

pub use answers::{
    CommitOutcome, DeadOutput, DropState, EntryFilter, MergeCommit, MoveCommit, QueueDepths,
    Refreshed, Replacement, Retried, Undeleted,
};
pub use connect::{ConnectOptions, connect};
pub use error::CatalogError;
pub use policy::{LayerRule, Level, Policy};

use crate::model::{
    ClaimedDrop, ClaimedMerge, ClaimedMove, DataPath, Folder, IndexEntry, Iteration, LayerName,
    Lease, MergePlan, MergeQueue, PlanPart, Quarantined, TableRef,
};

/// Entries as they come, each file once, in no particular order. The first error ends it.
pub type EntryStream<'a> = BoxStream<'a, Result<IndexEntry, CatalogError>>;

/// Why files that were brought back are not merged again.
const BROUGHT_BACK: &str =
    "brought back by undelete; gigamerge quarantine retry lets it be merged again";

/// The index and its queues. Every call is bounded in time and safe to repeat.
#[async_trait]
pub trait Catalog: Send + Sync + 'static {
    /// Replaces the rules for all later calls.
    fn set_policy(&self, policy: Arc<Policy>);

    /// One round trip that proves the catalog answers.
    async fn ping(&self) -> Result<(), CatalogError>;

    /// Every table that holds files, sorted.
    async fn tables(&self) -> Result<Vec<TableRef>, CatalogError>;

    /// Every database that holds files, sorted.
    async fn databases(&self) -> Result<Vec<String>, CatalogError> {
        let tables = self.tables().await?;
        let mut names: Vec<String> = tables
            .iter()
            .map(|table| table.database().to_owned())
            .collect();
        // Tables are sorted by database.
        names.dedup();
        Ok(names)
    }

    /// The partitions of a table that hold files, sorted, as they were counted when files were
    /// registered and removed.
    async fn folders(&self, table: &TableRef) -> Result<Vec<Folder>, CatalogError>;

    /// The entry of a file if it lies in this layer. The empty name stands for the first layer.
    async fn get(
        &self,
        table: &TableRef,
        layer: &LayerName,
        path: &DataPath,
    ) -> Result<Option<IndexEntry>, CatalogError>;

    /// The entries of one table, as they come: memory does not grow with the table, but for 16
    /// bytes per file of one first folder (each file comes once). What changes meanwhile may be
    /// seen or not.
    fn query<'a>(&'a self, table: &TableRef, filter: &EntryFilter) -> EntryStream<'a>;

    /// The entries of one table, sorted by path, all in memory.
    async fn entries(
        &self,
        table: &TableRef,
        filter: &EntryFilter,
    ) -> Result<Vec<IndexEntry>, CatalogError> {
        let mut entries: Vec<IndexEntry> = self.query(table, filter).try_collect().await?;
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    /// The entry of each path, in order; `None` where the index has none.
    async fn resolve(
        &self,
        table: &TableRef,
        paths: &[DataPath],
    ) -> Result<Vec<Option<IndexEntry>>, CatalogError>;

    /// Registers `add`, then removes `remove` (whose bytes are deleted 30 s later). Many entries
    /// go in several steps, each of which happens completely or not at all; after an error the
    /// same call may be repeated.
    async fn batch(&self, add: &[IndexEntry], remove: &[IndexEntry]) -> Result<(), CatalogError>;

    /// As [`batch`](Self::batch), in one step that happens completely or not at all. Redis
    /// answers nobody else meanwhile (about 15 µs for each entry).
    ///
    /// # Errors
    /// [`CatalogError::Refused`] when the catalog cannot do that: more than 100,000 entries, or
    /// more than one partition of the embedded catalog.
    async fn batch_atomic(
        &self,
        add: &[IndexEntry],
        remove: &[IndexEntry],
    ) -> Result<(), CatalogError>;

    /// Looks for files that nobody registered (embedded); does nothing where writers register their own (Redis).
    async fn refresh(&self) -> Result<Refreshed, CatalogError>;

    /// Plans of `iteration` that can be claimed now, oldest queue first, at most `limit`; claims nothing.
    async fn due_merges(
        &self,
        iteration: Iteration,
        limit: usize,
    ) -> Result<Vec<MergePlan>, CatalogError>;

    /// Takes the next due plan of a queue for `lease`; `None` when nothing is due.
    async fn claim_merge(
        &self,
        queue: &MergeQueue,
        lease: Duration,
    ) -> Result<Option<ClaimedMerge>, CatalogError>;

    /// Prolongs a claim; the old lease is void afterwards.
    ///
    /// # Errors
    /// [`CatalogError::LeaseLost`] when somebody else took over.
    async fn renew_merge(
        &self,
        claim: &ClaimedMerge,
        lease: Duration,
    ) -> Result<Lease, CatalogError>;

    /// Records that bytes will appear under `output` before they do, so that a crash leaves no unknown file.
    async fn announce_output(
        &self,
        claim: &ClaimedMerge,
        output: &DataPath,
    ) -> Result<(), CatalogError>;

    /// Replaces the sources by the output in one atomic call.
    async fn commit_merge(
        &self,
        claim: &ClaimedMerge,
        commit: &MergeCommit,
    ) -> Result<CommitOutcome, CatalogError>;

    /// Gives a plan back through no fault of its files; it is due again after `delay` and the
    /// attempt is forgiven, also when the lease was lost and another worker goes on. An announced
    /// output is forgotten: the caller has removed it.
    async fn release_merge(
        &self,
        claim: &ClaimedMerge,
        delay: Duration,
    ) -> Result<(), CatalogError>;

    /// As [`release_merge`](Self::release_merge), after an attempt that failed and counts.
    async fn retry_merge(&self, claim: &ClaimedMerge, delay: Duration) -> Result<(), CatalogError>;

    /// Puts smaller plans, all of them suspects and due now, in the place of a claimed one whose
    /// earlier attempts died. Files that no part names are planned no more.
    async fn split_merge(
        &self,
        claim: &ClaimedMerge,
        parts: &[PlanPart],
    ) -> Result<(), CatalogError>;

    /// Ends a plan that cannot succeed: it goes to the failed list, its files stay in the index.
    async fn fail_merge(&self, claim: &ClaimedMerge, reason: &str) -> Result<(), CatalogError>;

    /// What was set aside or given up, in one table or in all, oldest first.
    async fn quarantine(&self, table: Option<&TableRef>) -> Result<Vec<Quarantined>, CatalogError>;

    /// Brings it back to work in one step: a file as a plan of its own, a plan as it was, with all
    /// attempts forgiven. What the index does not have any more is forgotten.
    async fn retry_quarantined(&self, what: &Quarantined) -> Result<Retried, CatalogError>;

    /// Forgets it, removes its files from the index and queues their deletion after `grace`, all in
    /// one step. Returns how many files left the index; `None` when it was not there any more and
    /// nothing changed.
    async fn drop_quarantined(
        &self,
        what: &Quarantined,
        grace: Duration,
    ) -> Result<Option<u64>, CatalogError>;

    /// Takes up to `limit` due deletes.
    async fn claim_drops(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<ClaimedDrop>, CatalogError>;

    /// Whether the file of a claimed delete may go, and in the same step that the claim is
    /// still there: a catalog that lost its last writes may have forgotten both.
    ///
    /// # Errors
    /// [`CatalogError::LeaseLost`] when the claim is not there any more.
    async fn look_up_drop(&self, claim: &ClaimedDrop) -> Result<DropState, CatalogError>;

    /// Ends a delete whose bytes are gone.
    async fn finish_drop(&self, claim: &ClaimedDrop) -> Result<(), CatalogError>;

    /// Ends many; those whose claim was lost are their new holder's business.
    async fn finish_drops(&self, claims: &[ClaimedDrop]) -> Result<(), CatalogError> {
        for claim in claims {
            match self.finish_drop(claim).await {
                Err(CatalogError::LeaseLost { .. }) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Prolongs a claim; the old lease is void afterwards.
    ///
    /// # Errors
    /// [`CatalogError::LeaseLost`] when somebody else took over.
    async fn renew_drop(&self, claim: &ClaimedDrop, lease: Duration)
    -> Result<Lease, CatalogError>;

    /// Gives a delete back; it is due again after `delay`.
    async fn release_drop(&self, claim: &ClaimedDrop, delay: Duration) -> Result<(), CatalogError>;

    /// Takes up to `limit` files whose time in their layer is over: those that go to a layer of
    /// the policy, or expire in a layer that has a TTL there. Others are left to whom they concern.
    /// The embedded catalog, which works on one layer, has none.
    async fn claim_moves(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<ClaimedMove>, CatalogError>;

    /// Prolongs a claim; the old lease is void afterwards.
    ///
    /// # Errors
    /// [`CatalogError::LeaseLost`] when somebody else took over.
    async fn renew_move(&self, claim: &ClaimedMove, lease: Duration)
    -> Result<Lease, CatalogError>;

    /// Records that bytes will appear under `output` in `layer` before they do.
    async fn announce_move(
        &self,
        claim: &ClaimedMove,
        layer: &LayerName,
        output: &DataPath,
    ) -> Result<(), CatalogError>;

    /// Moves the file's entry, or removes it when it expires, in one atomic call. An answer
    /// [`CommitOutcome::LeaseLost`] to a file that expires may come after an earlier call that
    /// was not heard and did it.
    async fn commit_move(
        &self,
        claim: &ClaimedMove,
        commit: &MoveCommit,
    ) -> Result<CommitOutcome, CatalogError>;

    /// Gives a move back through no fault of its file; it is due again after `delay` and the
    /// attempt is forgiven. An announced copy is forgotten: the caller has removed it.
    async fn release_move(&self, claim: &ClaimedMove, delay: Duration) -> Result<(), CatalogError>;

    /// As [`release_move`](Self::release_move), after an attempt that failed and counts.
    async fn retry_move(&self, claim: &ClaimedMove, delay: Duration) -> Result<(), CatalogError>;

    /// Ends a move that cannot succeed: it goes to the failed list, its file stays where it is.
    async fn fail_move(&self, claim: &ClaimedMove, reason: &str) -> Result<(), CatalogError>;

    /// Ends a move that has nothing left to do, because the index has its file there no more.
    async fn finish_move(&self, claim: &ClaimedMove) -> Result<(), CatalogError>;

    /// Outputs that dead workers announced at least `age_min` ago and never committed, at most `limit`.
    async fn dead_outputs(
        &self,
        age_min: Duration,
        limit: usize,
    ) -> Result<Vec<DeadOutput>, CatalogError>;

    /// Forgets such an output: its bytes are gone, or the index names them.
    async fn forget_output(&self, dead: &DeadOutput) -> Result<(), CatalogError>;

    /// Merges of a table whose inputs still wait for their deletion, oldest first.
    async fn replacements(&self, table: &TableRef) -> Result<Vec<Replacement>, CatalogError>;

    /// Puts the inputs of a merge back in the place of its output, in one atomic call. They are set
    /// aside, so that they are not merged again by themselves.
    async fn undelete(
        &self,
        replacement: &Replacement,
        grace: Duration,
    ) -> Result<Undeleted, CatalogError>;

    /// Lets go of everything that keeps another catalog from being opened on the same place.
    /// Nothing is claimed at this point, and no call follows.
    fn close(&self) {}

    /// How much stands in the queues.
    async fn queue_depths(&self) -> Result<QueueDepths, CatalogError>;
}
