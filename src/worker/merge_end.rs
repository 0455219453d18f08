//! How a claimed plan ends that was not committed.

use std::{sync::Arc, time::Duration};

use super::{
    WorkContext,
    hand_back::until_answered,
    run_error::RunError,
    suspects::{self, Verdict},
};
use crate::{
    catalog::CatalogError,
    crash_points::CrashPoint,
    merge::MergeError,
    model::{ClaimedMerge, MergePlan},
};

/// How a claim ends that did not commit.
enum Ending {
    /// Its files are not to blame; the plan is due again after this time.
    Release(Duration),
    /// The attempt counts; the plan is due again after this time.
    Retry(Duration),
    /// The plan is given up.
    GiveUp(String),
    /// Some of its files are suspects.
    Judged(Verdict),
}

/// Ends an attempt that did not commit.
pub(super) async fn give_back(context: &Arc<WorkContext>, claim: &ClaimedMerge, error: &RunError) {
    let plan = &claim.plan;
    let ending = ending(context, plan, error);
    let (queue, attempts) = (&plan.queue, plan.attempts);
    match &ending {
        Ending::Release(_) if matches!(error, RunError::Merge(MergeError::Cancelled)) => {
            tracing::info!(plan = %queue, "merge stopped; its plan is handed back");
        }
        Ending::Release(_) if matches!(error, RunError::NoRoom) => context.totals.add_held_back(),
        Ending::Release(Duration::ZERO) => {
            context.totals.add_failure();
            tracing::warn!(plan = %queue, %error, "merge abandoned");
        }
        Ending::Release(delay) | Ending::Retry(delay) => {
            context.totals.add_failure();
            tracing::warn!(plan = %queue, attempts, %error, retry_in = ?delay, "merge failed");
        }
        Ending::GiveUp(_) => {
            context.totals.add_failure();
            tracing::error!(plan = %queue, id = %plan.id, attempts, %error,
                "merge given up; its files stay as they are");
        }
        Ending::Judged(_) => {
            context.totals.add_failure();
            tracing::warn!(plan = %queue, id = %plan.id, attempts, %error, "merge failed");
        }
    }
    if let Err(error) = end_when_answered(context, claim, &ending).await {
        tracing::warn!(plan = %queue, %error, "plan could not be handed back; its lease will run out");
    }
}

fn ending(context: &WorkContext, plan: &MergePlan, error: &RunError) -> Ending {
    let max_attempts = context.config.worker.max_attempts;
    let delay = error.retry_delay(plan.attempts);
    match error {
        // Whoever goes on learns that this attempt did not die. A commit that is still on its way
        // is refused afterwards, or has ended the claim.
        RunError::Merge(MergeError::Cancelled)
        | RunError::LeaseLost
        | RunError::CommitUnknown(_) => Ending::Release(Duration::ZERO),
        _ if error.is_final() => Ending::GiveUp(error.to_string()),
        _ if error.blames_inputs() => {
            match suspects::judge_failure(plan, &error.to_string(), max_attempts) {
                Some(verdict) => Ending::Judged(verdict),
                None => Ending::Retry(delay),
            }
        }
        RunError::MissingInputs(_) => Ending::Retry(delay),
        _ => Ending::Release(delay),
    }
}

async fn end_when_answered(
    context: &Arc<WorkContext>,
    claim: &ClaimedMerge,
    ending: &Ending,
) -> Result<(), CatalogError> {
    let catalog = &context.catalog;
    until_answered(context, || async {
        let ended = match ending {
            Ending::Release(delay) => catalog.release_merge(claim, *delay).await,
            Ending::Retry(delay) => catalog.retry_merge(claim, *delay).await,
            Ending::GiveUp(reason) => catalog.fail_merge(claim, reason).await,
            Ending::Judged(verdict) => suspects::execute(context, claim, verdict).await,
        };
        context.reached(match ending {
            Ending::Release(_) | Ending::Retry(_) => CrashPoint::MergeReleased,
            Ending::GiveUp(_) => CrashPoint::MergeGivenUp,
            Ending::Judged(_) => CrashPoint::MergeJudged,
        });
        ended
    })
    .await
}
