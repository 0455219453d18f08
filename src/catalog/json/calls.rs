//! The calls of the trait.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::StreamExt;

use super::{JsonCatalog, index::guard, merges::GivenBack, refresh};
use crate::{
    catalog::{
        Catalog, CatalogError, CommitOutcome, DeadOutput, DropState, EntryFilter, EntryStream,
        MergeCommit, MoveCommit, Policy, QueueDepths, Refreshed, Replacement, Retried, Undeleted,
    },
    model::{
        ClaimedDrop, ClaimedMerge, ClaimedMove, DataPath, Folder, IndexEntry, Iteration, LayerName,
        Lease, MergePlan, MergeQueue, PlanPart, Quarantined, TableRef,
    },
};

/// No move is ever handed out here.
fn not_ours(claim: &ClaimedMove) -> CatalogError {
    CatalogError::LeaseLost {
        what: claim.item.path_from.to_string(),
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

    async fn folders(&self, table: &TableRef) -> Result<Vec<Folder>, CatalogError> {
        let table = table.clone();
        self.blocking(move |inner| Ok(inner.folders(&table))).await
    }

    async fn get(
        &self,
        table: &TableRef,
        layer: &LayerName,
        path: &DataPath,
    ) -> Result<Option<IndexEntry>, CatalogError> {
        let (table, layer, path) = (table.clone(), layer.clone(), path.clone());
        self.blocking(move |inner| Ok(inner.get(&table, &layer, &path)))
            .await
    }

    fn query<'a>(&'a self, table: &TableRef, filter: &EntryFilter) -> EntryStream<'a> {
        let (table, filter) = (table.clone(), filter.clone());
        let keys = self.blocking(move |inner| Ok(inner.partition_keys(&table)));
        // A partition at a time: nothing is held while the caller works.
        let entries = futures_util::stream::once(keys)
            .flat_map(|keys| match keys {
                Ok(keys) => futures_util::stream::iter(keys.into_iter().map(Ok)).left_stream(),
                Err(error) => futures_util::stream::iter([Err(error)]).right_stream(),
            })
            .then(move |key| {
                let filter = filter.clone();
                async move {
                    let key = key?;
                    self.blocking(move |inner| Ok(inner.entries_of(&key, &filter)))
                        .await
                }
            })
            .flat_map(|found| match found {
                Ok(entries) => {
                    futures_util::stream::iter(entries.into_iter().map(Ok)).left_stream()
                }
                Err(error) => futures_util::stream::iter([Err(error)]).right_stream(),
            });
        entries.boxed()
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
        self.blocking(move |inner| inner.give_merge_back(&claim, delay, GivenBack::Forgiven))
            .await
    }

    async fn retry_merge(&self, claim: &ClaimedMerge, delay: Duration) -> Result<(), CatalogError> {
        let claim = claim.clone();
        self.blocking(move |inner| inner.give_merge_back(&claim, delay, GivenBack::Failed))
            .await
    }

    async fn split_merge(
        &self,
        claim: &ClaimedMerge,
        parts: &[PlanPart],
    ) -> Result<(), CatalogError> {
        let (claim, parts) = (claim.clone(), parts.to_vec());
        self.blocking(move |inner| inner.split_merge(&claim, &parts))
            .await
    }

    async fn fail_merge(&self, claim: &ClaimedMerge, reason: &str) -> Result<(), CatalogError> {
        let (claim, reason) = (claim.clone(), reason.to_owned());
        self.blocking(move |inner| inner.fail_merge(&claim, &reason))
            .await
    }

    async fn quarantine(&self, table: Option<&TableRef>) -> Result<Vec<Quarantined>, CatalogError> {
        let table = table.cloned();
        self.blocking(move |inner| Ok(inner.quarantine(table.as_ref())))
            .await
    }

    async fn retry_quarantined(&self, what: &Quarantined) -> Result<Retried, CatalogError> {
        let what = what.clone();
        self.blocking(move |inner| inner.retry_quarantined(&what))
            .await
    }

    async fn drop_quarantined(
        &self,
        what: &Quarantined,
        grace: Duration,
    ) -> Result<Option<u64>, CatalogError> {
        let what = what.clone();
        self.blocking(move |inner| inner.drop_quarantined(&what, grace))
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

    async fn look_up_drop(&self, claim: &ClaimedDrop) -> Result<DropState, CatalogError> {
        let claim = claim.clone();
        self.blocking(move |inner| inner.look_up_drop(&claim)).await
    }

    async fn finish_drop(&self, claim: &ClaimedDrop) -> Result<(), CatalogError> {
        self.finish_drops(std::slice::from_ref(claim)).await
    }

    async fn finish_drops(&self, claims: &[ClaimedDrop]) -> Result<(), CatalogError> {
        let claims = claims.to_vec();
        self.blocking(move |inner| inner.finish_drops(&claims))
            .await
    }

    async fn renew_drop(
        &self,
        claim: &ClaimedDrop,
        lease: Duration,
    ) -> Result<Lease, CatalogError> {
        let claim = claim.clone();
        self.blocking(move |inner| inner.renew_drop(&claim, lease))
            .await
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

    async fn announce_move(
        &self,
        claim: &ClaimedMove,
        _layer: &LayerName,
        _output: &DataPath,
    ) -> Result<(), CatalogError> {
        Err(not_ours(claim))
    }

    async fn commit_move(
        &self,
        _claim: &ClaimedMove,
        _commit: &MoveCommit,
    ) -> Result<CommitOutcome, CatalogError> {
        Ok(CommitOutcome::LeaseLost)
    }

    async fn retry_move(&self, claim: &ClaimedMove, _delay: Duration) -> Result<(), CatalogError> {
        Err(not_ours(claim))
    }

    async fn fail_move(&self, claim: &ClaimedMove, _reason: &str) -> Result<(), CatalogError> {
        Err(not_ours(claim))
    }

    async fn finish_move(&self, claim: &ClaimedMove) -> Result<(), CatalogError> {
        Err(not_ours(claim))
    }

    async fn replacements(&self, table: &TableRef) -> Result<Vec<Replacement>, CatalogError> {
        let table = table.clone();
        self.blocking(move |inner| Ok(inner.replacements(&table)))
            .await
    }

    async fn undelete(
        &self,
        replacement: &Replacement,
        grace: Duration,
    ) -> Result<Undeleted, CatalogError> {
        let replacement = replacement.clone();
        self.blocking(move |inner| inner.undelete(&replacement, grace))
            .await
    }

    async fn dead_outputs(
        &self,
        _age_min: Duration,
        limit: usize,
    ) -> Result<Vec<DeadOutput>, CatalogError> {
        self.blocking(move |inner| Ok(inner.dead_outputs(limit)))
            .await
    }

    async fn forget_output(&self, dead: &DeadOutput) -> Result<(), CatalogError> {
        let dead = dead.clone();
        self.blocking(move |inner| inner.forget_output(&dead)).await
    }

    async fn release_drop(&self, claim: &ClaimedDrop, delay: Duration) -> Result<(), CatalogError> {
        let claim = claim.clone();
        self.blocking(move |inner| inner.release_drop(&claim, delay))
            .await
    }

    fn close(&self) {
        let partitions = guard(&self.inner.partitions);
        self.inner.is_closed.store(true, Ordering::Release);
        drop(partitions);
        guard(&self.inner.locks).clear();
    }

    async fn queue_depths(&self) -> Result<QueueDepths, CatalogError> {
        self.blocking(|inner| Ok(inner.queue_depths())).await
    }
}
