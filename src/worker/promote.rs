//! A plan with one sorted file: the file gets a second name, nothing is decoded.

use std::{path::PathBuf, time::Instant};

use super::{
    lease_keeper::LeaseKeeper,
    merge_run::Attempt,
    published::{self, Published},
    run_error::{RunError, blocking},
};
use crate::{crash_points::CrashPoint, merge};

/// Publishes the only input under the output's name if it is sorted already; `None` asks for a real merge.
pub(super) async fn try_promote(
    attempt: &Attempt<'_>,
    files: &[PathBuf],
    keeper: &LeaseKeeper,
) -> Result<Option<Published>, RunError> {
    let ([source], [file]) = (attempt.sources.as_slice(), files) else {
        return Ok(None);
    };
    let table = attempt.plan.queue.table.clone();
    let options = attempt
        .context
        .config
        .table(&table)
        .merge_options(attempt.context.merge_budget_bytes());
    let (file, summarized) = (file.clone(), file.clone());
    // An unreadable file is the merge's business: it sets it aside with a reason.
    let Ok(summary) = blocking(move || merge::summarize(&summarized, &options)).await? else {
        return Ok(None);
    };
    if !summary.is_sorted {
        return Ok(None);
    }
    let ours_until = keeper
        .announce(attempt.layer.name(), &attempt.output)
        .await?;
    attempt.context.reached(CrashPoint::PromoteAnnounced);
    let (layer, output) = (attempt.layer.clone(), attempt.output.clone());
    blocking(move || {
        if ours_until <= Instant::now() {
            return Err(RunError::LeaseLost);
        }
        Ok(layer.publish_link(&file, &table, &output)?)
    })
    .await??;
    attempt.context.reached(CrashPoint::PromotePublished);
    Ok(Some(published::promoted(attempt, source, &summary)))
}
