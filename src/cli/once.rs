//! `gigamerge once`: everything that is due, then the end.

use crate::{
    config::Config,
    daemon::{self, Access, DaemonError, OnceReport},
    telemetry::logging,
    worker::WorkError,
};

/// Why a single pass failed.
#[derive(Debug, thiserror::Error)]
pub enum OnceError {
    /// It could not start.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// It could not go on.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// Some plans were not merged, or files not moved; the log says why.
    #[error("{0} plans were not merged, see above; they wait for a later run")]
    Failures(u64),
    /// Some plans or moves wait for free space.
    #[error(
        "{0} plans were not merged for want of free space, see above; they wait for a later run"
    )]
    NoRoom(u64),
}

/// Runs every task until nothing is due. A stop signal lets running merges finish within
/// `worker.stop_timeout`; a second one stops them at once.
pub async fn run(config: Config) -> Result<(), OnceError> {
    logging::start(&config.log);
    let mut signals = daemon::listen()?;
    super::run::warn_all(&config);
    let stop_timeout = config.worker.stop_timeout;
    let context = tokio::select! {
        opened = daemon::open(config, Access::Work) => opened?,
        () = daemon::stop_signal(&mut signals) => return Ok(()),
    };
    let stop = context.stop.clone();
    tokio::spawn(async move {
        daemon::stop_signal(&mut signals).await;
        stop.claims.cancel();
        tokio::select! {
            () = daemon::stop_signal(&mut signals) => {}
            () = tokio::time::sleep(stop_timeout) => {}
        }
        stop.merges.cancel();
    });
    let OnceReport {
        plans_count,
        moves_count: _,
        drops_count,
    } = daemon::run_once(&context).await?;
    let totals = &context.totals;
    tracing::info!(
        plans = plans_count,
        merges = totals.merges(),
        rows_collapsed = totals.rows_collapsed(),
        promotions = totals.promotions(),
        failures = totals.failures(),
        moves = totals.moves().0,
        expired = totals.expiries(),
        drops = drops_count,
        "nothing more is due"
    );
    match (totals.failures(), totals.held_back()) {
        (0, 0) => Ok(()),
        (0, held_back) => Err(OnceError::NoRoom(held_back)),
        (failures, _) => Err(OnceError::Failures(failures)),
    }
}
