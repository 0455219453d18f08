//! Files whose time in their layer is over: who may claim which, and how their moves end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    RedisCatalog,
    keys::{self, FileQueue, FileWork, ListState},
    lease_lost,
    queues::lease_from,
    resend, script_texts,
    scripts::{self, CountAs},
    wire,
};
use crate::{
    catalog::{CatalogError, CommitOutcome, MoveCommit, Policy},
    model::{ClaimedMove, DataPath, LayerName},
};

/// Queues are looked for again after this time, however much is left in those that are known: a
/// look goes through all keys, and moves are claimed one by one.
const QUEUES_KEPT: Duration = Duration::from_secs(10);

/// Queues that may hold due moves.
#[derive(Debug, Default)]
pub(super) struct Queues {
    found_at: Option<Instant>,
    left: Vec<FileQueue>,
}

/// The values of `layer_to` of items in a layer that may be claimed, as the script takes them. The
/// layer itself is among them: such an item is refused by name.
pub(super) fn served_layers(policy: &Policy, from: &LayerName) -> String {
    let mut served: Vec<&str> = policy
        .layers
        .iter()
        .map(|layer| layer.name.as_str())
        .collect();
    // Nothing is deleted that the settings of this program do not limit.
    if policy
        .layers
        .iter()
        .any(|layer| layer.name == *from && layer.ttl.is_some())
    {
        served.push("");
    }
    json!(served).to_string()
}

/// The queue that a claimed move came from.
pub(super) fn queue_of(claim: &ClaimedMove) -> FileQueue {
    FileQueue {
        work: FileWork::Move,
        table: claim.item.table.clone(),
        layer: claim.item.layer_from.clone(),
        writer: claim.item.writer.clone(),
    }
}

impl RedisCatalog {
    pub(super) async fn claim_due_moves(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<ClaimedMove>, CatalogError> {
        let parse = |token: &str, queue: &FileQueue| {
            let item = wire::move_from_json(token, queue)?;
            let lease = lease_from(token)?;
            Ok(ClaimedMove { item, lease })
        };
        let mut queues = self.move_queues.lock().await;
        if queues.found_at.is_some_and(|at| at.elapsed() < QUEUES_KEPT) {
            let claimed = self.claim_files(&mut queues.left, limit, lease, parse);
            let claimed = claimed.await?;
            if !claimed.is_empty() {
                return Ok(claimed);
            }
        }
        queues.left = self.find_move_queues().await?;
        queues.found_at = Some(Instant::now());
        self.claim_files(&mut queues.left, limit, lease, parse)
            .await
    }

    /// Those of layers that are configured; the others are their owners'.
    async fn find_move_queues(&self) -> Result<Vec<FileQueue>, CatalogError> {
        let policy = self.rules().policy.clone();
        let mut queues = self.find_file_queues(FileWork::Move).await?;
        let mut served = Vec::with_capacity(queues.len());
        for queue in queues.drain(..) {
            if policy.layers.iter().any(|layer| layer.name == queue.layer) {
                self.report_unserved(&policy, &queue).await?;
                served.push(queue);
            } else {
                let list = keys::file_list(&queue, ListState::Idle);
                let reason = "moves out of a layer that is not configured are left to others";
                self.reports.warn_once(&list, reason);
            }
        }
        Ok(served)
    }

    /// Says once where the first waiting item of a queue is left to others.
    async fn report_unserved(
        &self,
        policy: &Policy,
        queue: &FileQueue,
    ) -> Result<(), CatalogError> {
        let list = keys::file_list(queue, ListState::Idle);
        let mut command = redis::cmd("LINDEX");
        command.arg(&list).arg(0);
        let context = "looking at waiting moves";
        let first: Option<Vec<u8>> = self.connection.query(context, &command).await?;
        let item = first.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let Some(to) = item.as_ref().and_then(|item| item["layer_to"].as_str()) else {
            return Ok(());
        };
        let reason = match to {
            "" if policy
                .layers
                .iter()
                .all(|layer| layer.name != queue.layer || layer.ttl.is_none()) =>
            {
                "files that would be deleted stay: their layer has no ttl in the settings of this program".to_owned()
            }
            "" => return Ok(()),
            to if policy.layers.iter().any(|layer| layer.name.as_str() == to) => return Ok(()),
            to => format!("moves to layer {to:?}, which is not configured, are left to others"),
        };
        self.reports.warn_once(&list, &reason);
        Ok(())
    }

    pub(super) async fn announce_copy(
        &self,
        claim: &ClaimedMove,
        layer: &LayerName,
        output: &DataPath,
    ) -> Result<(), CatalogError> {
        let keys = keys::file_keys(&queue_of(claim));
        let (token, layer) = (&claim.lease.token, Some(layer.as_str()));
        if scripts::announce_output(&self.connection, &keys, token, output.as_str(), layer).await? {
            Ok(())
        } else {
            Err(lease_lost(&claim.item.path_from))
        }
    }

    /// As [`commit_merge`](crate::catalog::Catalog::commit_merge): a repeated call is recognized.
    pub(super) async fn end_move(
        &self,
        claim: &ClaimedMove,
        commit: &MoveCommit,
    ) -> Result<CommitOutcome, CatalogError> {
        let context = "committing a move";
        let rules = self.rules();
        let item = &claim.item;
        let keys = [
            item.table.database(),
            item.table.table(),
            item.layer_from.as_str(),
            item.writer.as_str(),
        ]
        .map(str::to_owned);
        let (path, layer) = match &commit.to {
            Some((layer, path)) => (path.as_str(), layer.as_str()),
            None => ("", ""),
        };
        let (grace, nonce) = (scripts::seconds(commit.grace), scripts::nonce());
        let planning = &rules.planning;
        let arguments = [
            claim.lease.token.as_str(),
            &grace,
            &planning.levels_json,
            &planning.layers_json,
            path,
            layer,
            &nonce,
        ];
        resend(&self.connection, context, item.id.as_str(), || async {
            let call = script_texts::END_MOVE.call(&self.connection, context, &keys, &arguments);
            let reply: Vec<String> = call.await?;
            scripts::commit_outcome(context, &reply)
        })
        .await
    }

    pub(super) async fn give_move_back(
        &self,
        claim: &ClaimedMove,
        delay: Duration,
        count_as: CountAs,
    ) -> Result<(), CatalogError> {
        let (queue, token) = (queue_of(claim), &claim.lease.token);
        self.release_file(&queue, token, delay, count_as, &claim.item.path_from)
            .await
    }

    pub(super) async fn give_move_up(
        &self,
        claim: &ClaimedMove,
        reason: &str,
    ) -> Result<(), CatalogError> {
        let keys = keys::file_keys(&queue_of(claim));
        if scripts::fail_plan(&self.connection, &keys, &claim.lease.token, reason).await? {
            Ok(())
        } else {
            Err(lease_lost(&claim.item.path_from))
        }
    }
}
