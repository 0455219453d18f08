//! A plan with one sorted file: the file gets a second name, nothing is decoded.

use std::path::PathBuf;

use super::{
    commit,
    merge_run::{Attempt, Published, RunError, blocking},
};
use crate::{merge, model::ClaimedMerge};

/// Publishes the only input under the output's name if it is sorted already; `None` asks for a real merge.
pub(super) async fn try_promote(
    attempt: &Attempt<'_>,
    files: &[PathBuf],
    claim: &ClaimedMerge,
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
    attempt
        .context
        .catalog
        .announce_output(claim, &attempt.output)
        .await?;
    let (layer, output) = (attempt.layer.clone(), attempt.output.clone());
    blocking(move || layer.publish_link(&file, &table, &output)).await??;
    Ok(Some(commit::promoted(attempt, source, &summary)))
}
