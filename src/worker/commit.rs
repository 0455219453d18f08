//! From published bytes to a changed index, and back when that does not come about.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{WorkContext, lease_keeper::Claim, published::Published, run_error::RunError};
use crate::{
    catalog::{CatalogError, CommitOutcome, MergeCommit, MoveCommit},
    model::{ClaimedMerge, ClaimedMove},
};

/// A commit whose answer is lost is asked for again this often, with growing pauses.
const COMMIT_TRIES_MAX: u32 = 5;
const COMMIT_PAUSE: Duration = Duration::from_millis(200);

/// Replaces the sources by the output in the index. A plan whose inputs are all gone just ends.
pub(super) async fn commit(
    context: &Arc<WorkContext>,
    claim: &ClaimedMerge,
    published: Option<Published>,
    started: Instant,
) -> Result<(), RunError> {
    let has_output = published
        .as_ref()
        .is_some_and(|published| !published.sources.is_empty());
    let commit = MergeCommit {
        output: published
            .as_ref()
            .filter(|_| has_output)
            .map(|published| published.entry.clone()),
        sources: published
            .as_ref()
            .map(|published| published.sources.clone())
            .unwrap_or_default(),
        set_aside: published
            .as_ref()
            .map(|published| published.set_aside.clone())
            .unwrap_or_default(),
        grace: context.config.grace(&claim.plan.queue.layer),
    };
    let outcome = commit_until_known(context, Change::Merge(claim, &commit)).await;
    match (outcome, &published) {
        (Ok(()), _) => {
            log_done(context, claim, published.as_ref(), started);
            Ok(())
        }
        (Err(error), Some(published)) if has_output && output_is_ours_to_remove(&error) => {
            published.remove(context).await;
            Err(error)
        }
        (Err(error), _) => Err(error),
    }
}

pub(super) fn output_is_ours_to_remove(error: &RunError) -> bool {
    !matches!(error, RunError::OutputExists | RunError::CommitUnknown(_))
}

/// A change of the index that was prepared.
#[derive(Clone, Copy)]
pub(super) enum Change<'a> {
    Merge(&'a ClaimedMerge, &'a MergeCommit),
    Move(&'a ClaimedMove, &'a MoveCommit),
}

impl Change<'_> {
    async fn send(self, context: &WorkContext) -> Result<CommitOutcome, CatalogError> {
        match self {
            Self::Merge(claim, commit) => context.catalog.commit_merge(claim, commit).await,
            Self::Move(claim, commit) => context.catalog.commit_move(claim, commit).await,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Merge(claim, _) => claim.name(),
            Self::Move(claim, _) => claim.name(),
        }
    }

    async fn output_is_indexed(self, context: &WorkContext) -> Result<bool, RunError> {
        let (table, path) = match self {
            Self::Merge(_, commit) => match &commit.output {
                Some(output) => (&output.table, &output.path),
                None => return Ok(false),
            },
            Self::Move(claim, commit) => match &commit.to {
                Some((_, path)) => (&claim.item.table, path),
                None => return Ok(false),
            },
        };
        let found = context
            .catalog
            .resolve(table, std::slice::from_ref(path))
            .await
            .map_err(RunError::CommitUnknown)?;
        Ok(found.into_iter().flatten().next().is_some())
    }
}

/// Asks again when the answer is lost, and asks the index what is true before it believes a refusal.
pub(super) async fn commit_until_known(
    context: &WorkContext,
    change: Change<'_>,
) -> Result<(), RunError> {
    let mut pause = COMMIT_PAUSE;
    for tries in 1.. {
        let error = match change.send(context).await {
            Ok(CommitOutcome::Committed) => return Ok(()),
            // An earlier try whose answer was lost may have ended the claim.
            Ok(CommitOutcome::LeaseLost) if change.output_is_indexed(context).await? => {
                return Ok(());
            }
            // It may even have succeeded, and the output been merged further since: readers may have it open.
            Ok(CommitOutcome::LeaseLost) if tries > 1 => {
                return Err(RunError::CommitUnknown(CatalogError::LeaseLost {
                    what: change.name(),
                }));
            }
            Ok(CommitOutcome::LeaseLost) => return Err(RunError::LeaseLost),
            Ok(CommitOutcome::SourceGone(path)) => return Err(RunError::SourceGone(path)),
            Ok(CommitOutcome::OutputExists) => return Err(RunError::OutputExists),
            Err(error @ CatalogError::Unavailable { .. }) => error,
            // The catalog says that nothing changed.
            Err(error) => return Err(error.into()),
        };
        if tries >= COMMIT_TRIES_MAX {
            return match change.output_is_indexed(context).await {
                Ok(true) => Ok(()),
                // The call may still be on its way: nobody may touch the output now.
                Ok(false) | Err(_) => Err(RunError::CommitUnknown(error)),
            };
        }
        tracing::warn!(plan = change.name(), %error, "commit was not answered; asking again");
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Err(RunError::LeaseLost)
}

fn log_done(
    context: &WorkContext,
    claim: &ClaimedMerge,
    published: Option<&Published>,
    started: Instant,
) {
    let queue = &claim.plan.queue;
    let (table, partition, iteration) = (&queue.table, &queue.dir, queue.iteration.0);
    let Some(published) = published else {
        tracing::info!(%table, %partition, iteration, "plan ended: its files are no longer in the index");
        return;
    };
    for bad in &published.set_aside {
        tracing::error!(%table, file = %bad.path, reason = bad.reason, "file set aside: it stays readable and is not merged");
    }
    let seconds = started.elapsed().as_secs_f64();
    let (files, bytes_out, rows) = (
        published.sources.len(),
        published.entry.size_bytes,
        published.entry.row_count,
    );
    match &published.report {
        Some(report) => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate for people"
            )]
            let rows_per_s = (rows as f64 / seconds.max(1e-6)) as u64;
            context
                .totals
                .add_merge(files as u64, rows, report.input_bytes, bytes_out);
            let rows_collapsed = report.collapsed_row_count;
            context.totals.add_collapsed(rows_collapsed);
            // Only where a table's rows are unique.
            let rows_collapsed = (rows_collapsed > 0).then_some(rows_collapsed);
            tracing::info!(%table, %partition, iteration, files, rows, rows_collapsed, bytes_in = report.input_bytes, bytes_out,
                duration_ms = started.elapsed().as_millis(), rows_per_s, "merged");
        }
        None if files > 0 => {
            context.totals.add_promotion();
            tracing::info!(%table, %partition, iteration, rows, bytes = bytes_out, "promoted");
        }
        None => {}
    }
}
