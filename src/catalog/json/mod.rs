//! The embedded catalog: one `metadata.json` per partition, no server.
//!
//! One process owns a layer (a lock on its root says so), so claims live in memory. Files that
//! any program renames into a partition are found by [`refresh`](crate::catalog::Catalog::refresh)
//! and registered from their footers. An output is announced in `pending` before its bytes
//! appear, so that after a crash it is known for an orphan and never taken for a new file.

mod claims;
mod discovery;
mod index;
mod metadata_file;
mod partition;
mod planner;
mod refresh;
mod work;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::{Map, Value};

use self::index::{Inner, guard};
use super::{
    Catalog, CatalogError, CommitOutcome, EntryFilter, MergeCommit, Policy, QueueDepths, Refreshed,
};
use crate::model::{
    ClaimedDrop, ClaimedMerge, DataPath, IndexEntry, Iteration, LayerName, Lease, MergePlan,
    MergeQueue, TableRef,
};

const LOCK_NAME: &str = ".gigamerge.lock";

/// What a data file's footer says of it; the caller knows Parquet, the catalog does not.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbedFile {
    /// Rows in the file.
    pub row_count: u64,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Smallest time, nanoseconds.
    pub min_time_ns: i64,
    /// Largest time, nanoseconds.
    pub max_time_ns: i64,
    /// Column → smallest value.
    pub min: Map<String, Value>,
    /// Column → largest value.
    pub max: Map<String, Value>,
}

/// Reads a file's footer, or says why it cannot be registered.
pub type Probe = Arc<dyn Fn(&TableRef, &Path) -> Result<ProbedFile, String> + Send + Sync>;

/// `metadata.json` files under the roots of `fs` layers.
#[derive(Clone)]
pub struct JsonCatalog {
    inner: Arc<Inner>,
}

impl JsonCatalog {
    /// Takes the lock of every layer, loads what is there and removes outputs that a crash left behind.
    ///
    /// # Errors
    /// [`CatalogError::Locked`] when another process owns a layer; I/O errors name the file.
    pub async fn open(
        layers: Vec<(LayerName, PathBuf)>,
        policy: Arc<Policy>,
        probe: Probe,
    ) -> Result<Self, CatalogError> {
        let locks = layers
            .iter()
            .map(|(_, root)| lock(root))
            .collect::<Result<Vec<_>, _>>()?;
        Self::load(layers, policy, probe, locks, false).await
    }

    /// Opens for looking only, beside a process that works: takes no lock and writes nothing. Files that are not
    /// registered yet count as if they were.
    pub async fn open_to_look(
        layers: Vec<(LayerName, PathBuf)>,
        policy: Arc<Policy>,
        probe: Probe,
    ) -> Result<Self, CatalogError> {
        Self::load(layers, policy, probe, Vec::new(), true).await
    }

    async fn load(
        layers: Vec<(LayerName, PathBuf)>,
        policy: Arc<Policy>,
        probe: Probe,
        locks: Vec<File>,
        is_read_only: bool,
    ) -> Result<Self, CatalogError> {
        let inner = Arc::new(Inner {
            layers,
            probe,
            policy: RwLock::new(policy),
            partitions: Mutex::new(BTreeMap::new()),
            announced: Mutex::new(HashMap::new()),
            scan: Mutex::new(refresh::ScanMemory::default()),
            locks: Mutex::new(locks),
            is_read_only,
        });
        let catalog = Self { inner };
        catalog.refresh().await?;
        Ok(catalog)
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|error| {
                Err(CatalogError::Unavailable {
                    context: "embedded catalog".to_owned(),
                    reason: error.to_string(),
                })
            })
    }
}

fn lock(root: &Path) -> Result<File, CatalogError> {
    let path = root.join(LOCK_NAME);
    let io = |source| CatalogError::Io {
        path: path.clone(),
        source,
    };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(CatalogError::Locked { path }),
        Err(std::fs::TryLockError::Error(source)) => Err(io(source)),
    }
}

#[async_trait]
impl Catalog for JsonCatalog {
    fn set_policy(&self, policy: Arc<Policy>) {
        self.inner.set_policy(policy);
    }

    async fn ping(&self) -> Result<(), CatalogError> {
        Ok(())
    }

    async fn tables(&self) -> Result<Vec<TableRef>, CatalogError> {
        self.blocking(|inner| Ok(inner.tables())).await
    }

    async fn entries(
        &self,
        table: &TableRef,
        filter: &EntryFilter,
    ) -> Result<Vec<IndexEntry>, CatalogError> {
        let (table, filter) = (table.clone(), filter.clone());
        self.blocking(move |inner| Ok(inner.entries(&table, &filter)))
            .await
    }

    async fn resolve(
        &self,
        table: &TableRef,
        paths: &[DataPath],
    ) -> Result<Vec<Option<IndexEntry>>, CatalogError> {
        let (table, paths) = (table.clone(), paths.to_vec());
        self.blocking(move |inner| Ok(inner.resolve(&table, &paths)))
            .await
    }

    async fn batch(&self, add: &[IndexEntry], remove: &[IndexEntry]) -> Result<(), CatalogError> {
        let (add, remove) = (add.to_vec(), remove.to_vec());
        self.blocking(move |inner| inner.batch(&add, &remove)).await
    }

    async fn refresh(&self) -> Result<Refreshed, CatalogError> {
        self.blocking(refresh::refresh).await
    }

    async fn due_merges(
        &self,
        iteration: Iteration,
        limit: usize,
    ) -> Result<Vec<MergePlan>, CatalogError> {
        self.blocking(move |inner| Ok(inner.due_merges(iteration, limit)))
            .await
    }

    async fn claim_merge(
        &self,
        queue: &MergeQueue,
        lease: Duration,
    ) -> Result<Option<ClaimedMerge>, CatalogError> {
        let queue = queue.clone();
        self.blocking(move |inner| inner.claim_merge(&queue, lease))
            .await
    }

    async fn renew_merge(
        &self,
        claim: &ClaimedMerge,
        lease: Duration,
    ) -> Result<Lease, CatalogError> {
        let claim = claim.clone();
        self.blocking(move |inner| inner.renew_merge(&claim, lease))
            .await
    }

    async fn announce_output(
        &self,
        claim: &ClaimedMerge,
        output: &DataPath,
    ) -> Result<(), CatalogError> {
        let (claim, output) = (claim.clone(), output.clone());
        self.blocking(move |inner| inner.announce_output(&claim, &output))
            .await
    }

    async fn commit_merge(
        &self,
        claim: &ClaimedMerge,
        commit: &MergeCommit,
    ) -> Result<CommitOutcome, CatalogError> {
        let (claim, commit) = (claim.clone(), commit.clone());
        self.blocking(move |inner| inner.commit_merge(&claim, &commit))
            .await
    }

    async fn release_merge(
        &self,
        claim: &ClaimedMerge,
        delay: Duration,
    ) -> Result<(), CatalogError> {
        let claim = claim.clone();
        self.blocking(move |inner| inner.release_merge(&claim, delay))
            .await
    }

    async fn fail_merge(&self, claim: &ClaimedMerge, reason: &str) -> Result<(), CatalogError> {
        let (claim, reason) = (claim.clone(), reason.to_owned());
        self.blocking(move |inner| inner.fail_merge(&claim, &reason))
            .await
    }

    async fn claim_drops(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<ClaimedDrop>, CatalogError> {
        self.blocking(move |inner| Ok(inner.claim_drops(limit, lease)))
            .await
    }

    async fn finish_drop(&self, claim: &ClaimedDrop) -> Result<(), CatalogError> {
        self.finish_drops(std::slice::from_ref(claim)).await
    }

    async fn finish_drops(&self, claims: &[ClaimedDrop]) -> Result<(), CatalogError> {
        let claims = claims.to_vec();
        self.blocking(move |inner| inner.finish_drops(&claims))
            .await
    }

    async fn release_drop(&self, claim: &ClaimedDrop, delay: Duration) -> Result<(), CatalogError> {
        let claim = claim.clone();
        self.blocking(move |inner| inner.release_drop(&claim, delay))
            .await
    }

    fn close(&self) {
        guard(&self.inner.locks).clear();
    }

    async fn queue_depths(&self) -> Result<QueueDepths, CatalogError> {
        self.blocking(|inner| Ok(inner.queue_depths())).await
    }
}
