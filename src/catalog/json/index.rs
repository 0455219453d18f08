//! What the embedded catalog does, on the threads where it may block: every call may wait for another
//! one's fsync.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{Probe, merges::GivenBack, partition::Partition, refresh};
use crate::{
    catalog::{
        CatalogError, CommitOutcome, DeadOutput, EntryFilter, MergeCommit, Policy, QueueDepths,
    },
    crash_points::CrashPoints,
    model::{
        ClaimedMerge, DataPath, Folder, IndexEntry, Iteration, LayerName, Lease, MergePlan,
        MergeQueue, PartitionDir, PlanId, PlanPart, TableRef,
    },
};

/// A delete asked for by a writer waits this long, as in the Redis scripts.
const WRITER_DROP_DELAY_S: i64 = 30;

pub(super) type PartitionKey = (TableRef, PartitionDir, LayerName);

pub(super) struct Inner {
    pub(super) layers: Vec<(LayerName, PathBuf)>,
    pub(super) probe: Probe,
    pub(super) policy: RwLock<Arc<Policy>>,
    pub(super) partitions: Mutex<BTreeMap<PartitionKey, Partition>>,
    /// Outputs announced by claims of this process, by plan and attempt.
    pub(super) announced: Mutex<HashMap<(PlanId, u32), Vec<DataPath>>>,
    pub(super) scan: Mutex<refresh::ScanMemory>,
    pub(super) locks: Mutex<Vec<File>>,
    pub(super) is_read_only: bool,
    pub(super) is_closed: AtomicBool,
    pub(super) crash_points: CrashPoints,
}

pub(super) fn now_s() -> i64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

/// A panic elsewhere does not make the map wrong: every change is applied whole or not at all.
pub(super) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(super) fn policy(&self) -> Arc<Policy> {
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
    pub(super) fn with_partition<T>(
        &self,
        table: &TableRef,
        dir: &PartitionDir,
        layer: &LayerName,
        work: impl FnOnce(&mut Partition) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let layer = self.layer(layer)?.0.clone();
        let key = (table.clone(), dir.clone(), layer.clone());
        let mut partitions = guard(&self.partitions);
        // Asked under the lock, so that nothing changes once `close` has returned.
        if self.is_closed.load(Ordering::Acquire) {
            return Err(CatalogError::Unavailable {
                context: "embedded catalog".to_owned(),
                reason: "it was closed for a new configuration".to_owned(),
            });
        }
        if !partitions.contains_key(&key) {
            let folder = self.folder(table, dir, &layer)?;
            let mut partition =
                Partition::load(layer, table.clone(), dir.clone(), folder, self.is_read_only)?;
            partition.crash_points = self.crash_points.clone();
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

    pub(super) fn batch(
        &self,
        add: &[IndexEntry],
        remove: &[IndexEntry],
    ) -> Result<(), CatalogError> {
        type Change = (Vec<(IndexEntry, i64)>, Vec<DataPath>);
        let mut changes: BTreeMap<PartitionKey, Change> = BTreeMap::new();
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
                adds.push((entry.clone(), now_s()))
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

    fn take_announced(&self, claim: &ClaimedMerge) -> Vec<DataPath> {
        let key = announced_key(claim);
        guard(&self.announced).remove(&key).unwrap_or_default()
    }

    fn on_queue<T>(
        &self,
        queue: &MergeQueue,
        work: impl FnOnce(&mut Partition) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        self.with_partition(&queue.table, &queue.dir, &queue.layer, work)
    }

    pub(super) fn set_policy(&self, policy: Arc<Policy>) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    pub(super) fn tables(&self) -> Vec<TableRef> {
        let partitions = guard(&self.partitions);
        let with_files = partitions
            .values()
            .filter(|partition| partition.entries().next().is_some());
        let tables: BTreeSet<TableRef> = with_files
            .map(|partition| partition.table.clone())
            .collect();
        tables.into_iter().collect()
    }

    pub(super) fn folders(&self, table: &TableRef) -> Vec<Folder> {
        let mut counts: BTreeMap<PartitionDir, u64> = BTreeMap::new();
        for partition in guard(&self.partitions).values() {
            let files_count = partition.entries().count() as u64;
            if partition.table == *table && files_count > 0 {
                *counts.entry(partition.dir.clone()).or_default() += files_count;
            }
        }
        counts
            .into_iter()
            .map(|(dir, files_count)| Folder { dir, files_count })
            .collect()
    }

    /// A layer that is not configured holds nothing.
    pub(super) fn get(
        &self,
        table: &TableRef,
        layer: &LayerName,
        path: &DataPath,
    ) -> Option<IndexEntry> {
        let layer = self.layer(layer).ok()?.0.clone();
        guard(&self.partitions)
            .get(&(table.clone(), path.dir(), layer))?
            .entry(path)
            .cloned()
    }

    pub(super) fn partition_keys(&self, table: &TableRef) -> Vec<PartitionKey> {
        let partitions = guard(&self.partitions);
        partitions
            .keys()
            .filter(|(of, _, _)| of == table)
            .cloned()
            .collect()
    }

    /// Entries of one partition; none when it is gone.
    pub(super) fn entries_of(&self, key: &PartitionKey, filter: &EntryFilter) -> Vec<IndexEntry> {
        let partitions = guard(&self.partitions);
        let entries = partitions.get(key).into_iter().flat_map(Partition::entries);
        entries
            .filter(|entry| filter.matches(entry))
            .cloned()
            .collect()
    }

    pub(super) fn resolve(&self, table: &TableRef, paths: &[DataPath]) -> Vec<Option<IndexEntry>> {
        let partitions = guard(&self.partitions);
        let find = |path: &DataPath| {
            let dir = path.dir();
            self.layers.iter().find_map(|(layer, _)| {
                partitions
                    .get(&(table.clone(), dir.clone(), layer.clone()))?
                    .entry(path)
                    .cloned()
            })
        };
        paths.iter().map(find).collect()
    }

    pub(super) fn due_merges(&self, iteration: Iteration, limit: usize) -> Vec<MergePlan> {
        let (policy, now_s) = (self.policy(), now_s());
        let mut due: Vec<MergePlan> = guard(&self.partitions)
            .values()
            .flat_map(|partition| partition.due_merges(iteration, &policy, now_s))
            .collect();
        due.sort_by_key(|plan| plan.due_s);
        due.truncate(limit);
        due
    }

    pub(super) fn claim_merge(
        &self,
        queue: &MergeQueue,
        lease: Duration,
    ) -> Result<Option<ClaimedMerge>, CatalogError> {
        let policy = self.policy();
        let plan = self.on_queue(queue, |partition| {
            partition.claim(queue, &policy, now_s(), lease)
        })?;
        Ok(plan.map(|(plan, token)| ClaimedMerge {
            lease: lease_for(&token, lease),
            plan,
        }))
    }

    pub(super) fn renew_merge(
        &self,
        claim: &ClaimedMerge,
        lease: Duration,
    ) -> Result<Lease, CatalogError> {
        let token = self.on_queue(&claim.plan.queue, |partition| {
            partition.renew(&claim.lease.token, lease)
        })?;
        Ok(lease_for(&token, lease))
    }

    pub(super) fn announce_output(
        &self,
        claim: &ClaimedMerge,
        output: &DataPath,
    ) -> Result<(), CatalogError> {
        guard(&self.announced)
            .entry(announced_key(claim))
            .or_default()
            .push(output.clone());
        self.on_queue(&claim.plan.queue, |partition| {
            partition.announce(&claim.lease.token, output)
        })
    }

    pub(super) fn commit_merge(
        &self,
        claim: &ClaimedMerge,
        commit: &MergeCommit,
    ) -> Result<CommitOutcome, CatalogError> {
        let outcome = self.on_queue(&claim.plan.queue, |partition| {
            partition.commit(&claim.lease.token, &claim.plan.id, commit, now_s())
        })?;
        if outcome == CommitOutcome::Committed {
            self.take_announced(claim);
        }
        Ok(outcome)
    }

    pub(super) fn give_merge_back(
        &self,
        claim: &ClaimedMerge,
        delay: Duration,
        as_what: GivenBack,
    ) -> Result<(), CatalogError> {
        let announced = self.take_announced(claim);
        self.on_queue(&claim.plan.queue, |partition| {
            partition.give_back(claim, &announced, delay, as_what)
        })
    }

    pub(super) fn split_merge(
        &self,
        claim: &ClaimedMerge,
        parts: &[PlanPart],
    ) -> Result<(), CatalogError> {
        let announced = self.take_announced(claim);
        self.on_queue(&claim.plan.queue, |partition| {
            partition.split(claim, &announced, parts, now_s())
        })
    }

    pub(super) fn fail_merge(
        &self,
        claim: &ClaimedMerge,
        reason: &str,
    ) -> Result<(), CatalogError> {
        let announced = self.take_announced(claim);
        self.on_queue(&claim.plan.queue, |partition| {
            partition.fail(&claim.lease.token, &claim.plan.id, &announced, reason)
        })
    }

    /// Announcements are what this process or one before it left: those of claims that run are known.
    pub(super) fn dead_outputs(&self, limit: usize) -> Vec<DeadOutput> {
        // Held meanwhile: an output is announced here before it stands in a partition.
        let announced = guard(&self.announced);
        let live: BTreeSet<&DataPath> = announced.values().flatten().collect();
        let mut dead = Vec::new();
        for partition in guard(&self.partitions).values() {
            let orphans = partition.orphans();
            dead.extend(
                orphans
                    .into_iter()
                    .filter(|path| !live.contains(path))
                    .map(|path| partition.dead_output(path)),
            );
        }
        dead.truncate(limit);
        dead
    }

    pub(super) fn forget_output(&self, dead: &DeadOutput) -> Result<(), CatalogError> {
        self.on_queue(&dead.queue, |partition| {
            partition.change(|metadata| metadata.pending.retain(|path| *path != dead.path))
        })
    }

    pub(super) fn queue_depths(&self) -> QueueDepths {
        let policy = self.policy();
        let mut depths = QueueDepths::default();
        for partition in guard(&self.partitions).values() {
            let (merges_idle, merges_processing) = partition.merge_counts(&policy);
            let (drops_idle, drops_processing) = partition.drop_counts();
            depths.merges_idle_count += merges_idle as u64;
            depths.merges_processing_count += merges_processing as u64;
            depths.drops_idle_count += drops_idle as u64;
            depths.drops_processing_count += drops_processing as u64;
            depths.failed_count += partition.set_aside_count() as u64;
        }
        depths
    }
}

/// A worker that lost its lease must not take away what the next one announced.
fn announced_key(claim: &ClaimedMerge) -> (PlanId, u32) {
    (claim.plan.id.clone(), claim.plan.attempts)
}

pub(super) fn lease_for(token: &str, lease: Duration) -> Lease {
    let seconds = i64::try_from(lease.as_secs()).unwrap_or(i64::MAX);
    Lease {
        token: token.to_owned(),
        expires_at_s: now_s().saturating_add(seconds),
    }
}
