//! `gigamerge once`: everything that is due, then the end.

use crate::{
    config::Config,
    daemon::{self, Access, DaemonError, OnceReport, Signal},
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
    /// Some plans were not merged; the log says why.
    #[error("{0} plans were not merged, see above; they wait for a later run")]
    Failures(u64),
}

/// Runs every task until nothing is due. A stop signal lets running merges finish within
/// `worker.stop_timeout`; a second one stops them at once.
pub async fn run(config: Config) -> Result<(), OnceError> {
    logging::start(&config.log);
    let mut signals = daemon::listen()?;
    super::run::warn_all(&config);
    let stop_timeout = config.worker.stop_timeout;
    let context = daemon::open(config, Access::Work).await?;
    let stop = context.stop.clone();
    tokio::spawn(async move {
        next_stop(&mut signals).await;
        stop.claims.cancel();
        tokio::select! {
            () = next_stop(&mut signals) => {}
            () = tokio::time::sleep(stop_timeout) => {}
        }
        stop.merges.cancel();
    });
    let OnceReport {
        plans_count,
        drops_count,
    } = daemon::run_once(&context).await?;
    let totals = &context.totals;
    tracing::info!(
        plans = plans_count,
        merges = totals.merges(),
        promotions = totals.promotions(),
        failures = totals.failures(),
        drops = drops_count,
        "nothing more is due"
    );
    match totals.failures() {
        0 => Ok(()),
        failures => Err(OnceError::Failures(failures)),
    }
}

async fn next_stop(signals: &mut tokio::sync::mpsc::Receiver<Signal>) {
    while let Some(signal) = signals.recv().await {
        if signal == Signal::Stop {
            return;
        }
    }
    std::future::pending().await
}
