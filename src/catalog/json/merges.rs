//! Merges that a partition hands out, and how each of them ends.

use std::{collections::HashSet, time::Duration};

use super::{
    partition::{Partition, push_file, remove_files, set_aside},
    planner::{self, PlannedMerge},
    records::TriedPlan,
};
use crate::{
    catalog::{CatalogError, CommitOutcome, MergeCommit, Policy},
    model::{
        ClaimedMerge, DataPath, IndexEntry, Iteration, MergePlan, MergeQueue, PlanId, PlanPart,
        WriterId,
    },
};

/// Files of a plan that ended without any change are planned again after this.
const NOTHING_DONE_DELAY: Duration = Duration::from_secs(60);

/// How a claim ended that did not commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GivenBack {
    /// Its files are not to blame.
    Forgiven,
    /// They may be.
    Failed,
}

impl Partition {
    /// Plans that were tried before, with the files that are still there, and those that can be
    /// made of all other files.
    fn plans(&self, policy: &Policy, only: Option<Iteration>) -> Vec<MergePlan> {
        let taken = self.merges.taken();
        let tried = &self.metadata.plans;
        let mut plans: Vec<MergePlan> = tried
            .iter()
            .filter(|plan| {
                only.is_none_or(|only| only == plan.iteration)
                    && policy.level(plan.iteration).is_some()
                    && policy.serves(&plan.writer)
                    && !plan.paths.iter().any(|path| taken.contains(path))
            })
            .map(|plan| self.tried_plan(plan))
            .filter(|plan| !plan.paths.is_empty())
            .collect();
        let kept: HashSet<&DataPath> = tried.iter().flat_map(|plan| &plan.paths).collect();
        let fresh = planner::plan(&self.metadata.files, policy, only, |path| {
            taken.contains(path) || kept.contains(path)
        });
        plans.extend(fresh.into_iter().map(|plan| self.fresh_plan(plan)));
        plans
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
            .collect()
    }

    pub(super) fn merge_counts(&self, policy: &Policy) -> (usize, usize) {
        (self.plans(policy, None).len(), self.merges.live_count())
    }

    fn queue(&self, iteration: Iteration, writer: WriterId) -> MergeQueue {
        MergeQueue {
            table: self.table.clone(),
            iteration,
            dir: self.dir.clone(),
            layer: self.layer.clone(),
            writer,
        }
    }

    fn fresh_plan(&self, plan: PlannedMerge) -> MergePlan {
        MergePlan {
            id: PlanId::random(),
            queue: self.queue(plan.iteration, plan.writer),
            paths: plan.paths,
            refused_paths: Vec::new(),
            size_bytes: plan.size_bytes,
            due_s: plan.due_s,
            attempts: 0,
            forgiven: 0,
            failed: 0,
            is_suspect: false,
        }
    }

    fn tried_plan(&self, plan: &TriedPlan) -> MergePlan {
        let records = plan.paths.iter().filter_map(|path| self.record(path));
        let records: Vec<_> = records.filter(|file| file.set_aside.is_none()).collect();
        MergePlan {
            id: plan.id.clone(),
            queue: self.queue(plan.iteration, plan.writer.clone()),
            paths: records.iter().map(|file| file.entry.path.clone()).collect(),
            refused_paths: Vec::new(),
            size_bytes: records.iter().map(|file| file.entry.size_bytes).sum(),
            due_s: plan.due_s,
            attempts: plan.attempts,
            forgiven: plan.forgiven,
            failed: plan.failed,
            is_suspect: plan.is_suspect,
        }
    }

    /// Takes the first due plan of a queue; returns it with the lease's token. The attempt is on
    /// disk before any work starts.
    pub(super) fn claim(
        &mut self,
        queue: &MergeQueue,
        policy: &Policy,
        now_s: i64,
        lease: Duration,
    ) -> Result<Option<(MergePlan, String)>, CatalogError> {
        self.reload_if_changed()?;
        let due = self
            .plans(policy, Some(queue.iteration))
            .into_iter()
            .filter(|plan| plan.queue.writer == queue.writer && plan.due_s <= now_s);
        let Some(mut plan) = due.min_by_key(|plan| plan.due_s) else {
            return Ok(None);
        };
        plan.attempts = plan.attempts.saturating_add(1);
        let tried = TriedPlan {
            id: plan.id.clone(),
            iteration: plan.queue.iteration,
            writer: plan.queue.writer.clone(),
            paths: plan.paths.clone(),
            due_s: plan.due_s,
            attempts: plan.attempts,
            forgiven: plan.forgiven,
            failed: plan.failed,
            is_suspect: plan.is_suspect,
        };
        self.change(|metadata| {
            metadata.plans.retain(|known| known.id != tried.id);
            metadata.plans.push(tried);
        })?;
        let token = self.merges.take(&plan.paths, lease);
        Ok(Some((plan, token)))
    }

    pub(super) fn lease_lost(&self) -> CatalogError {
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
        plan: &PlanId,
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
            let output = commit.output.as_ref().map(|output| &output.path);
            remove_files(metadata, &commit.sources, due_s, output);
            for bad in &commit.set_aside {
                set_aside(metadata, &[&bad.path], &bad.reason, None);
            }
            metadata.plans.retain(|known| known.id != *plan);
        })?;
        // A plan that changed nothing would be due again at once.
        let changed_nothing = commit.output.is_none() && commit.set_aside.is_empty();
        self.merges
            .end(token, changed_nothing.then_some(NOTHING_DONE_DELAY));
        Ok(CommitOutcome::Committed)
    }

    /// Frees the files of a claim after `delay`, removes the outputs that it announced, and counts
    /// how the attempt ended, also when its lease was lost.
    pub(super) fn give_back(
        &mut self,
        claim: &ClaimedMerge,
        announced: &[DataPath],
        delay: Duration,
        as_what: GivenBack,
    ) -> Result<(), CatalogError> {
        let was_held = self.merges.end(&claim.lease.token, Some(delay));
        self.remove_announced(announced)?;
        if was_held || as_what == GivenBack::Forgiven {
            self.change(|metadata| {
                let mut plans = metadata.plans.iter_mut();
                if let Some(plan) = plans.find(|plan| plan.id == claim.plan.id) {
                    match as_what {
                        GivenBack::Forgiven => plan.forgiven = plan.forgiven.saturating_add(1),
                        GivenBack::Failed => plan.failed = plan.failed.saturating_add(1),
                    }
                }
            })?;
        }
        if was_held {
            Ok(())
        } else {
            Err(self.lease_lost())
        }
    }

    pub(super) fn split(
        &mut self,
        claim: &ClaimedMerge,
        announced: &[DataPath],
        parts: &[PlanPart],
        now_s: i64,
    ) -> Result<(), CatalogError> {
        if self.merges.paths(&claim.lease.token).is_none() {
            return Err(self.lease_lost());
        }
        self.remove_announced(announced)?;
        let parts: Vec<TriedPlan> = parts
            .iter()
            .map(|part| TriedPlan {
                id: PlanId::random(),
                iteration: claim.plan.queue.iteration,
                writer: claim.plan.queue.writer.clone(),
                paths: part.paths.clone(),
                due_s: now_s,
                attempts: 0,
                forgiven: 0,
                failed: 0,
                is_suspect: true,
            })
            .collect();
        self.change(|metadata| {
            metadata.plans.retain(|known| known.id != claim.plan.id);
            metadata.plans.extend(parts);
        })?;
        self.merges.end(&claim.lease.token, None);
        Ok(())
    }

    pub(super) fn fail(
        &mut self,
        token: &str,
        plan: &PlanId,
        announced: &[DataPath],
        reason: &str,
    ) -> Result<(), CatalogError> {
        let paths = self.merges.paths(token).ok_or_else(|| self.lease_lost())?;
        self.remove_announced(announced)?;
        self.change(|metadata| {
            let paths: Vec<&DataPath> = paths.iter().collect();
            set_aside(metadata, &paths, reason, Some(plan));
            metadata.plans.retain(|known| known.id != *plan);
        })?;
        self.merges.end(token, None);
        Ok(())
    }
}
