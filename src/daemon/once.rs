//! Everything that is due, then the end: the shape of a cron job.

use std::sync::Arc;

use crate::worker::{self, WorkContext, WorkError};

/// What a single pass did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnceReport {
    /// Plans that were claimed.
    pub plans_count: u64,
    /// Moves that were claimed.
    pub moves_count: u64,
    /// Deletes that were ended.
    pub drops_count: u64,
}

/// Runs every task until nothing is due or claims are stopped. Plans that failed wait for their
/// next attempt, so this ends.
pub async fn run_once(context: &Arc<WorkContext>) -> Result<OnceReport, WorkError> {
    worker::clean(context).await;
    let mut report = OnceReport {
        plans_count: 0,
        moves_count: 0,
        drops_count: 0,
    };
    loop {
        context.catalog.refresh().await?;
        let mut plans = 0;
        for level in &context.config.levels {
            plans += worker::merge_due(context, level.iteration).await?;
        }
        let moves = worker::move_due(context).await?;
        let drops = worker::delete_due(context).await?;
        report.plans_count += plans;
        report.moves_count += moves;
        report.drops_count += drops;
        if plans + moves + drops == 0 || context.stop.claims.is_cancelled() {
            return Ok(report);
        }
    }
}
