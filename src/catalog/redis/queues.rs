//! The queues: what is due, and who works on it.

use std::{collections::BTreeSet, time::Duration};

use super::{
    RedisCatalog,
    keys::{self, DropQueue, ListState},
    lease_of, scripts, wire,
};
use crate::{
    catalog::{CatalogError, QueueDepths},
    model::{ClaimedDrop, ClaimedMerge, Iteration, MergePlan, MergeQueue},
};

/// Due plans taken from one list in one look.
const PEEK_PLANS_MAX: usize = 128;
/// Items of one queue that are claimed only to be set aside, in one call.
const UNUSABLE_ITEMS_MAX: usize = 16;
/// Deletes that one call of the script hands out.
const CLAIM_DROPS_MAX: usize = 500;
/// Commands in one round trip.
const PIPELINE_MAX: usize = 1000;

impl RedisCatalog {
    /// Whatever is not due stays in the server (see [`finder`](super::finder)).
    pub(super) async fn find_due_merges(
        &self,
        iteration: Iteration,
        limit: usize,
    ) -> Result<Vec<MergePlan>, CatalogError> {
        let per_list = PEEK_PLANS_MAX.min(limit.max(1));
        let mut due = Vec::new();
        for (key, text) in self.find_due_items(iteration, per_list).await? {
            let Some((queue, _)) = keys::parse_merge_list(&key) else {
                let reason = "the key names no usable merge queue";
                self.reports.warn_once(&key, reason);
                continue;
            };
            due.push(match wire::plan_from_json(&text, &queue) {
                Ok(plan) => plan,
                // Shown as an empty plan, so that a claim comes and sets it aside.
                Err(reason) => {
                    self.reports.warn_once(&key, &reason);
                    unusable_plan(queue)
                }
            });
        }
        due.sort_by_key(|plan| plan.due_s);
        due.truncate(limit);
        Ok(due)
    }

    /// A plan that cannot be used is set aside with its reason, and the next one is taken.
    pub(super) async fn claim_one_merge(
        &self,
        queue: &MergeQueue,
        lease: Duration,
    ) -> Result<Option<ClaimedMerge>, CatalogError> {
        let keys = keys::merge_keys(queue);
        for _ in 0..UNUSABLE_ITEMS_MAX {
            let Some(token) = scripts::get_merge_plan(&self.connection, &keys, lease).await? else {
                return Ok(None);
            };
            match wire::plan_from_json(&token, queue) {
                Ok(plan) => {
                    let lease = lease_of(token, &queue.to_string())?;
                    return Ok(Some(ClaimedMerge { plan, lease }));
                }
                Err(reason) => {
                    let list = keys::merge_list(queue, ListState::Failed);
                    self.reports.warn_once(&list, &reason);
                    scripts::fail_plan(&self.connection, &keys, &token, &reason).await?;
                }
            }
        }
        Ok(None)
    }

    pub(super) async fn claim_due_drops(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<ClaimedDrop>, CatalogError> {
        let policy = self.rules().policy.clone();
        let mut queues = BTreeSet::new();
        for key in self.scan("looking for deletes", keys::DROP_PATTERN).await? {
            match keys::parse_drop_list(&key) {
                Some((queue, state)) => {
                    if state != ListState::Failed && policy.serves(&queue.writer) {
                        queues.insert(queue);
                    }
                }
                None => self
                    .reports
                    .warn_once(&key, "the key names no usable queue of deletes"),
            }
        }
        let mut queues: Vec<DropQueue> = queues.into_iter().collect();
        // No queue may wait for ever behind a busy one.
        fastrand::shuffle(&mut queues);
        let mut claimed = Vec::new();
        for queue in queues {
            if claimed.len() >= limit {
                break;
            }
            let wanted = (limit - claimed.len()).min(CLAIM_DROPS_MAX);
            match self.claim_drops_of(&queue, wanted, lease).await {
                Ok(more) => claimed.extend(more),
                Err(error) if claimed.is_empty() => return Err(error),
                // What was claimed before must be worked on.
                Err(error) => {
                    tracing::warn!(%error, table = %queue.table, "deletes could not be claimed");
                    break;
                }
            }
        }
        Ok(claimed)
    }

    async fn claim_drops_of(
        &self,
        queue: &DropQueue,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<ClaimedDrop>, CatalogError> {
        let keys = keys::drop_keys(queue);
        let mut claimed = Vec::new();
        for token in scripts::claim_drops(&self.connection, &keys, lease, limit).await? {
            match wire::drop_from_json(&token, queue) {
                Ok(item) => {
                    let lease = lease_of(token, item.path.as_str())?;
                    claimed.push(ClaimedDrop { item, lease });
                }
                Err(reason) => {
                    let list = keys::drop_list(queue, ListState::Failed);
                    self.reports.warn_once(&list, &reason);
                    scripts::fail_plan(&self.connection, &keys, &token, &reason).await?;
                }
            }
        }
        Ok(claimed)
    }

    pub(super) async fn count_queues(&self) -> Result<QueueDepths, CatalogError> {
        let context = "counting queues";
        let mut lists = self.scan(context, keys::MERGE_PATTERN).await?;
        let merge_lists_count = lists.len();
        lists.extend(self.scan(context, keys::DROP_PATTERN).await?);
        let states: Vec<Option<ListState>> = lists
            .iter()
            .map(|key| ListState::split(key).map(|(_, state)| state))
            .collect();
        let mut depths = QueueDepths::default();
        let mut place = 0;
        for lists in lists.chunks(PIPELINE_MAX) {
            let mut pipeline = redis::pipe();
            for list in lists {
                pipeline.cmd("LLEN").arg(list);
            }
            let counts: Vec<u64> = self.connection.query_all(context, &pipeline).await?;
            for count in counts {
                let is_merge = place < merge_lists_count;
                let sum = match (states[place], is_merge) {
                    (Some(ListState::Idle), true) => &mut depths.merges_idle_count,
                    (Some(ListState::Processing), true) => &mut depths.merges_processing_count,
                    (Some(ListState::Idle), false) => &mut depths.drops_idle_count,
                    (Some(ListState::Processing), false) => &mut depths.drops_processing_count,
                    (Some(ListState::Failed), _) => &mut depths.failed_count,
                    (None, _) => &mut 0,
                };
                *sum += count;
                place += 1;
            }
        }
        Ok(depths)
    }
}

/// The queue that a claimed delete came from.
pub(super) fn drop_queue_of(claim: &ClaimedDrop) -> DropQueue {
    DropQueue {
        table: claim.item.table.clone(),
        layer: claim.item.layer.clone(),
        writer: claim.item.writer.clone(),
    }
}

fn unusable_plan(queue: MergeQueue) -> MergePlan {
    MergePlan {
        id: crate::model::PlanId::new(""),
        queue,
        paths: Vec::new(),
        refused_paths: Vec::new(),
        size_bytes: 0,
        due_s: 0,
        attempts: 0,
    }
}
