//! The embedded catalog: one `metadata.json` per partition, no server.
//!
//! One process owns a layer (a lock on its root says so), so claims live in memory. Files that
//! any program renames into a partition are found by [`refresh`](crate::catalog::Catalog::refresh)
//! and registered from their footers. An output is announced in `pending` before its bytes
//! appear, so that after a crash it is known for an orphan and never taken for a new file.

mod claims;
mod discovery;
mod metadata_file;
mod partition;
mod planner;
mod refresh;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use futures_util::StreamExt;
use serde_json::{Map, Value};

use self::partition::Partition;
use super::{
    Catalog, CatalogError, CommitOutcome, EntryFilter, EntryStream, MergeCommit, Policy,
    QueueDepths, Refreshed,
};
use crate::model::{
    ClaimedDrop, ClaimedMerge, ClaimedMove, DataPath, Folder, IndexEntry, Iteration, LayerName,
    Lease, MergePlan, MergeQueue, PartitionDir, PlanId, TableRef,
};

/// A delete asked for by a writer waits this long, as in the Redis scripts.
const WRITER_DROP_DELAY_S: i64 = 30;
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

type PartitionKey = (TableRef, PartitionDir, LayerName);

struct Inner {
    layers: Vec<(LayerName, PathBuf)>,
    probe: Probe,
    policy: RwLock<Arc<Policy>>,
    partitions: Mutex<BTreeMap<PartitionKey, Partition>>,
    /// Outputs announced by claims of this process.
    announced: Mutex<HashMap<PlanId, Vec<DataPath>>>,
    scan: Mutex<refresh::ScanMemory>,
    locks: Mutex<Vec<File>>,
    is_read_only: bool,
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

fn now_s() -> i64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

/// A panic elsewhere does not make the map wrong: every change is applied whole or not at all.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The empty name of older clients stands for the first layer.
    fn layer(&self, name: &LayerName) -> Result<(&LayerName, &Path), CatalogError> {
        let found = match name.as_str() {
            "" => self.layers.first(),
            _ => self.layers.iter().find(|(layer, _)| layer == name),
        };
        found
            .map(|(layer, root)| (layer, root.as_path()))
            .ok_or_else(|| CatalogError::Refused {
                context: format!("layer {:?}", name.as_str()),
                reason: "no such layer is configured".to_owned(),
            })
    }

    fn folder(
        &self,
        table: &TableRef,
        dir: &PartitionDir,
        layer: &LayerName,
    ) -> Result<PathBuf, CatalogError> {
        let (_, root) = self.layer(layer)?;
        Ok(root
            .join(table.database())
            .join(table.table())
            .join("data")
            .join(dir.as_str()))
    }

    /// Runs `work` on a partition, loading it first if it is new.
    fn with_partition<T>(
        &self,
        table: &TableRef,
        dir: &PartitionDir,
        layer: &LayerName,
        work: impl FnOnce(&mut Partition) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let layer = self.layer(layer)?.0.clone();
        let key = (table.clone(), dir.clone(), layer.clone());
        let mut partitions = guard(&self.partitions);
        if !partitions.contains_key(&key) {
            let folder = self.folder(table, dir, &layer)?;
            let partition =
                Partition::load(layer, table.clone(), dir.clone(), folder, self.is_read_only)?;
            partitions.insert(key.clone(), partition);
        }
        match partitions.get_mut(&key) {
            Some(partition) => work(partition),
            None => Err(CatalogError::Malformed {
                place: dir.to_string(),
                reason: "partition vanished".to_owned(),
            }),
        }
    }

    fn batch(&self, add: &[IndexEntry], remove: &[IndexEntry]) -> Result<(), CatalogError> {
        let mut changes: BTreeMap<PartitionKey, (Vec<IndexEntry>, Vec<DataPath>)> = BTreeMap::new();
        for (entry, is_added) in add
            .iter()
            .map(|e| (e, true))
            .chain(remove.iter().map(|e| (e, false)))
        {
            let layer = self.layer(&entry.layer)?.0.clone();
            let (adds, removes) = changes
                .entry((entry.table.clone(), entry.path.dir(), layer))
                .or_default();
            if is_added {
                adds.push(entry.clone())
            } else {
                removes.push(entry.path.clone())
            }
        }
        for ((table, dir, layer), (adds, removes)) in changes {
            self.with_partition(&table, &dir, &layer, |p| {
                p.batch(&adds, &removes, now_s(), WRITER_DROP_DELAY_S)
            })?;
        }
        Ok(())
    }

    fn take_announced(&self, id: &PlanId) -> Vec<DataPath> {
        guard(&self.announced).remove(id).unwrap_or_default()
    }
}

fn on_queue<T>(
    inner: &Inner,
    queue: &MergeQueue,
    work: impl FnOnce(&mut Partition) -> Result<T, CatalogError>,
) -> Result<T, CatalogError> {
    inner.with_partition(&queue.table, &queue.dir, &queue.layer, work)
}

fn lease_for(token: &str, lease: Duration) -> Lease {
    let seconds = i64::try_from(lease.as_secs()).unwrap_or(i64::MAX);
    Lease {
        token: token.to_owned(),
        expires_at_s: now_s().saturating_add(seconds),
    }
}

/// No move is ever handed out here.
fn not_ours(claim: &ClaimedMove) -> CatalogError {
    CatalogError::LeaseLost {
        what: claim.item.path_from.to_string(),
    }
}

#[async_trait]
impl Catalog for JsonCatalog {
    fn set_policy(&self, policy: Arc<Policy>) {
        *self
            .inner
            .policy
            .write()
            .unwrap_or_else(PoisonError::into_inner) = policy;
    }

    async fn ping(&self) -> Result<(), CatalogError> {
        Ok(())
    }

    async fn tables(&self) -> Result<Vec<TableRef>, CatalogError> {
        let partitions = guard(&self.inner.partitions);
        let with_files = partitions
            .values()
            .filter(|partition| partition.entries().next().is_some());
        Ok(with_files
            .map(|partition| partition.table.clone())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect())
    }

    async fn folders(&self, table: &TableRef) -> Result<Vec<Folder>, CatalogError> {
        let mut counts: BTreeMap<PartitionDir, u64> = BTreeMap::new();
        for partition in guard(&self.inner.partitions).values() {
            let files_count = partition.entries().count() as u64;
            if partition.table == *table && files_count > 0 {
                *counts.entry(partition.dir.clone()).or_default() += files_count;
            }
        }
        Ok(counts
            .into_iter()
            .map(|(dir, files_count)| Folder { dir, files_count })
            .collect())
    }

    async fn get(
        &self,
        table: &TableRef,
        layer: &LayerName,
        path: &DataPath,
    ) -> Result<Option<IndexEntry>, CatalogError> {
        // A layer that is not configured holds nothing.
        let Ok((layer, _)) = self.inner.layer(layer) else {
            return Ok(None);
        };
        let key = (table.clone(), path.dir(), layer.clone());
        Ok(guard(&self.inner.partitions)
            .get(&key)
            .and_then(|partition| partition.entry(path))
            .cloned())
    }

    fn query<'a>(&'a self, table: &TableRef, filter: &EntryFilter) -> EntryStream<'a> {
        let keys: Vec<PartitionKey> = guard(&self.inner.partitions)
            .keys()
            .filter(|(of, _, _)| of == table)
            .cloned()
            .collect();
        let filter = filter.clone();
        // A partition at a time: nothing is held while the caller works.
        let entries = keys.into_iter().flat_map(move |key| {
            let wanted = |partition: &Partition| -> Vec<IndexEntry> {
                partition
                    .entries()
                    .filter(|entry| filter.matches(entry))
                    .cloned()
                    .collect()
            };
            let found = guard(&self.inner.partitions).get(&key).map(wanted);
            found.unwrap_or_default().into_iter().map(Ok)
        });
        futures_util::stream::iter(entries).boxed()
    }

    async fn resolve(
        &self,
        table: &TableRef,
        paths: &[DataPath],
    ) -> Result<Vec<Option<IndexEntry>>, CatalogError> {
        let partitions = guard(&self.inner.partitions);
        let find = |path: &DataPath| {
            let dir = path.dir();
            self.inner.layers.iter().find_map(|(layer, _)| {
                partitions
                    .get(&(table.clone(), dir.clone(), layer.clone()))?
                    .entry(path)
                    .cloned()
            })
        };
        Ok(paths.iter().map(find).collect())
    }

    async fn batch(&self, add: &[IndexEntry], remove: &[IndexEntry]) -> Result<(), CatalogError> {
        let (add, remove) = (add.to_vec(), remove.to_vec());
        self.blocking(move |inner| inner.batch(&add, &remove)).await
    }

    async fn batch_atomic(
        &self,
        add: &[IndexEntry],
        remove: &[IndexEntry],
    ) -> Result<(), CatalogError> {
        let places: BTreeSet<_> = add
            .iter()
            .chain(remove)
            .map(|entry| (&entry.table, entry.path.dir(), &entry.layer))
            .collect();
        if places.len() > 1 {
            return Err(CatalogError::Refused {
                context: "one step for several partitions".to_owned(),
                reason: "each has its own metadata.json; call batch, or once for each partition"
                    .to_owned(),
            });
        }
        self.batch(add, remove).await
    }

    async fn refresh(&self) -> Result<Refreshed, CatalogError> {
        self.blocking(refresh::refresh).await
    }

    async fn due_merges(
        &self,
        iteration: Iteration,
        limit: usize,
    ) -> Result<Vec<MergePlan>, CatalogError> {
        let policy = self.inner.policy();
        let now_s = now_s();
        let partitions = guard(&self.inner.partitions);
        let mut due: Vec<MergePlan> = partitions
            .values()
            .flat_map(|partition| partition.due_merges(iteration, &policy, now_s))
            .collect();
        due.sort_by_key(|plan| plan.due_s);
        due.truncate(limit);
        Ok(due)
    }

    async fn claim_merge(
        &self,
        queue: &MergeQueue,
        lease: Duration,
    ) -> Result<Option<ClaimedMerge>, CatalogError> {
        let policy = self.inner.policy();
        let plan = on_queue(&self.inner, queue, |partition| {
            Ok(partition.claim(queue, &policy, now_s(), lease))
        })?;
        Ok(plan.map(|(plan, token)| ClaimedMerge {
            lease: lease_for(&token, lease),
            plan,
        }))
    }

    async fn renew_merge(
        &self,
        claim: &ClaimedMerge,
        lease: Duration,
    ) -> Result<Lease, CatalogError> {
        let token = on_queue(&self.inner, &claim.plan.queue, |partition| {
            partition.renew(&claim.lease.token, lease)
        })?;
        Ok(lease_for(&token, lease))
    }

    async fn announce_output(
        &self,
        claim: &ClaimedMerge,
        output: &DataPath,
    ) -> Result<(), CatalogError> {
        let (claim, output) = (claim.clone(), output.clone());
        self.blocking(move |inner| {
            guard(&inner.announced)
                .entry(claim.plan.id.clone())
                .or_default()
                .push(output.clone());
            on_queue(inner, &claim.plan.queue, |partition| {
                partition.announce(&claim.lease.token, &output)
            })
        })
        .await
    }

    async fn commit_merge(
        &self,
        claim: &ClaimedMerge,
        commit: &MergeCommit,
    ) -> Result<CommitOutcome, CatalogError> {
        let (claim, commit) = (claim.clone(), commit.clone());
        self.blocking(move |inner| {
            let outcome = on_queue(inner, &claim.plan.queue, |partition| {
                partition.commit(&claim.lease.token, &commit, now_s())
            })?;
            if outcome == CommitOutcome::Committed {
                inner.take_announced(&claim.plan.id);
            }
            Ok(outcome)
        })
        .await
    }

    async fn release_merge(
        &self,
        claim: &ClaimedMerge,
        delay: Duration,
    ) -> Result<(), CatalogError> {
        let claim = claim.clone();
        self.blocking(move |inner| {
            let removed = inner.take_announced(&claim.plan.id);
            on_queue(inner, &claim.plan.queue, |partition| {
                partition.release(&claim.lease.token, &removed, delay)
            })
        })
        .await
    }

    async fn fail_merge(&self, claim: &ClaimedMerge, reason: &str) -> Result<(), CatalogError> {
        let (claim, reason) = (claim.clone(), reason.to_owned());
        self.blocking(move |inner| {
            let removed = inner.take_announced(&claim.plan.id);
            on_queue(inner, &claim.plan.queue, |partition| {
                partition.fail(&claim.lease.token, &removed, &reason)
            })
        })
        .await
    }

    async fn claim_drops(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<ClaimedDrop>, CatalogError> {
        let policy = self.inner.policy();
        let mut claimed = Vec::new();
        for partition in guard(&self.inner.partitions).values_mut() {
            let items = partition.claim_drops(limit - claimed.len(), now_s(), lease, &policy);
            let items = items.into_iter().map(|(item, token)| ClaimedDrop {
                lease: lease_for(&token, lease),
                item,
            });
            claimed.extend(items);
            if claimed.len() >= limit {
                break;
            }
        }
        Ok(claimed)
    }

    async fn finish_drop(&self, claim: &ClaimedDrop) -> Result<(), CatalogError> {
        self.finish_drops(std::slice::from_ref(claim)).await
    }

    async fn finish_drops(&self, claims: &[ClaimedDrop]) -> Result<(), CatalogError> {
        let mut by_partition: BTreeMap<PartitionKey, Vec<(DataPath, String)>> = BTreeMap::new();
        for ClaimedDrop { item, lease } in claims {
            let key = (item.table.clone(), item.path.dir(), item.layer.clone());
            by_partition
                .entry(key)
                .or_default()
                .push((item.path.clone(), lease.token.clone()));
        }
        self.blocking(move |inner| {
            for ((table, dir, layer), drops) in by_partition {
                inner.with_partition(&table, &dir, &layer, |partition| {
                    partition.finish_drops(&drops)
                })?;
            }
            Ok(())
        })
        .await
    }

    async fn renew_drop(
        &self,
        claim: &ClaimedDrop,
        lease: Duration,
    ) -> Result<Lease, CatalogError> {
        let item = &claim.item;
        let token =
            self.inner
                .with_partition(&item.table, &item.path.dir(), &item.layer, |partition| {
                    partition.renew_drop(&claim.lease.token, lease)
                })?;
        Ok(lease_for(&token, lease))
    }

    async fn claim_moves(
        &self,
        _limit: usize,
        _lease: Duration,
    ) -> Result<Vec<ClaimedMove>, CatalogError> {
        Ok(Vec::new())
    }

    async fn renew_move(
        &self,
        claim: &ClaimedMove,
        _lease: Duration,
    ) -> Result<Lease, CatalogError> {
        Err(not_ours(claim))
    }

    async fn release_move(
        &self,
        claim: &ClaimedMove,
        _delay: Duration,
    ) -> Result<(), CatalogError> {
        Err(not_ours(claim))
    }

    async fn finish_move(&self, claim: &ClaimedMove) -> Result<(), CatalogError> {
        Err(not_ours(claim))
    }

    async fn release_drop(&self, claim: &ClaimedDrop, delay: Duration) -> Result<(), CatalogError> {
        let item = &claim.item;
        self.inner
            .with_partition(&item.table, &item.path.dir(), &item.layer, |partition| {
                partition.release_drop(&claim.lease.token, delay)
            })
    }

    fn close(&self) {
        guard(&self.inner.locks).clear();
    }

    async fn queue_depths(&self) -> Result<QueueDepths, CatalogError> {
        let policy = self.inner.policy();
        let mut depths = QueueDepths::default();
        for partition in guard(&self.inner.partitions).values() {
            let (merges_idle, merges_processing) = partition.merge_counts(&policy);
            let (drops_idle, drops_processing) = partition.drop_counts();
            depths.merges_idle_count += merges_idle as u64;
            depths.merges_processing_count += merges_processing as u64;
            depths.drops_idle_count += drops_idle as u64;
            depths.drops_processing_count += drops_processing as u64;
            depths.failed_count += partition.set_aside_count() as u64;
        }
        Ok(depths)
    }
}
