//! Does the work that the catalog hands out.
//!
//! [`merge_due`](merge_task::merge_due), [`move_due`](move_task::move_due) and
//! [`delete_due`](drop_task::delete_due) run until nothing is due; who calls them when is the daemon's
//! business. They take no input but the [`WorkContext`] and leave their result in its [`Totals`].

mod budget;
mod commit;
mod dead_outputs;
mod drop_task;
mod gate;
mod hand_back;
mod janitor;
mod lease_keeper;
mod merge_end;
mod merge_run;
mod merge_task;
mod move_end;
mod move_run;
mod move_task;
mod promote;
mod published;
mod run_error;
mod sources;
mod suspects;
mod totals;

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use budget::{Budgets, merges_at_once};
pub use drop_task::delete_due;
pub use gate::Gate;
pub use janitor::{Cleaned, clean};
pub use merge_task::merge_due;
pub use move_task::{move_due, serves_moves};
pub use totals::Totals;

use crate::{catalog::Catalog, config::Config, crash_points::CrashPoint, storage::Layers};

/// What every task works with. One per configuration: a reload makes a new one.
pub struct WorkContext {
    /// The index and its queues.
    pub catalog: Arc<dyn Catalog>,
    /// Where the bytes are.
    pub layers: Layers,
    /// The settings.
    pub config: Config,
    /// One permit per merge that may run now.
    pub merge_permits: Arc<Semaphore>,
    /// Lets plans that may end the process run alone; one for the whole process.
    pub gate: Gate,
    /// What merges may take, all of them together.
    pub budgets: Arc<Budgets>,
    /// Runs of [`merge_due`], [`move_due`] and [`delete_due`]: what they claim is theirs to end or to hand back.
    pub claiming: TaskTracker,
    /// Merges and moves that run.
    pub running: TaskTracker,
    /// When to stop.
    pub stop: Stop,
    /// What was done since the start.
    pub totals: Arc<Totals>,
}

impl WorkContext {
    /// A step was taken (see [`crash_points`](crate::crash_points)).
    pub(crate) fn reached(&self, point: CrashPoint) {
        self.config.crash_points.reached(point);
    }

    /// Nothing is claimed and held by anybody here.
    pub fn is_drained(&self) -> bool {
        self.claiming.is_empty() && self.running.is_empty()
    }

    /// Waits for that. Whoever starts to claim later sees that claims are stopped, so this comes after.
    pub async fn drained(&self) {
        for tracker in [&self.claiming, &self.running] {
            tracker.close();
            tracker.wait().await;
        }
    }

    /// Memory of one merge, bytes: an equal share for each that may run.
    pub fn merge_budget_bytes(&self) -> u64 {
        self.config.worker.memory_budget_bytes / self.config.worker.concurrency.max(1) as u64
    }
}

/// Two steps of stopping: first no new work, then the running work is cut short.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Nothing new is claimed.
    pub claims: CancellationToken,
    /// Running merges and moves stop between batches and hand their plans back.
    pub merges: CancellationToken,
}

/// Why a run of a task ended early.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The catalog could not be asked.
    #[error(transparent)]
    Catalog(#[from] crate::catalog::CatalogError),
    /// A thread could not be started.
    #[error("a worker thread could not be started: {0}")]
    Thread(std::io::Error),
}
