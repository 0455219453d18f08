//! Renews a claim while work on it goes on.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    catalog::{Catalog, CatalogError},
    merge::MergeControl,
    model::ClaimedMerge,
};

/// Renews until it is stopped or the lease is lost.
pub(super) struct LeaseKeeper {
    stop: CancellationToken,
    task: JoinHandle<(ClaimedMerge, bool)>,
}

impl LeaseKeeper {
    /// Renews three times per lease. A lost lease stops the merge through `control`.
    pub(super) fn start(
        catalog: Arc<dyn Catalog>,
        claim: ClaimedMerge,
        lease: Duration,
        control: Arc<MergeControl>,
    ) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut claim = claim;
            let mut is_answered = true;
            loop {
                tokio::select! {
                    // A renewal whose answer was lost may have replaced the lease: ask once more.
                    () = stopped.cancelled() => if is_answered { return (claim, true) },
                    () = tokio::time::sleep(lease / 3) => {}
                }
                match catalog.renew_merge(&claim, lease).await {
                    Ok(renewed) => {
                        claim.lease = renewed;
                        is_answered = true;
                    }
                    Err(CatalogError::LeaseLost { .. }) => {
                        control.cancel();
                        return (claim, false);
                    }
                    // The commit is fenced: a lease that ran out meanwhile is noticed there.
                    Err(_) if stopped.is_cancelled() => return (claim, true),
                    Err(error) => {
                        is_answered = false;
                        tracing::warn!(plan = %claim.plan.queue, %error, "lease could not be renewed; trying again");
                    }
                }
            }
        });
        Self { stop, task }
    }

    /// Ends renewing, after a renewal under way. Says with the newest lease whether it is still held.
    pub(super) async fn stop(self, claim: ClaimedMerge) -> (ClaimedMerge, bool) {
        self.stop.cancel();
        // A panicked keeper may have renewed or not: the commit decides.
        self.task.await.unwrap_or((claim, true))
    }
}
