//! The queues: what is due, and who works on it.

use std::{collections::BTreeSet, time::Duration};

use super::{
    RedisCatalog,
    keys::{self, FileQueue, FileWork, ListState},
    lease_lost, lease_of,
    moves::served_layers,
    scripts::{self, CountAs, ListEnd},
    wire,
};
use crate::{
    catalog::{CatalogError, QueueDepths},
    model::{ClaimedDrop, ClaimedMerge, Iteration, Lease, MergePlan, MergeQueue},
};

/// Due plans taken from one list in one look.
const PEEK_PLANS_MAX: usize = 128;
/// Items of one queue that are claimed only to be set aside, in one call.
const UNUSABLE_ITEMS_MAX: usize = 16;
/// Deletes or moves that are claimed only to be set aside, for one claim; the next one goes on.
const UNUSABLE_FILES_MAX: usize = 1000;
/// Deletes or moves that one call of the script hands out.
const CLAIM_FILES_MAX: usize = 500;
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

    /// A plan that cannot be used is set aside with its reason, one with too many files is replaced by
    /// its [pieces](super::pieces), and the next one is taken.
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
                    let pieces = self.pieces_of(&plan).await;
                    if pieces.is_empty() {
                        let lease = lease_of(token, &queue.to_string())?;
                        return Ok(Some(ClaimedMerge { plan, lease }));
                    }
                    scripts::split_plan(&self.connection, &keys, &token, &pieces).await?;
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
        let mut queues = self.find_file_queues(FileWork::Drop).await?;
        self.claim_files(&mut queues, limit, lease, |token, queue| {
            let item = wire::drop_from_json(token, queue)?;
            let lease = lease_from(token)?;
            Ok(ClaimedDrop { item, lease })
        })
        .await
    }

    /// Queues of writers that are served, in random order: none may wait for ever behind a busy one.
    pub(super) async fn find_file_queues(
        &self,
        work: FileWork,
    ) -> Result<Vec<FileQueue>, CatalogError> {
        let policy = self.rules().policy.clone();
        let mut queues = BTreeSet::new();
        for key in self
            .scan("looking for deletes and moves", work.pattern())
            .await?
        {
            match keys::parse_file_list(&key) {
                Some((queue, state)) => {
                    if state != ListState::Failed && policy.serves(&queue.writer) {
                        queues.insert(queue);
                    }
                }
                None => self
                    .reports
                    .warn_once(&key, "the key names no usable queue of deletes or moves"),
            }
        }
        let mut queues: Vec<FileQueue> = queues.into_iter().collect();
        fastrand::shuffle(&mut queues);
        Ok(queues)
    }

    /// Takes up to `limit` items from the end of `queues`, and leaves out those queues that have no
    /// more. `parse` makes a claim of an item's text, or says why the item cannot be used.
    pub(super) async fn claim_files<T>(
        &self,
        queues: &mut Vec<FileQueue>,
        limit: usize,
        lease: Duration,
        parse: impl Fn(&str, &FileQueue) -> Result<T, String>,
    ) -> Result<Vec<T>, CatalogError> {
        let (mut claimed, mut unusable_count) = (Vec::new(), 0);
        while claimed.len() < limit
            && unusable_count < UNUSABLE_FILES_MAX
            && let Some(queue) = queues.last()
        {
            let wanted = (limit - claimed.len()).min(CLAIM_FILES_MAX);
            match self.claim_files_of(queue, wanted, lease, &parse).await {
                Ok((more, unusable)) => {
                    if more.len() + unusable < wanted {
                        queues.pop();
                    }
                    claimed.extend(more);
                    unusable_count += unusable;
                }
                Err(error) if claimed.is_empty() => return Err(error),
                // What was claimed before must be worked on.
                Err(error) => {
                    tracing::warn!(%error, table = %queue.table, "not everything due could be claimed");
                    break;
                }
            }
        }
        Ok(claimed)
    }

    /// Also says how many items could not be used and were set aside.
    async fn claim_files_of<T>(
        &self,
        queue: &FileQueue,
        limit: usize,
        lease: Duration,
        parse: impl Fn(&str, &FileQueue) -> Result<T, String>,
    ) -> Result<(Vec<T>, usize), CatalogError> {
        let keys = keys::file_keys(queue);
        let rules = self.rules();
        let layers = &rules.planning.layers_json;
        let served = match queue.work {
            FileWork::Drop => None,
            FileWork::Move => Some(served_layers(&rules.policy, &queue.layer)),
        };
        let tokens = scripts::claim_drops(
            &self.connection,
            &keys,
            lease,
            limit,
            layers,
            served.as_deref(),
        );
        let (mut claimed, mut unusable_count) = (Vec::new(), 0);
        for token in tokens.await? {
            match parse(&token, queue) {
                Ok(claim) => claimed.push(claim),
                Err(reason) => {
                    let list = keys::file_list(queue, ListState::Failed);
                    self.reports.warn_once(&list, &reason);
                    scripts::fail_plan(&self.connection, &keys, &token, &reason).await?;
                    unusable_count += 1;
                }
            }
        }
        Ok((claimed, unusable_count))
    }

    pub(super) async fn renew_file(
        &self,
        queue: &FileQueue,
        token: &str,
        lease: Duration,
        what: &(dyn std::fmt::Display + Sync),
    ) -> Result<Lease, CatalogError> {
        let keys = keys::file_keys(queue);
        match scripts::renew_lease(&self.connection, &keys, token, lease).await? {
            Some(token) => lease_of(token, &what.to_string()),
            None => Err(lease_lost(what)),
        }
    }

    pub(super) async fn release_file(
        &self,
        queue: &FileQueue,
        token: &str,
        delay: Duration,
        count_as: CountAs,
        what: &(dyn std::fmt::Display + Sync),
    ) -> Result<(), CatalogError> {
        let keys = keys::file_keys(queue);
        // At the tail: a file that cannot be worked on must not stand before the others.
        let end = ListEnd::Tail;
        if scripts::release_plan(&self.connection, &keys, token, delay, end, count_as).await? {
            Ok(())
        } else {
            Err(lease_lost(what))
        }
    }

    pub(super) async fn finish_file(
        &self,
        queue: &FileQueue,
        token: &str,
        what: &(dyn std::fmt::Display + Sync),
    ) -> Result<(), CatalogError> {
        let list = keys::file_list(queue, ListState::Processing);
        let mut command = redis::cmd("LREM");
        command.arg(list).arg(1).arg(token);
        match self
            .connection
            .query("ending a delete or move", &command)
            .await?
        {
            0 => Err(lease_lost(what)),
            _ => Ok(()),
        }
    }

    pub(super) async fn count_queues(&self) -> Result<QueueDepths, CatalogError> {
        let context = "counting queues";
        let mut depths = QueueDepths::default();
        for kind in [QueueKind::Merge, QueueKind::Drop, QueueKind::Move] {
            let lists: Vec<(String, ListState)> = self
                .scan(context, kind.pattern())
                .await?
                .into_iter()
                .filter_map(|key| {
                    ListState::split(&key)
                        .map(|(_, state)| state)
                        .map(|state| (key, state))
                })
                .collect();
            for lists in lists.chunks(PIPELINE_MAX) {
                let mut pipeline = redis::pipe();
                for (list, _) in lists {
                    pipeline.cmd("LLEN").arg(list);
                }
                let counts: Vec<u64> = self.connection.query_all(context, &pipeline).await?;
                for ((_, state), count) in lists.iter().zip(counts) {
                    *kind.sum(&mut depths, *state) += count;
                }
            }
        }
        Ok(depths)
    }
}

#[derive(Clone, Copy)]
enum QueueKind {
    Merge,
    Drop,
    Move,
}

impl QueueKind {
    fn pattern(self) -> &'static str {
        match self {
            Self::Merge => keys::MERGE_PATTERN,
            Self::Drop => FileWork::Drop.pattern(),
            Self::Move => FileWork::Move.pattern(),
        }
    }

    fn sum(self, depths: &mut QueueDepths, state: ListState) -> &mut u64 {
        match (self, state) {
            (Self::Merge, ListState::Idle) => &mut depths.merges_idle_count,
            (Self::Merge, ListState::Processing) => &mut depths.merges_processing_count,
            (Self::Drop, ListState::Idle) => &mut depths.drops_idle_count,
            (Self::Drop, ListState::Processing) => &mut depths.drops_processing_count,
            (Self::Move, ListState::Idle) => &mut depths.moves_idle_count,
            (Self::Move, ListState::Processing) => &mut depths.moves_processing_count,
            (_, ListState::Failed) => &mut depths.failed_count,
        }
    }
}

/// The queue that a claimed delete came from.
pub(super) fn drop_queue_of(claim: &ClaimedDrop) -> FileQueue {
    FileQueue {
        work: FileWork::Drop,
        table: claim.item.table.clone(),
        layer: claim.item.layer.clone(),
        writer: claim.item.writer.clone(),
    }
}

/// The lease that an item's text stands for.
pub(super) fn lease_from(token: &str) -> Result<Lease, String> {
    Ok(Lease {
        expires_at_s: wire::due_s_of(token)?,
        token: token.to_owned(),
    })
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
        forgiven: 0,
        failed: 0,
        is_suspect: false,
    }
}
