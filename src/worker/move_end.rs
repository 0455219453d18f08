//! Why a file was not moved this time, and how its claim ends then.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    WorkContext,
    hand_back::{retry_delay, until_answered},
    move_task::NO_ROOM_DELAY,
    run_error::RunError,
};
use crate::{
    catalog::CatalogError,
    crash_points::CrashPoint,
    model::{ClaimedMove, LayerName, ModelError, MoveItem},
    storage::StorageError,
};

/// A file that is not due by our settings is looked at again after this time at the latest.
const NOT_DUE_DELAY_MAX: Duration = Duration::from_hours(24);

/// Why a file was not moved this time.
#[derive(Debug, thiserror::Error)]
pub(super) enum MoveError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("{}: the file is not there", .0.display())]
    Missing(PathBuf),
    #[error("its index entry cannot be used: {0}")]
    Malformed(String),
    #[error("its index entry has no chunk_time, so that nobody knows when it expires")]
    NoChunkTime,
    #[error("there is too little free space in layer {0}")]
    NoRoom(LayerName),
    #[error("by the ttl of its layer its time is not over")]
    NotDue(Duration),
    #[error("{0} attempts ended without a word; the process was killed in each of them")]
    Died(u32),
    #[error("it was stopped")]
    Stopped,
}

impl From<StorageError> for MoveError {
    fn from(error: StorageError) -> Self {
        Self::Run(error.into())
    }
}

impl From<CatalogError> for MoveError {
    fn from(error: CatalogError) -> Self {
        Self::Run(error.into())
    }
}

impl From<ModelError> for MoveError {
    fn from(error: ModelError) -> Self {
        Self::Run(error.into())
    }
}

/// How a claim ends that did not commit.
pub(super) enum Ending {
    /// The file is not to blame.
    Release(Duration),
    /// The attempt counts.
    Retry(Duration),
    /// It stays where it is.
    GiveUp(String),
    /// There is nothing to do.
    Finish,
}

/// Ends an attempt that did not commit; false when the next one would meet the same.
pub(super) async fn give_back(
    context: &Arc<WorkContext>,
    claim: &ClaimedMove,
    error: &MoveError,
) -> bool {
    let item = &claim.item;
    let (table, file, attempts) = (&item.table, &item.path_from, item.attempts);
    let ending = ending(context, item, error);
    match &ending {
        Ending::Release(_) if matches!(error, MoveError::Stopped) => {
            tracing::info!(%table, %file, "move stopped; it is handed back");
        }
        Ending::Release(retry_in) if matches!(error, MoveError::NotDue(_)) => {
            tracing::debug!(%table, %file, %error, ?retry_in, "not moved yet");
        }
        Ending::Release(_) if matches!(error, MoveError::NoRoom(_)) => {
            context.totals.add_move_held_back();
        }
        Ending::Release(Duration::ZERO) => {
            context.totals.add_move_failure();
            tracing::warn!(%table, %file, %error, "move abandoned");
        }
        Ending::Release(retry_in) | Ending::Retry(retry_in) => {
            context.totals.add_move_failure();
            tracing::warn!(%table, %file, attempts, %error, ?retry_in, "move failed");
        }
        Ending::GiveUp(_) => {
            context.totals.add_move_failure();
            tracing::error!(%table, %file, attempts, %error, "move given up; the file stays where it is");
        }
        Ending::Finish => {}
    }
    let blames_file = !matches!(ending, Ending::Release(_));
    let goes_on = blames_file
        || matches!(
            error,
            MoveError::NotDue(_) | MoveError::Run(RunError::LeaseLost | RunError::SourceGone(_))
        );
    end(context, claim, &ending).await && goes_on
}

fn ending(context: &WorkContext, item: &MoveItem, error: &MoveError) -> Ending {
    let delay = retry_delay(item.attempts);
    match error {
        // A source that is gone is ended by the next claim; of the others whoever goes on learns
        // that this attempt did not die.
        MoveError::Stopped
        | MoveError::Run(
            RunError::SourceGone(_)
            | RunError::LeaseLost
            | RunError::CommitUnknown(_)
            | RunError::Catalog(CatalogError::LeaseLost { .. }),
        ) => Ending::Release(Duration::ZERO),
        MoveError::NotDue(left) => Ending::Release((*left).min(NOT_DUE_DELAY_MAX)),
        MoveError::NoRoom(_) => Ending::Release(NO_ROOM_DELAY),
        MoveError::Malformed(_)
        | MoveError::NoChunkTime
        | MoveError::Died(_)
        | MoveError::Run(RunError::Model(_) | RunError::Storage(StorageError::Outside { .. })) => {
            Ending::GiveUp(error.to_string())
        }
        MoveError::Missing(_)
        | MoveError::Run(
            RunError::Panicked
            | RunError::OutputExists
            | RunError::Catalog(CatalogError::Refused { .. })
            | RunError::Storage(StorageError::Differs { .. } | StorageError::Exists { .. }),
        ) => {
            if item.counted_attempts() >= context.config.worker.max_attempts {
                Ending::GiveUp(error.to_string())
            } else {
                Ending::Retry(delay)
            }
        }
        MoveError::Run(_) => Ending::Release(delay),
    }
}

/// False when the catalog does not hear of it.
pub(super) async fn end(context: &Arc<WorkContext>, claim: &ClaimedMove, ending: &Ending) -> bool {
    let catalog = &context.catalog;
    let ended = until_answered(context, || async {
        let ended = match ending {
            Ending::Release(delay) => catalog.release_move(claim, *delay).await,
            Ending::Retry(delay) => catalog.retry_move(claim, *delay).await,
            Ending::GiveUp(reason) => catalog.fail_move(claim, reason).await,
            Ending::Finish => catalog.finish_move(claim).await,
        };
        context.reached(match ending {
            Ending::Release(_) | Ending::Retry(_) => CrashPoint::MoveReleased,
            Ending::GiveUp(_) => CrashPoint::MoveGivenUp,
            Ending::Finish => CrashPoint::MoveEnded,
        });
        ended
    });
    match ended.await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(file = %claim.item.path_from, %error, "move could not be handed back; its lease will run out");
            false
        }
    }
}
