//! From published bytes to a changed index, and back when that does not come about.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Map, Value};

use super::{
    WorkContext,
    lease_keeper::{Claim, LeaseKeeper},
    merge_run::{Attempt, Published, RunError, blocking},
};
use crate::{
    catalog::{CatalogError, CommitOutcome, MergeCommit, MoveCommit},
    crash_points::CrashPoint,
    merge::{ColumnBounds, FileSummary, MergeReport},
    model::{
        ClaimedMerge, ClaimedMove, DataPath, IndexEntry, LayerName, MergePlan, ModelError,
        SetAside, TableRef,
    },
    storage::Layer,
};

/// Earlier attempts whose outputs are looked for; each of them has looked for those before it.
const DEAD_ATTEMPTS_MAX: u32 = 16;
/// A commit whose answer is lost is asked for again this often, with growing pauses.
const COMMIT_TRIES_MAX: u32 = 5;
const COMMIT_PAUSE: Duration = Duration::from_millis(200);

/// The name of an attempt's output. It depends on the plan's id AND its paths, because ids of the
/// original scripts repeat, and on the attempt, so that the next holder knows what a dead one left.
pub(super) fn output_path(plan: &MergePlan, attempt: u32) -> Result<DataPath, ModelError> {
    let mut seed = plan.id.as_str().as_bytes().to_vec();
    for path in &plan.paths {
        seed.push(0);
        seed.extend_from_slice(path.as_str().as_bytes());
    }
    let name = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &seed);
    plan.queue
        .dir
        .file(&format!("{name}-{attempt}"), plan.queue.iteration.next())
}

/// The attempts before this one whose outputs may be left.
pub(super) fn earlier_attempts(attempts: u32) -> std::ops::Range<u32> {
    attempts.saturating_sub(DEAD_ATTEMPTS_MAX).max(1)..attempts
}

/// Removes what earlier attempts published and did not commit. Safe while such a worker still
/// runs: its lease is void, so its commit is refused.
///
/// Unless a server that lost its last writes has forgotten this claim: then the earlier holder's is valid
/// again. So the index is asked first, then the claim is confirmed: when both say so, nobody had committed
/// that output. What remains is the instant from there to the `unlink`, as before each delete.
pub(super) async fn remove_dead_attempts(
    attempt: &Attempt<'_>,
    keeper: &LeaseKeeper,
) -> Result<(), RunError> {
    let plan = attempt.plan;
    let names: Vec<DataPath> = earlier_attempts(plan.attempts)
        .map(|earlier| output_path(plan, earlier))
        .collect::<Result<_, _>>()?;
    let table = &plan.queue.table;
    remove_unindexed(attempt.context, table, attempt.layer, names, keeper).await
}

/// Removes outputs of dead attempts that the index does not name.
pub(super) async fn remove_unindexed<C: Claim>(
    context: &WorkContext,
    table: &TableRef,
    layer: &Layer,
    names: Vec<DataPath>,
    keeper: &LeaseKeeper<C>,
) -> Result<(), RunError> {
    let (of, looked) = (table.clone(), layer.clone());
    // Most attempts leave none. What cannot be looked at may be there.
    let left: Vec<DataPath> = blocking(move || {
        let is_left =
            |name: &DataPath| !matches!(looked.data_file(&of, name).try_exists(), Ok(false));
        names.into_iter().filter(is_left).collect()
    })
    .await?;
    for name in left {
        let found = context
            .catalog
            .resolve(table, std::slice::from_ref(&name))
            .await?;
        if found.iter().any(Option::is_some) {
            continue;
        }
        context.reached(CrashPoint::DeadOutputFound);
        let ours_until = keeper.confirm().await?;
        let (layer, of, path) = (layer.clone(), table.clone(), name.clone());
        let removed = blocking(move || {
            if ours_until <= Instant::now() {
                return Err(RunError::LeaseLost);
            }
            Ok(layer.delete(&of, &path)?)
        });
        if removed.await?? {
            context.reached(CrashPoint::DeadOutputRemoved);
            tracing::info!(%table, file = %name, "removed the output of an attempt that was never committed");
        }
    }
    Ok(())
}

/// The result of a merge, ready to commit.
pub(super) fn merged(
    attempt: &Attempt<'_>,
    report: MergeReport,
    set_aside: Vec<SetAside>,
) -> Published {
    let entry = entry(
        attempt,
        report.row_count,
        report.output_bytes,
        &report.bounds,
    );
    Published {
        entry,
        sources: paths(&attempt.sources),
        set_aside,
        report: Some(report),
    }
}

/// The result of a promotion, ready to commit.
pub(super) fn promoted(
    attempt: &Attempt<'_>,
    source: &IndexEntry,
    summary: &FileSummary,
) -> Published {
    let mut entry = entry(
        attempt,
        summary.row_count,
        summary.size_bytes,
        &summary.bounds,
    );
    entry.extra.clone_from(&source.extra);
    Published {
        entry,
        sources: paths(&attempt.sources),
        set_aside: Vec::new(),
        report: None,
    }
}

/// No input could be read: there is no output, but the catalog learns why.
pub(super) fn nothing_but_set_aside(attempt: &Attempt<'_>, set_aside: Vec<SetAside>) -> Published {
    Published {
        entry: entry(attempt, 0, 0, &[]),
        sources: Vec::new(),
        set_aside,
        report: None,
    }
}

fn paths(entries: &[IndexEntry]) -> Vec<DataPath> {
    entries.iter().map(|entry| entry.path.clone()).collect()
}

fn entry(
    attempt: &Attempt<'_>,
    row_count: u64,
    size_bytes: u64,
    bounds: &[ColumnBounds],
) -> IndexEntry {
    let plan = attempt.plan;
    let sources = &attempt.sources;
    let config = attempt.context.config.table(&plan.queue.table);
    let time = bounds
        .iter()
        .find(|bounds| bounds.column == config.time_column);
    // Files may hold times as something else than integers: then the inputs' entries know.
    let time_of = |value: Option<&Value>, known: Option<i64>| {
        value.and_then(Value::as_i64).or(known).unwrap_or(0)
    };
    let column = |pick: fn(&ColumnBounds) -> &Value| -> Map<String, Value> {
        bounds
            .iter()
            .filter(|bounds| config.is_indexed(&bounds.column))
            .map(|bounds| (bounds.column.clone(), pick(bounds).clone()))
            .collect()
    };
    IndexEntry {
        layer: plan.queue.layer.clone(),
        table: plan.queue.table.clone(),
        path: attempt.output.clone(),
        size_bytes,
        row_count,
        // A layer's TTL counts from here: no row may expire before its time.
        chunk_time_ns: sources
            .iter()
            .map(|source| source.chunk_time_ns)
            .max()
            .unwrap_or(0),
        min_time_ns: time_of(
            time.map(|t| &t.min),
            sources.iter().map(|source| source.min_time_ns).min(),
        ),
        max_time_ns: time_of(
            time.map(|t| &t.max),
            sources.iter().map(|source| source.max_time_ns).max(),
        ),
        min: column(|bounds| &bounds.min),
        max: column(|bounds| &bounds.max),
        writer: plan.queue.writer.clone(),
        extra: Map::new(),
    }
}

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

/// Removes published bytes that the index does not name. When the index cannot be asked they stay:
/// the plan's next holder removes them.
pub(super) async fn remove_output(
    context: &WorkContext,
    table: &TableRef,
    layer: &LayerName,
    path: &DataPath,
) {
    let found = context
        .catalog
        .resolve(table, std::slice::from_ref(path))
        .await;
    if !matches!(found.as_deref(), Ok([None])) {
        return;
    }
    let Ok(layer) = context.layers.get(layer).cloned() else {
        return;
    };
    let (table, path) = (table.clone(), path.clone());
    let removed = match blocking(move || layer.delete(&table, &path)).await {
        Ok(removed) => removed.map_err(RunError::from),
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        tracing::warn!(%error, "an output without commit could not be removed");
    }
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
