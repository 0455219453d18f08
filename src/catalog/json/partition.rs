//! One partition in memory, and every change that its `metadata.json` goes through.
//!
//! A change is applied to a copy, the copy is written, and only then takes the place of
//! what was there: an error leaves memory and disk as they were.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::Duration,
};

use crate::{
    catalog::{CatalogError, CommitOutcome, MergeCommit, Policy},
    model::{
        DataPath, DropItem, IndexEntry, Iteration, LayerName, MergePlan, MergeQueue, PartitionDir,
        PlanId, TableRef,
    },
};

use super::{
    claims::Claims,
    metadata_file::{self, FileRecord, Metadata, Stamp},
    planner::{self, PlannedMerge},
};

#[derive(Debug)]
pub(super) struct Partition {
    pub(super) layer: LayerName,
    pub(super) table: TableRef,
    pub(super) dir: PartitionDir,
    folder: PathBuf,
    /// Changes stay in memory.
    is_read_only: bool,
    metadata: Metadata,
    /// Path → place in `metadata.files`.
    places: HashMap<DataPath, usize>,
    stamp: Option<Stamp>,
    merges: Claims,
    drops: Claims,
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
        let mut partition = Self {
            layer,
            table,
            dir,
            folder,
            is_read_only,
            metadata: Metadata::default(),
            places: HashMap::new(),
            stamp,
            merges: Claims::default(),
            drops: Claims::default(),
            finished_drops: HashSet::new(),
        };
        partition.set_metadata(metadata);
        Ok(partition)
    }

    fn set_metadata(&mut self, metadata: Metadata) {
        self.places = places(&metadata);
        self.metadata = metadata;
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
            self.set_metadata(metadata_file::read(&self.folder, &self.layer, &self.table)?);
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
        if !self.is_read_only
            && let Err(error) = metadata_file::replace(&self.folder, &self.table, &next)
        {
            // The rename may have happened before the error: what is on disk is true.
            self.reload_if_changed()?;
            if self.metadata != next {
                return Err(error);
            }
        }
        self.stamp = metadata_file::stamp(&self.folder);
        self.set_metadata(next);
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
        Some(&self.metadata.files.get(*self.places.get(path)?)?.entry)
    }

    /// Files that are there without an entry, and rightly so: replaced ones in their grace, and
    /// outputs before their commit.
    pub(super) fn unindexed(&self) -> HashSet<&DataPath> {
        let dropped = self.metadata.drop_queue.iter().map(|drop| &drop.path);
        dropped.chain(&self.metadata.pending).collect()
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
            let mut places = places(metadata);
            for entry in add {
                let entry = IndexEntry {
                    layer: layer.clone(),
                    ..entry.clone()
                };
                if let Some(place) = places.get(&entry.path) {
                    metadata.files[*place].entry = entry;
                } else {
                    places.insert(entry.path.clone(), metadata.files.len());
                    push_file(metadata, entry, now_s);
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

    fn plans(&self, policy: &Policy) -> Vec<PlannedMerge> {
        let taken = self.merges.taken();
        planner::plan(&self.metadata.files, policy, |path| taken.contains(path))
    }

    pub(super) fn due_merges(
        &self,
        iteration: Iteration,
        policy: &Policy,
        now_s: i64,
    ) -> Vec<MergePlan> {
        self.plans(policy)
            .into_iter()
            .filter(|plan| plan.iteration == iteration && plan.due_s <= now_s)
            .map(|plan| self.merge_plan(plan, 0))
            .collect()
    }

    pub(super) fn merge_counts(&self, policy: &Policy) -> (usize, usize) {
        (self.plans(policy).len(), self.merges.live_count())
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

    /// Takes the first due plan of a queue; returns it with the lease's token.
    pub(super) fn claim(
        &mut self,
        queue: &MergeQueue,
        policy: &Policy,
        now_s: i64,
        lease: Duration,
    ) -> Option<(MergePlan, String)> {
        let planned = self.plans(policy).into_iter().find(|plan| {
            plan.iteration == queue.iteration && plan.writer == queue.writer && plan.due_s <= now_s
        })?;
        let (token, attempts) = self.merges.take(&planned.paths, lease);
        Some((self.merge_plan(planned, attempts), token))
    }

    fn lease_lost(&self) -> CatalogError {
        CatalogError::LeaseLost {
            what: format!("a plan of {} {}", self.table, self.dir),
        }
    }

    pub(super) fn renew(&mut self, token: &str, lease: Duration) -> Result<String, CatalogError> {
        self.merges
            .renew(token, lease)
            .ok_or_else(|| self.lease_lost())
    }

    pub(super) fn announce(&mut self, token: &str, output: &DataPath) -> Result<(), CatalogError> {
        if self.merges.paths(token).is_none() {
            return Err(self.lease_lost());
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
        self.reload_if_changed()?;
        let output_is_here = commit
            .output
            .as_ref()
            .is_some_and(|output| self.entry(&output.path).is_some());
        if self.merges.paths(token).is_none() {
            let is_done =
                output_is_here && commit.sources.iter().all(|path| self.entry(path).is_none());
            return Ok(if is_done {
                CommitOutcome::Committed
            } else {
                CommitOutcome::LeaseLost
            });
        }
        if let Some(gone) = commit
            .sources
            .iter()
            .find(|path| self.entry(path).is_none())
        {
            return Ok(CommitOutcome::SourceGone(gone.to_string()));
        }
        if output_is_here {
            return Ok(CommitOutcome::OutputExists);
        }
        let due_s = now_s.saturating_add(i64::try_from(commit.grace.as_secs()).unwrap_or(i64::MAX));
        let layer = self.layer.clone();
        self.change(|metadata| {
            if let Some(output) = &commit.output {
                metadata.pending.retain(|path| *path != output.path);
                push_file(
                    metadata,
                    IndexEntry {
                        layer,
                        ..output.clone()
                    },
                    now_s,
                );
            }
            remove_files(metadata, &commit.sources, due_s);
            for bad in &commit.set_aside {
                set_aside(metadata, &bad.path, &bad.reason);
            }
        })?;
        self.merges.end(token, None);
        Ok(CommitOutcome::Committed)
    }

    /// Frees the files of a claim after `delay`; the caller has removed the outputs that it announced.
    pub(super) fn release(
        &mut self,
        token: &str,
        removed: &[DataPath],
        delay: Duration,
    ) -> Result<(), CatalogError> {
        let was_held = self.merges.end(token, Some(delay));
        self.forget_pending(removed)?;
        if was_held {
            Ok(())
        } else {
            Err(self.lease_lost())
        }
    }

    pub(super) fn fail(
        &mut self,
        token: &str,
        removed: &[DataPath],
        reason: &str,
    ) -> Result<(), CatalogError> {
        let paths = self.merges.paths(token).ok_or_else(|| self.lease_lost())?;
        self.change(|metadata| {
            for path in &paths {
                set_aside(metadata, path, reason);
            }
            metadata.pending.retain(|path| !removed.contains(path));
        })?;
        self.merges.end(token, None);
        Ok(())
    }

    /// Takes due deletes, oldest first; returns each with its lease's token.
    pub(super) fn claim_drops(
        &mut self,
        limit: usize,
        now_s: i64,
        lease: Duration,
        policy: &Policy,
    ) -> Vec<(DropItem, String)> {
        let taken = self.drops.taken();
        let is_free =
            |path: &DataPath| !taken.contains(path) && !self.finished_drops.contains(path);
        let due: Vec<DropItem> = self
            .metadata
            .drop_queue
            .iter()
            .filter(|drop| {
                drop.due_s <= now_s && policy.serves(&drop.writer) && is_free(&drop.path)
            })
            .take(limit)
            .cloned()
            .collect();
        let drops = &mut self.drops;
        due.into_iter()
            .map(|drop| {
                let (token, _) = drops.take(std::slice::from_ref(&drop.path), lease);
                (drop, token)
            })
            .collect()
    }

    pub(super) fn finish_drops(
        &mut self,
        drops: &[(DataPath, String)],
    ) -> Result<(), CatalogError> {
        for (path, token) in drops {
            if self.drops.end(token, None) {
                self.finished_drops.insert(path.clone());
            }
        }
        self.change(|_| {})
    }

    /// Prolongs a delete's claim; returns the new token.
    pub(super) fn renew_drop(
        &mut self,
        token: &str,
        lease: Duration,
    ) -> Result<String, CatalogError> {
        self.drops
            .renew(token, lease)
            .ok_or_else(|| self.lease_lost())
    }

    pub(super) fn release_drop(
        &mut self,
        token: &str,
        delay: Duration,
    ) -> Result<(), CatalogError> {
        if self.drops.end(token, Some(delay)) {
            Ok(())
        } else {
            Err(self.lease_lost())
        }
    }

    pub(super) fn drop_counts(&self) -> (usize, usize) {
        let waiting = self
            .metadata
            .drop_queue
            .iter()
            .filter(|drop| !self.finished_drops.contains(&drop.path))
            .count();
        let claimed = self.drops.live_count();
        (waiting.saturating_sub(claimed), claimed)
    }
}

fn places(metadata: &Metadata) -> HashMap<DataPath, usize> {
    metadata
        .files
        .iter()
        .enumerate()
        .map(|(place, record)| (record.entry.path.clone(), place))
        .collect()
}

fn push_file(metadata: &mut Metadata, entry: IndexEntry, now_s: i64) {
    // The newest file stands last.
    let id = metadata.files.last().map_or(0, |record| record.id) + 1;
    metadata.files.push(FileRecord {
        id,
        entry,
        added_at_s: now_s,
        set_aside: None,
    });
}

fn remove_files(metadata: &mut Metadata, paths: &[DataPath], due_s: i64) {
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
