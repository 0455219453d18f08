//! Deletes the bytes of replaced files once their grace is over.
//!
//! A delete cannot be taken back and no catalog can fence it, so it is the last of these steps, for
//! each file by itself: the claim is still ours and the index does not name the file, which is one
//! question, and no more than the claim's own time has passed since, also while this process was stopped.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{WorkContext, WorkError};
use crate::{
    catalog::{CatalogError, DropState},
    crash_points::CrashPoint,
    model::{ClaimedDrop, IndexEntry},
    storage::StorageError,
};

/// Deletes claimed in one go.
const DROPS_MAX: usize = 500;
/// A delete that failed is tried again after this.
const RETRY_DELAY: Duration = Duration::from_secs(60);

/// Deletes what is due until nothing is, or until claims are stopped. Returns the number of items that were ended.
pub async fn delete_due(context: &Arc<WorkContext>) -> Result<u64, WorkError> {
    let lease = context.config.worker.lease;
    let mut pace = Pace::new(context.config.drops.max_per_second);
    let limit = pace.count_within(lease / 2).min(DROPS_MAX);
    let mut ended_count = 0;
    let _claiming = context.claiming.token();
    while !context.stop.claims.is_cancelled() {
        let claimed_at = Instant::now();
        let claimed = context.catalog.claim_drops(limit, lease).await?;
        if claimed.is_empty() {
            break;
        }
        context.reached(CrashPoint::DropsClaimed);
        let mut ended = Vec::with_capacity(claimed.len());
        let mut is_answered = Ok(());
        let mut claimed = claimed.into_iter();
        while claimed.len() > 0 && pace.wait_unless(&context.stop.claims).await {
            let Some(claim) = claimed.next() else { break };
            match see_through(context, claim, claimed_at + lease).await {
                Ok(claim) => ended.extend(claim),
                Err(error) => {
                    is_answered = Err(error);
                    break;
                }
            }
        }
        context.catalog.finish_drops(&ended).await?;
        is_answered?;
        context.reached(CrashPoint::DropsFinished);
        ended_count += ended.len() as u64;
        hand_back(context, claimed).await;
    }
    if ended_count > 0 {
        tracing::debug!(files = ended_count, "deleted replaced files");
    }
    Ok(ended_count)
}

/// What was claimed and not looked at when claims were stopped: another worker need not wait for the lease's end.
async fn hand_back(context: &WorkContext, claims: impl Iterator<Item = ClaimedDrop>) {
    for claim in claims {
        match context.catalog.release_drop(&claim, Duration::ZERO).await {
            Ok(()) | Err(CatalogError::LeaseLost { .. }) => {}
            Err(error) => {
                tracing::warn!(%error, "deletes could not be handed back; their leases will run out");
                break;
            }
        }
    }
}

/// Deletes one file that no entry names any more (DROP-AFTER-COMMIT); returns the item if it is to be ended.
/// One that fails waits, the others go on, unless the catalog is away.
async fn see_through(
    context: &Arc<WorkContext>,
    mut claim: ClaimedDrop,
    ours_until: Instant,
) -> Result<Option<ClaimedDrop>, CatalogError> {
    match check_and_delete(context, &mut claim, ours_until).await {
        Ok(Deleted::Now) => {
            context.reached(CrashPoint::DropDeleted);
            context.totals.add_drops(1);
            Ok(Some(claim))
        }
        Ok(Deleted::Before) => Ok(Some(claim)),
        Ok(Deleted::Later) => Ok(None),
        Ok(Deleted::IndexedAgain) => {
            let item = &claim.item;
            tracing::warn!(table = %item.table, file = %item.path, "file is in the index again; it is kept");
            Ok(Some(claim))
        }
        Err(DropError::Catalog(error @ CatalogError::Unavailable { .. })) => Err(error),
        Err(error) => {
            let item = &claim.item;
            tracing::warn!(table = %item.table, file = %item.path, %error, "file could not be deleted; trying again later");
            if !matches!(error, DropError::LeaseLost | DropError::Catalog(_))
                && let Err(error) = context.catalog.release_drop(&claim, RETRY_DELAY).await
            {
                tracing::warn!(%error, "delete could not be handed back; its lease will run out");
            }
            Ok(None)
        }
    }
}

enum Deleted {
    Now,
    /// The bytes were gone already.
    Before,
    IndexedAgain,
    /// Its path was used again and merged: the bytes wait for the later delete's time, and so does this one.
    Later,
}

#[derive(Debug, thiserror::Error)]
enum DropError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What the index says cannot be known: the bytes stay, the lease runs out.
    #[error("the index could not be asked: {0}")]
    Catalog(CatalogError),
    #[error("the lease was lost; another worker goes on")]
    LeaseLost,
}

async fn check_and_delete(
    context: &WorkContext,
    claim: &mut ClaimedDrop,
    mut ours_until: Instant,
) -> Result<Deleted, DropError> {
    let lease = context.config.worker.lease;
    if ours_until < Instant::now() + lease / 2 {
        let asked_at = Instant::now();
        claim.lease = match context.catalog.renew_drop(claim, lease).await {
            Ok(renewed) => renewed,
            Err(CatalogError::LeaseLost { .. }) => return Err(DropError::LeaseLost),
            Err(error) => return Err(DropError::Catalog(error)),
        };
        ours_until = asked_at + lease;
    }
    let item = &claim.item;
    let found = match context.catalog.look_up_drop(claim).await {
        Ok(found) => found,
        Err(CatalogError::LeaseLost { .. }) => return Err(DropError::LeaseLost),
        Err(error) => return Err(DropError::Catalog(error)),
    };
    match found {
        DropState::Named(entry) if names_these_bytes(context, &entry, claim) => {
            return Ok(Deleted::IndexedAgain);
        }
        DropState::KeptFor(time) => {
            return match context.catalog.release_drop(claim, time).await {
                Ok(()) => Ok(Deleted::Later),
                Err(CatalogError::LeaseLost { .. }) => Err(DropError::LeaseLost),
                Err(error) => Err(DropError::Catalog(error)),
            };
        }
        DropState::Named(_) | DropState::Unnamed => {}
    }
    context.reached(CrashPoint::DropChecked);
    let layer = context.layers.get(&item.layer)?.clone();
    let (table, path) = (item.table.clone(), item.path.clone());
    let file = layer.data_file(&table, &path);
    let deleted = tokio::task::spawn_blocking(move || {
        if ours_until <= Instant::now() {
            return Err(DropError::LeaseLost);
        }
        Ok(layer.delete(&table, &path)?)
    });
    let was_there = deleted.await.map_err(|error| StorageError::Io {
        path: file,
        source: std::io::Error::other(error),
    })??;
    Ok(if was_there {
        Deleted::Now
    } else {
        Deleted::Before
    })
}

/// Layers are compared by what they stand for; what cannot be known keeps its bytes.
fn names_these_bytes(context: &WorkContext, entry: &IndexEntry, claim: &ClaimedDrop) -> bool {
    let (named, ours) = (
        context.layers.get(&entry.layer),
        context.layers.get(&claim.item.layer),
    );
    match (named, ours) {
        (Ok(named), Ok(ours)) => named.name() == ours.name(),
        _ => true,
    }
}

/// Lost time is made up for by at most this much.
const CATCH_UP_MAX: Duration = Duration::from_millis(100);

/// Keeps deletes from taking the disk from readers: at most so many in a second.
struct Pace {
    interval: Duration,
    next: Instant,
}

impl Pace {
    fn new(max_per_second: u32) -> Self {
        Self {
            interval: Duration::from_secs(1) / max_per_second.max(1),
            next: Instant::now(),
        }
    }

    /// How many fit into a time; one at least.
    fn count_within(&self, time: Duration) -> usize {
        let count = time.as_nanos() / self.interval.as_nanos().max(1);
        usize::try_from(count).unwrap_or(usize::MAX).max(1)
    }

    /// False as soon as `stop` says so; then nothing counts as done.
    async fn wait_unless(&mut self, stop: &CancellationToken) -> bool {
        tokio::select! {
            biased;
            () = stop.cancelled() => return false,
            () = tokio::time::sleep_until(self.next.into()) => {}
        }
        let now = Instant::now();
        self.next = self.next.max(now.checked_sub(CATCH_UP_MAX).unwrap_or(now)) + self.interval;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn deletes_keep_their_pace() {
        let mut pace = Pace::new(50);
        assert_eq!(pace.count_within(Duration::from_secs(2)), 100);
        let (started, stop) = (Instant::now(), CancellationToken::new());
        for _ in 0..11 {
            assert!(pace.wait_unless(&stop).await);
        }
        assert!(started.elapsed() >= Duration::from_millis(200));
        assert_eq!(Pace::new(1).count_within(Duration::from_millis(1)), 1);
    }

    #[tokio::test]
    async fn a_stop_is_not_waited_out() {
        let (mut pace, stop) = (Pace::new(1), CancellationToken::new());
        pace.next += Duration::from_secs(3600);
        stop.cancel();
        assert!(!pace.wait_unless(&stop).await);
        pace.next = Instant::now();
        assert!(!pace.wait_unless(&stop).await);
    }
}
