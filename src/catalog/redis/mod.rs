//! The catalog in Redis, shared with writers, readers and compactors of other makes.
//!
//! Every change is one call of one script (`lua/`), so it happens completely or not at all;
//! the keyspace is described in `lua/README.md`. Nothing is done in several calls that another
//! program could see half of.

mod audit;
mod audit_pages;
mod calls;
mod connection;
mod deletes;
mod endpoint;
mod finder;
mod heads;
mod index;
mod json_fields;
mod keys;
mod leftovers;
mod moves;
mod pieces;
mod planning_rules;
mod quarantine;
mod query;
mod queues;
mod replaced;
mod report;
mod scan;
mod script_texts;
pub mod scripts;
mod wire;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use self::{connection::Connection, planning_rules::PlanningRules, report::Reports};
use super::{CatalogError, CommitOutcome, Policy};
use crate::{config::RedisConfig, model::Lease};

/// How often a commit is sent when its reply is lost; a repeated one is recognized.
const COMMIT_TRIES_MAX: u32 = 5;
/// Pause before a commit is sent again; grows with each try.
const COMMIT_PAUSE: Duration = Duration::from_millis(200);

/// A [`Catalog`](super::Catalog) in Redis 6.2 or newer, or Valkey.
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
            planning: PlanningRules::new(&policy),
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
}

/// Sends a commit until it is answered. After an answer was lost, a lost lease says nothing any more.
async fn resend<T: Future<Output = Result<CommitOutcome, CatalogError>>>(
    connection: &Connection,
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
                let reason = "an answer was lost, and the plan is not ours any more".to_owned();
                return Err(connection.unavailable(context, reason));
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
