//! `gigamerge once`: everything that is due, then the end.

use std::fmt;

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
    /// Attempts failed; the log says why.
    #[error("{0}, see above; what was not given up is tried again later")]
    Failures(LeftUndone),
    /// Some plans or moves wait for free space.
    #[error("{0} for want of free space, see above; a later run tries again")]
    NoRoom(LeftUndone),
}

/// How much of what was due did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftUndone {
    /// Plans that were not merged.
    pub plans_count: u64,
    /// Files that neither moved nor expired.
    pub files_count: u64,
}

impl LeftUndone {
    fn is_nothing(self) -> bool {
        (self.plans_count, self.files_count) == (0, 0)
    }
}

impl fmt::Display for LeftUndone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        match self.plans_count {
            0 => {}
            1 => parts.push("1 plan was not merged".to_owned()),
            many => parts.push(format!("{many} plans were not merged")),
        }
        match self.files_count {
            0 => {}
            1 => parts.push("1 file did not leave its layer".to_owned()),
            many => parts.push(format!("{many} files did not leave their layers")),
        }
        f.write_str(&parts.join(" and "))
    }
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
        move_failures = totals.move_failures(),
        expired = totals.expiries(),
        drops = drops_count,
        "nothing more is due"
    );
    let failures = LeftUndone {
        plans_count: totals.failures(),
        files_count: totals.move_failures(),
    };
    let held_back = LeftUndone {
        plans_count: totals.held_back(),
        files_count: totals.moves_held_back(),
    };
    if !failures.is_nothing() {
        Err(OnceError::Failures(failures))
    } else if !held_back.is_nothing() {
        Err(OnceError::NoRoom(held_back))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::LeftUndone;

    #[test]
    fn what_was_left_undone_is_named_by_its_kind() {
        let said = |plans_count, files_count| {
            LeftUndone {
                plans_count,
                files_count,
            }
            .to_string()
        };
        assert_eq!(said(1, 0), "1 plan was not merged");
        assert_eq!(said(0, 1), "1 file did not leave its layer");
        assert_eq!(
            said(3, 2),
            "3 plans were not merged and 2 files did not leave their layers"
        );
    }
}
