//! One partition in memory, and every change that its `metadata.json` goes through.
//!
//! A change is applied to a copy, the copy is written, and only then takes the place of
//! what was there: an error leaves memory and disk as they were.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    catalog::{CatalogError, CommitOutcome, MergeCommit, Policy},
    model::{
        DataPath, DropItem, IndexEntry, Iteration, LayerName, MergePlan, MergeQueue, PartitionDir,
        PlanId, TableRef,
    },
};

use super::{
    metadata_file::{self, FileRecord, Metadata, Stamp},
    planner::{self, PlannedMerge},
};

/// A handed-out piece of work. Claims do not outlive the process: the layer's lock keeps others away.
#[derive(Debug)]
struct Claim {
    paths: Vec<DataPath>,
    expires_at: Instant,
}

/// What is remembered of a file between attempts.
#[derive(Debug, Clone, Copy)]
struct Retry {
    attempts: u32,
    not_before: Instant,
}

#[derive(Debug)]
pub(super) struct Partition {
    pub(super) layer: LayerName,
    pub(super) table: TableRef,
    pub(super) dir: PartitionDir,
    folder: PathBuf,
    /// Changes stay in memory.
    is_read_only: bool,
    metadata: Metadata,
    stamp: Option<Stamp>,
    claims: HashMap<String, Claim>,
    retries: HashMap<DataPath, Retry>,
    /// Deleted files whose drop items are still in the file on disk; written out with the next change.
    finished_drops: HashSet<DataPath>,
}

impl Partition {
    pub(super) fn load(
        layer: LayerName,
        table: TableRef,
        dir: PartitionDir,
        folder: PathBuf,
        is_read_only: bool,
    ) -> Result<Self, CatalogError> {
        let stamp = metadata_file::stamp(&folder);
        let metadata = metadata_file::read(&folder, &layer, &table)?;
        Ok(Self {
            layer,
            table,
            dir,
            folder,
            is_read_only,
            metadata,
            stamp,
            claims: HashMap::new(),
            retries: HashMap::new(),
            finished_drops: HashSet::new(),
        })
    }

    /// Reads the file again if somebody else replaced it.
    pub(super) fn reload_if_changed(&mut self) -> Result<(), CatalogError> {
        let stamp = metadata_file::stamp(&self.folder);
        if stamp == self.stamp {
            return Ok(());
        }
        if stamp.is_none() && self.folder.is_dir() && !self.is_read_only {
            // Without it, replaced files that still lie here would be taken for new ones.
            tracing::warn!(folder = %self.folder.display(), "metadata.json was removed; it is written again from memory");
            metadata_file::replace(&self.folder, &self.table, &self.metadata)?;
        } else {
            self.metadata = metadata_file::read(&self.folder, &self.layer, &self.table)?;
        }
        self.stamp = metadata_file::stamp(&self.folder);
        Ok(())
    }

    fn change(&mut self, apply: impl FnOnce(&mut Metadata)) -> Result<(), CatalogError> {
        self.reload_if_changed()?;
        let mut next = self.metadata.clone();
        apply(&mut next);
        next.drop_queue
            .retain(|drop| !self.finished_drops.contains(&drop.path));
        if next == self.metadata {
            return Ok(());
        }
        if self.is_read_only {
            self.metadata = next;
            return Ok(());
        }
        let replaced = metadata_file::replace(&self.folder, &self.table, &next);
        if replaced.is_err() {
            // The rename may have happened before the error: what is on disk is true.
            self.reload_if_changed()?;
            if self.metadata != next {
                return replaced;
            }
        }
        self.stamp = metadata_file::stamp(&self.folder);
        self.metadata = next;
        self.finished_drops.clear();
        Ok(())
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &IndexEntry> {
        self.metadata.files.iter().map(|record| &record.entry)
    }

    /// Whether somebody removed the whole folder.
    pub(super) fn is_gone(&self) -> bool {
        !self.folder.exists()
    }

    pub(super) fn set_aside_count(&self) -> usize {
        self.metadata
            .files
            .iter()
            .filter(|record| record.set_aside.is_some())
            .count()
    }

    pub(super) fn entry(&self, path: &DataPath) -> Option<&IndexEntry> {
        self.entries().find(|entry| entry.path == *path)
    }

    /// Every name that the partition accounts for, indexed or not.
    pub(super) fn known_paths(&self) -> HashSet<DataPath> {
        let metadata = &self.metadata;
        self.entries()
            .map(|entry| &entry.path)
            .chain(metadata.drop_queue.iter().map(|drop| &drop.path))
            .chain(&metadata.pending)
            .cloned()
            .collect()
    }

    /// Adds or replaces entries, removes others and queues their deletion.
    pub(super) fn batch(
        &mut self,
        add: &[IndexEntry],
        remove: &[DataPath],
        now_s: i64,
        drop_delay_s: i64,
    ) -> Result<(), CatalogError> {
        let layer = self.layer.clone();
        self.change(|metadata| {
            let mut next_id = metadata
                .files
                .iter()
                .map(|record| record.id)
                .max()
                .unwrap_or(0)
                + 1;
            for entry in add {
                let mut entry = entry.clone();
                entry.layer.clone_from(&layer);
                match metadata
                    .files
                    .iter_mut()
                    .find(|record| record.entry.path == entry.path)
                {
                    Some(record) => record.entry = entry,
                    None => {
                        metadata.files.push(FileRecord {
                            id: next_id,
                            entry,
                            added_at_s: now_s,
                            set_aside: None,
                        });
                        next_id += 1;
                    }
                }
            }
            remove_files(metadata, remove, now_s + drop_delay_s);
        })
    }

    /// Outputs of merges that a crash interrupted: nobody else knows these names.
    pub(super) fn orphans(&self) -> Vec<DataPath> {
        self.metadata
            .pending
            .iter()
            .filter(|path| self.entry(path).is_none())
            .cloned()
            .collect()
    }

    pub(super) fn forget_pending(&mut self, paths: &[DataPath]) -> Result<(), CatalogError> {
        self.change(|metadata| metadata.pending.retain(|path| !paths.contains(path)))
    }

    fn plans(&self, policy: &Policy, now: Instant) -> Vec<PlannedMerge> {
        let taken: HashSet<&DataPath> = self
            .claims
            .values()
            .filter(|claim| claim.expires_at > now)
            .flat_map(|claim| &claim.paths)
            .collect();
        planner::plan(&self.metadata.files, policy, |path| {
            taken.contains(path)
                || self
                    .retries
                    .get(path)
                    .is_some_and(|retry| retry.not_before > now)
        })
    }

    pub(super) fn due_merges(
        &self,
        iteration: Iteration,
        policy: &Policy,
        now_s: i64,
    ) -> Vec<MergePlan> {
        self.plans(policy, Instant::now())
            .into_iter()
            .filter(|plan| plan.iteration == iteration && plan.due_s <= now_s)
            .map(|plan| self.merge_plan(plan, 0))
            .collect()
    }

    pub(super) fn idle_and_claimed_counts(&self, policy: &Policy) -> (usize, usize) {
        let now = Instant::now();
        (
            self.plans(policy, now).len(),
            self.claims
                .values()
                .filter(|claim| claim.expires_at > now)
                .count(),
        )
    }

    fn merge_plan(&self, plan: PlannedMerge, attempts: u32) -> MergePlan {
        MergePlan {
            id: PlanId::random(),
            queue: MergeQueue {
                table: self.table.clone(),
                iteration: plan.iteration,
                dir: self.dir.clone(),
                layer: self.layer.clone(),
                writer: plan.writer,
            },
            paths: plan.paths,
            refused_paths: Vec::new(),
            size_bytes: plan.size_bytes,
            due_s: plan.due_s,
            attempts,
        }
    }

    /// Takes the first due plan of a queue; the plan's id is the lease's token.
    pub(super) fn claim(
        &mut self,
        queue: &MergeQueue,
        policy: &Policy,
        now_s: i64,
        lease: Duration,
    ) -> Option<MergePlan> {
        let now = Instant::now();
        self.claims.retain(|_, claim| claim.expires_at > now);
        let planned = self.plans(policy, now).into_iter().find(|plan| {
            plan.iteration == queue.iteration && plan.writer == queue.writer && plan.due_s <= now_s
        })?;
        let attempts = 1 + planned
            .paths
            .iter()
            .filter_map(|path| self.retries.get(path))
            .map(|r| r.attempts)
            .max()
            .unwrap_or(0);
        for path in &planned.paths {
            self.retries.insert(
                path.clone(),
                Retry {
                    attempts,
                    not_before: now,
                },
            );
        }
        let plan = self.merge_plan(planned, attempts);
        self.claims.insert(
            plan.id.as_str().to_owned(),
            Claim {
                paths: plan.paths.clone(),
                expires_at: now + lease,
            },
        );
        Some(plan)
    }

    /// False when the claim was lost.
    pub(super) fn renew(&mut self, token: &str, lease: Duration) -> bool {
        let now = Instant::now();
        match self
            .claims
            .get_mut(token)
            .filter(|claim| claim.expires_at > now)
        {
            Some(claim) => {
                claim.expires_at = now + lease;
                true
            }
            None => false,
        }
    }

    fn holds(&self, token: &str) -> bool {
        self.claims
            .get(token)
            .is_some_and(|claim| claim.expires_at > Instant::now())
    }

    pub(super) fn announce(&mut self, token: &str, output: &DataPath) -> Result<(), CatalogError> {
        if !self.holds(token) {
            return Err(CatalogError::LeaseLost {
                what: output.to_string(),
            });
        }
        self.change(|metadata| {
            if !metadata.pending.contains(output) {
                metadata.pending.push(output.clone());
            }
        })
    }

    pub(super) fn commit(
        &mut self,
        token: &str,
        commit: &MergeCommit,
        now_s: i64,
    ) -> Result<CommitOutcome, CatalogError> {
        if !self.holds(token) {
            return Ok(CommitOutcome::LeaseLost);
        }
        self.reload_if_changed()?;
        if let Some(gone) = commit
            .sources
            .iter()
            .find(|path| self.entry(path).is_none())
        {
            return Ok(CommitOutcome::SourceGone(gone.to_string()));
        }
        if commit
            .output
            .as_ref()
            .is_some_and(|output| self.entry(&output.path).is_some())
        {
            return Ok(CommitOutcome::OutputExists);
        }
        let due_s = now_s.saturating_add(i64::try_from(commit.grace.as_secs()).unwrap_or(i64::MAX));
        let layer = self.layer.clone();
        self.change(|metadata| {
            let id = metadata
                .files
                .iter()
                .map(|record| record.id)
                .max()
                .unwrap_or(0)
                + 1;
            remove_files(metadata, &commit.sources, due_s);
            if let Some(output) = &commit.output {
                metadata.pending.retain(|path| *path != output.path);
                let mut entry = output.clone();
                entry.layer = layer;
                metadata.files.push(FileRecord {
                    id,
                    entry,
                    added_at_s: now_s,
                    set_aside: None,
                });
            }
            for bad in &commit.set_aside {
                set_aside(metadata, &bad.path, &bad.reason);
            }
        })?;
        self.end_claim(token, None);
        Ok(CommitOutcome::Committed)
    }

    /// Frees the files of a claim after `delay`; the caller has removed an announced output.
    pub(super) fn release(
        &mut self,
        token: &str,
        output_removed: &[DataPath],
        delay: Duration,
    ) -> Result<(), CatalogError> {
        self.end_claim(token, Some(delay));
        self.forget_pending(output_removed)
    }

    pub(super) fn fail(
        &mut self,
        token: &str,
        output_removed: &[DataPath],
        reason: &str,
    ) -> Result<(), CatalogError> {
        if !self.holds(token) {
            return Err(CatalogError::LeaseLost {
                what: self.dir.to_string(),
            });
        }
        let paths = self
            .claims
            .get(token)
            .map(|claim| claim.paths.clone())
            .unwrap_or_default();
        self.change(|metadata| {
            for path in &paths {
                set_aside(metadata, path, reason);
            }
            metadata
                .pending
                .retain(|path| !output_removed.contains(path));
        })?;
        self.end_claim(token, None);
        Ok(())
    }

    fn end_claim(&mut self, token: &str, retry_after: Option<Duration>) {
        for path in self
            .claims
            .remove(token)
            .into_iter()
            .flat_map(|claim| claim.paths)
        {
            match (retry_after, self.retries.get_mut(&path)) {
                (Some(delay), Some(retry)) => retry.not_before = Instant::now() + delay,
                _ => {
                    self.retries.remove(&path);
                }
            }
        }
    }

    /// Due deletes that are not handed out, oldest first. Those of files that an entry names are left out by
    /// the caller's own question to the index.
    pub(super) fn claim_drops(
        &mut self,
        limit: usize,
        now_s: i64,
        lease: Duration,
        policy: &Policy,
    ) -> Vec<DropItem> {
        let now = Instant::now();
        self.claims.retain(|_, claim| claim.expires_at > now);
        let due: Vec<DropItem> = self
            .metadata
            .drop_queue
            .iter()
            .filter(|drop| drop.due_s <= now_s && policy.serves(&drop.writer))
            .filter(|drop| {
                !self.finished_drops.contains(&drop.path)
                    && !self.claims.contains_key(drop.path.as_str())
            })
            .filter(|drop| {
                self.retries
                    .get(&drop.path)
                    .is_none_or(|retry| retry.not_before <= now)
            })
            .take(limit)
            .cloned()
            .collect();
        for drop in &due {
            let claim = Claim {
                paths: vec![drop.path.clone()],
                expires_at: now + lease,
            };
            self.claims.insert(drop.path.as_str().to_owned(), claim);
        }
        due
    }

    pub(super) fn finish_drops(&mut self, paths: &[DataPath]) -> Result<(), CatalogError> {
        self.finished_drops.extend(paths.iter().cloned());
        for path in paths {
            self.end_claim(path.as_str(), None);
        }
        self.change(|_| {})
    }

    pub(super) fn release_drop(&mut self, path: &DataPath, delay: Duration) {
        self.retries.insert(
            path.clone(),
            Retry {
                attempts: 1,
                not_before: Instant::now(),
            },
        );
        self.end_claim(path.as_str(), Some(delay));
    }

    pub(super) fn drop_counts(&self) -> (usize, usize) {
        let all = self.metadata.drop_queue.len()
            - self
                .finished_drops
                .len()
                .min(self.metadata.drop_queue.len());
        let claimed = self
            .metadata
            .drop_queue
            .iter()
            .filter(|drop| self.claims.contains_key(drop.path.as_str()))
            .count();
        (all - claimed.min(all), claimed)
    }
}

fn remove_files(metadata: &mut Metadata, paths: &[DataPath], due_s: i64) {
    if paths.is_empty() {
        return;
    }
    let removed: HashSet<&DataPath> = paths.iter().collect();
    let queue = &mut metadata.drop_queue;
    metadata.files.retain(|record| {
        let goes = removed.contains(&record.entry.path);
        if goes {
            queue.push(DropItem {
                id: PlanId::random(),
                table: record.entry.table.clone(),
                layer: record.entry.layer.clone(),
                writer: record.entry.writer.clone(),
                path: record.entry.path.clone(),
                due_s,
            });
        }
        !goes
    });
}

fn set_aside(metadata: &mut Metadata, path: &DataPath, reason: &str) {
    if let Some(record) = metadata
        .files
        .iter_mut()
        .find(|record| record.entry.path == *path)
    {
        record.set_aside = Some(reason.to_owned());
    }
}
