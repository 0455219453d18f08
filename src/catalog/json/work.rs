//! What a partition hands out, merges and deletes, and how each of them ends.

use std::time::Duration;

use super::{
    partition::{Partition, push_file, remove_files, set_aside},
    planner::{self, PlannedMerge},
};
use crate::{
    catalog::{CatalogError, CommitOutcome, MergeCommit, Policy},
    model::{DataPath, DropItem, IndexEntry, Iteration, MergePlan, MergeQueue, PlanId},
};

impl Partition {
    fn plans(&self, policy: &Policy, only: Option<Iteration>) -> Vec<PlannedMerge> {
        let taken = self.merges.taken();
        planner::plan(&self.metadata.files, policy, only, |path| {
            taken.contains(path)
        })
    }

    pub(super) fn due_merges(
        &self,
        iteration: Iteration,
        policy: &Policy,
        now_s: i64,
    ) -> Vec<MergePlan> {
        self.plans(policy, Some(iteration))
            .into_iter()
            .filter(|plan| plan.due_s <= now_s)
            .map(|plan| self.merge_plan(plan, 0))
            .collect()
    }

    pub(super) fn merge_counts(&self, policy: &Policy) -> (usize, usize) {
        (self.plans(policy, None).len(), self.merges.live_count())
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
        let planned = self
            .plans(policy, Some(queue.iteration))
            .into_iter()
            .find(|plan| plan.writer == queue.writer && plan.due_s <= now_s)?;
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
