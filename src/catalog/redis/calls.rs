//! The calls of the trait, most of them one call of a script.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    RedisCatalog, Rules, keys, lease_lost, lease_of, moves, queues, resend,
    scripts::{self, CommitCall, CountAs, ListEnd},
    wire::{self, EntryCommand},
};
use crate::{
    catalog::{
        BROUGHT_BACK, Catalog, CatalogError, CommitOutcome, DeadOutput, DropState, EntryFilter,
        EntryStream, MergeCommit, MoveCommit, Policy, QueueDepths, Refreshed, Replacement, Retried,
        Undeleted,
    },
    model::{
        ClaimedDrop, ClaimedMerge, ClaimedMove, DataPath, Folder, IndexEntry, Iteration, LayerName,
        Lease, MergePlan, MergeQueue, PlanPart, Quarantined, TableRef,
    },
};

impl RedisCatalog {
    async fn give_back(
        &self,
        claim: &ClaimedMerge,
        delay: Duration,
        count_as: CountAs,
    ) -> Result<(), CatalogError> {
        let queue = &claim.plan.queue;
        let keys = keys::merge_keys(queue);
        let (token, end) = (&claim.lease.token, ListEnd::Head);
        if scripts::release_plan(&self.connection, &keys, token, delay, end, count_as).await? {
            Ok(())
        } else {
            Err(lease_lost(queue))
        }
    }
}

#[async_trait]
impl Catalog for RedisCatalog {
    fn set_policy(&self, policy: Arc<Policy>) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Rules::new(policy);
    }

    async fn ping(&self) -> Result<(), CatalogError> {
        self.connection
            .query::<String>("asking whether Redis is there", &redis::cmd("PING"))
            .await
            .map(drop)
    }

    async fn tables(&self) -> Result<Vec<TableRef>, CatalogError> {
        self.list_tables().await
    }

    async fn folders(&self, table: &TableRef) -> Result<Vec<Folder>, CatalogError> {
        self.list_folders(table).await
    }

    async fn get(
        &self,
        table: &TableRef,
        layer: &LayerName,
        path: &DataPath,
    ) -> Result<Option<IndexEntry>, CatalogError> {
        let rules = self.rules();
        let name = |layer: &LayerName| match layer.as_str() {
            "" => rules
                .policy
                .layers
                .first()
                .map(|first| first.name.clone())
                .unwrap_or_default(),
            _ => layer.clone(),
        };
        let found = self.look_up(table, std::slice::from_ref(path)).await?;
        Ok(found
            .into_iter()
            .flatten()
            .find(|entry| name(&entry.layer) == name(layer)))
    }

    fn query<'a>(&'a self, table: &TableRef, filter: &EntryFilter) -> EntryStream<'a> {
        self.stream_entries(table, filter)
    }

    async fn resolve(
        &self,
        table: &TableRef,
        paths: &[DataPath],
    ) -> Result<Vec<Option<IndexEntry>>, CatalogError> {
        self.look_up(table, paths).await
    }

    async fn batch(&self, add: &[IndexEntry], remove: &[IndexEntry]) -> Result<(), CatalogError> {
        self.patch(add, remove).await
    }

    async fn batch_atomic(
        &self,
        add: &[IndexEntry],
        remove: &[IndexEntry],
    ) -> Result<(), CatalogError> {
        self.patch_at_once(add, remove).await
    }

    async fn refresh(&self) -> Result<Refreshed, CatalogError> {
        Ok(Refreshed::default())
    }

    async fn due_merges(
        &self,
        iteration: Iteration,
        limit: usize,
    ) -> Result<Vec<MergePlan>, CatalogError> {
        self.find_due_merges(iteration, limit).await
    }

    async fn claim_merge(
        &self,
        queue: &MergeQueue,
        lease: Duration,
    ) -> Result<Option<ClaimedMerge>, CatalogError> {
        self.claim_one_merge(queue, lease).await
    }

    async fn renew_merge(
        &self,
        claim: &ClaimedMerge,
        lease: Duration,
    ) -> Result<Lease, CatalogError> {
        let queue = &claim.plan.queue;
        let keys = keys::merge_keys(queue);
        match scripts::renew_lease(&self.connection, &keys, &claim.lease.token, lease).await? {
            Some(token) => lease_of(token, &queue.to_string()),
            None => Err(lease_lost(queue)),
        }
    }

    async fn announce_output(
        &self,
        claim: &ClaimedMerge,
        output: &DataPath,
    ) -> Result<(), CatalogError> {
        let queue = &claim.plan.queue;
        let keys = keys::merge_keys(queue);
        let token = &claim.lease.token;
        if scripts::announce_output(&self.connection, &keys, token, output.as_str(), None).await? {
            Ok(())
        } else {
            Err(lease_lost(queue))
        }
    }

    /// Sent again when its reply is lost: the script recognizes a commit that was done.
    /// [`CatalogError::Unavailable`] means that the truth is not known; no bytes may be removed
    /// then.
    async fn commit_merge(
        &self,
        claim: &ClaimedMerge,
        commit: &MergeCommit,
    ) -> Result<CommitOutcome, CatalogError> {
        let rules = self.rules();
        let output = commit
            .output
            .as_ref()
            .map(|entry| wire::entry_to_json(entry, EntryCommand::Add))
            .unwrap_or_default();
        let sources: Vec<&str> = commit.sources.iter().map(DataPath::as_str).collect();
        let set_aside: Vec<(&str, &str)> = commit
            .set_aside
            .iter()
            .map(|aside| (aside.path.as_str(), aside.reason.as_str()))
            .collect();
        let call = CommitCall {
            plan_id: claim.plan.id.as_str(),
            token: &claim.lease.token,
            grace: commit.grace,
            rules: &rules.planning,
            output: &output,
            sources: &sources,
            set_aside: &set_aside,
        };
        let keys = keys::merge_keys(&claim.plan.queue);
        let (connection, context) = (&self.connection, "committing a merge");
        resend(connection, context, claim.plan.id.as_str(), || {
            scripts::end_merge(connection, &keys, &call)
        })
        .await
    }

    async fn release_merge(
        &self,
        claim: &ClaimedMerge,
        delay: Duration,
    ) -> Result<(), CatalogError> {
        self.give_back(claim, delay, CountAs::Forgiven).await
    }

    async fn retry_merge(&self, claim: &ClaimedMerge, delay: Duration) -> Result<(), CatalogError> {
        self.give_back(claim, delay, CountAs::Failed).await
    }

    async fn split_merge(
        &self,
        claim: &ClaimedMerge,
        parts: &[PlanPart],
    ) -> Result<(), CatalogError> {
        let queue = &claim.plan.queue;
        let keys = keys::merge_keys(queue);
        let parts: Vec<String> = parts
            .iter()
            .map(|part| wire::part_to_json(part, true))
            .collect();
        if scripts::split_plan(&self.connection, &keys, &claim.lease.token, &parts).await? {
            Ok(())
        } else {
            Err(lease_lost(queue))
        }
    }

    async fn fail_merge(&self, claim: &ClaimedMerge, reason: &str) -> Result<(), CatalogError> {
        let queue = &claim.plan.queue;
        let keys = keys::merge_keys(queue);
        if scripts::fail_plan(&self.connection, &keys, &claim.lease.token, reason).await? {
            Ok(())
        } else {
            Err(lease_lost(queue))
        }
    }

    async fn quarantine(&self, table: Option<&TableRef>) -> Result<Vec<Quarantined>, CatalogError> {
        self.list_quarantine(table).await
    }

    async fn retry_quarantined(&self, what: &Quarantined) -> Result<Retried, CatalogError> {
        self.retry(what).await
    }

    async fn drop_quarantined(
        &self,
        what: &Quarantined,
        grace: Duration,
    ) -> Result<Option<u64>, CatalogError> {
        self.drop_aside(what, grace).await
    }

    async fn claim_drops(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<ClaimedDrop>, CatalogError> {
        self.claim_due_drops(limit, lease).await
    }

    async fn look_up_drop(&self, claim: &ClaimedDrop) -> Result<DropState, CatalogError> {
        self.look_up_held(claim).await
    }

    async fn finish_drop(&self, claim: &ClaimedDrop) -> Result<(), CatalogError> {
        let queue = queues::drop_queue_of(claim);
        self.finish_file(&queue, &claim.lease.token, &claim.item.path)
            .await
    }

    async fn finish_drops(&self, claims: &[ClaimedDrop]) -> Result<(), CatalogError> {
        self.finish_held(claims).await
    }

    async fn renew_drop(
        &self,
        claim: &ClaimedDrop,
        lease: Duration,
    ) -> Result<Lease, CatalogError> {
        let queue = queues::drop_queue_of(claim);
        self.renew_file(&queue, &claim.lease.token, lease, &claim.item.path)
            .await
    }

    async fn release_drop(&self, claim: &ClaimedDrop, delay: Duration) -> Result<(), CatalogError> {
        let queue = queues::drop_queue_of(claim);
        let (token, count_as) = (&claim.lease.token, CountAs::Nothing);
        self.release_file(&queue, token, delay, count_as, &claim.item.path)
            .await
    }

    async fn claim_moves(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<ClaimedMove>, CatalogError> {
        self.claim_due_moves(limit, lease).await
    }

    async fn renew_move(
        &self,
        claim: &ClaimedMove,
        lease: Duration,
    ) -> Result<Lease, CatalogError> {
        let queue = moves::queue_of(claim);
        self.renew_file(&queue, &claim.lease.token, lease, &claim.item.path_from)
            .await
    }

    async fn announce_move(
        &self,
        claim: &ClaimedMove,
        layer: &LayerName,
        output: &DataPath,
    ) -> Result<(), CatalogError> {
        self.announce_copy(claim, layer, output).await
    }

    async fn commit_move(
        &self,
        claim: &ClaimedMove,
        commit: &MoveCommit,
    ) -> Result<CommitOutcome, CatalogError> {
        self.end_move(claim, commit).await
    }

    async fn release_move(&self, claim: &ClaimedMove, delay: Duration) -> Result<(), CatalogError> {
        self.give_move_back(claim, delay, CountAs::Forgiven).await
    }

    async fn retry_move(&self, claim: &ClaimedMove, delay: Duration) -> Result<(), CatalogError> {
        self.give_move_back(claim, delay, CountAs::Failed).await
    }

    async fn fail_move(&self, claim: &ClaimedMove, reason: &str) -> Result<(), CatalogError> {
        self.give_move_up(claim, reason).await
    }

    async fn finish_move(&self, claim: &ClaimedMove) -> Result<(), CatalogError> {
        let queue = moves::queue_of(claim);
        self.finish_file(&queue, &claim.lease.token, &claim.item.path_from)
            .await
    }

    async fn replacements(&self, table: &TableRef) -> Result<Vec<Replacement>, CatalogError> {
        self.find_replacements(table).await
    }

    async fn undelete(
        &self,
        replacement: &Replacement,
        grace: Duration,
    ) -> Result<Undeleted, CatalogError> {
        let Replacement {
            table,
            layer,
            writer,
            output,
            ..
        } = replacement;
        let keys = [
            table.database(),
            table.table(),
            layer.as_str(),
            writer.as_str(),
        ];
        let keys = keys.map(str::to_owned);
        scripts::undelete(
            &self.connection,
            &keys,
            output.as_str(),
            grace,
            BROUGHT_BACK,
        )
        .await
    }

    async fn dead_outputs(
        &self,
        age_min: Duration,
        limit: usize,
    ) -> Result<Vec<DeadOutput>, CatalogError> {
        self.find_dead_outputs(age_min, limit).await
    }

    async fn forget_output(&self, dead: &DeadOutput) -> Result<(), CatalogError> {
        self.forget_dead_output(dead).await
    }

    async fn queue_depths(&self) -> Result<QueueDepths, CatalogError> {
        self.count_queues().await
    }
}
