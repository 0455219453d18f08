//! The catalog in Redis, shared with writers, readers and compactors of other makes.
//!
//! Every change is one call of one script (`lua/`), so it happens completely or not at all;
//! the keyspace is described in `lua/README.md`. Nothing is done in several calls that another
//! program could see half of.

mod audit;
mod audit_pages;
mod connection;
mod deletes;
mod endpoint;
mod finder;
mod index;
mod keys;
mod leftovers;
mod moves;
mod quarantine;
mod query;
mod queues;
mod replaced;
mod report;
pub mod scripts;
mod wire;

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;

use self::{
    connection::Connection,
    report::Reports,
    scripts::{CommitCall, CountAs, ListEnd, PlanningRules},
    wire::EntryCommand,
};
use super::{
    BROUGHT_BACK, Catalog, CatalogError, CommitOutcome, DeadOutput, DropState, EntryFilter,
    EntryStream, MergeCommit, MoveCommit, Policy, QueueDepths, Refreshed, Replacement, Retried,
    Undeleted,
};
use crate::{
    config::RedisConfig,
    model::{
        ClaimedDrop, ClaimedMerge, ClaimedMove, DataPath, Folder, IndexEntry, Iteration, LayerName,
        Lease, MergePlan, MergeQueue, PlanPart, Quarantined, TableRef,
    },
};

/// How often a commit is sent when its reply is lost; a repeated one is recognized.
const COMMIT_TRIES_MAX: u32 = 5;
/// Pause before a commit is sent again; grows with each try.
const COMMIT_PAUSE: Duration = Duration::from_millis(200);
/// Keys that one `SCAN` looks at.
const SCAN_COUNT: usize = 5000;
/// Rounds of one `SCAN`, so that it ends even while keys are made faster than they are read.
const SCAN_ROUNDS_MAX: usize = 100_000;

/// A [`Catalog`] in Redis 6.2 or newer, or Valkey.
#[derive(Debug)]
pub struct RedisCatalog {
    connection: Connection,
    rules: RwLock<Arc<Rules>>,
    reports: Reports,
    finder: tokio::sync::Mutex<finder::Finder>,
    move_queues: tokio::sync::Mutex<moves::Queues>,
}

#[derive(Debug)]
struct Rules {
    policy: Arc<Policy>,
    planning: PlanningRules,
}

impl Rules {
    fn new(policy: Arc<Policy>) -> Arc<Self> {
        Arc::new(Self {
            planning: PlanningRules {
                levels_json: wire::levels_to_json(&policy),
                layers_json: wire::layers_to_json(&policy),
            },
            policy,
        })
    }
}

impl RedisCatalog {
    /// Prepares a catalog. The server is asked by the first call, and again after it was away:
    /// until it answers, calls return [`CatalogError::Unavailable`].
    ///
    /// # Errors
    /// [`CatalogError::Refused`] when the URL cannot be used.
    pub fn connect(config: &RedisConfig, policy: Arc<Policy>) -> Result<Self, CatalogError> {
        Ok(Self {
            connection: Connection::new(config)?,
            rules: RwLock::new(Rules::new(policy)),
            reports: Reports::default(),
            finder: tokio::sync::Mutex::default(),
            move_queues: tokio::sync::Mutex::default(),
        })
    }

    fn rules(&self) -> Arc<Rules> {
        self.rules
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

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

    /// Every key that matches, each once, sorted. Keys that are not text are none of ours.
    async fn scan(&self, context: &str, pattern: &str) -> Result<Vec<String>, CatalogError> {
        let mut found = self.scan_as_stored(context, pattern).await?;
        found.sort_unstable();
        Ok(found)
    }

    /// In the order in which the server has them: so they are also read fastest.
    async fn scan_as_stored(
        &self,
        context: &str,
        pattern: &str,
    ) -> Result<Vec<String>, CatalogError> {
        let mut found = Vec::new();
        let mut cursor = 0_u64;
        for _ in 0..SCAN_ROUNDS_MAX {
            let (next, page): (u64, Vec<Vec<u8>>) = self
                .connection
                .query(
                    context,
                    redis::cmd("SCAN")
                        .arg(cursor)
                        .arg("MATCH")
                        .arg(pattern)
                        .arg("COUNT")
                        .arg(SCAN_COUNT),
                )
                .await?;
            found.extend(page.into_iter().filter_map(|key| self.text_of(key)));
            cursor = next;
            if cursor == 0 {
                return Ok(each_once(found, |key| key));
            }
        }
        Err(scan_never_ends(context))
    }

    fn text_of(&self, key: Vec<u8>) -> Option<String> {
        String::from_utf8(key)
            .inspect_err(|error| {
                self.reports
                    .warn_once(&error.to_string(), "the key is not UTF-8");
            })
            .ok()
    }
}

/// Leaves out what `SCAN` told twice.
fn each_once<T>(found: Vec<T>, key: impl Fn(&T) -> &String) -> Vec<T> {
    let mut seen = HashSet::with_capacity(found.len());
    let is_first: Vec<bool> = found.iter().map(|one| seen.insert(key(one))).collect();
    let mut is_first = is_first.into_iter();
    let mut found = found;
    found.retain(|_| is_first.next().unwrap_or(true));
    found
}

fn scan_never_ends(context: &str) -> CatalogError {
    CatalogError::Unavailable {
        context: context.to_owned(),
        reason: "keys are made faster than they can be listed".to_owned(),
    }
}

/// Sends a commit until it is answered. After an answer was lost, a lost lease says nothing any more.
async fn resend<T: Future<Output = Result<CommitOutcome, CatalogError>>>(
    context: &str,
    plan: &str,
    send: impl Fn() -> T,
) -> Result<CommitOutcome, CatalogError> {
    let mut tries = 1;
    loop {
        match send().await {
            Err(CatalogError::Unavailable { reason, .. }) if tries < COMMIT_TRIES_MAX => {
                tracing::warn!(plan, reason, tries, "commit is sent again");
                tokio::time::sleep(COMMIT_PAUSE * tries).await;
                tries += 1;
            }
            // The lost call may have committed, and the output been merged further since.
            Ok(CommitOutcome::LeaseLost) if tries > 1 => {
                return Err(CatalogError::Unavailable {
                    context: context.to_owned(),
                    reason: "an answer was lost, and the plan is not ours any more".to_owned(),
                });
            }
            outcome => return outcome,
        }
    }
}

fn lease_lost(what: &dyn std::fmt::Display) -> CatalogError {
    CatalogError::LeaseLost {
        what: what.to_string(),
    }
}

fn lease_of(token: String, place: &str) -> Result<Lease, CatalogError> {
    match wire::due_s_of(&token) {
        Ok(expires_at_s) => Ok(Lease {
            token,
            expires_at_s,
        }),
        Err(reason) => Err(CatalogError::Malformed {
            place: place.to_owned(),
            reason,
        }),
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
        resend("committing a merge", claim.plan.id.as_str(), || {
            scripts::end_merge(&self.connection, &keys, &call)
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
