//! Names of outputs, by which a holder finds and removes what attempts before it left.

use std::time::Instant;

use super::{
    WorkContext,
    lease_keeper::{Claim, LeaseKeeper},
    merge_run::Attempt,
    run_error::{RunError, blocking},
};
use crate::{
    crash_points::CrashPoint,
    model::{DataPath, LayerName, MergePlan, ModelError, TableRef},
    storage::Layer,
};

/// Earlier attempts whose outputs are looked for; each of them has looked for those before it.
const DEAD_ATTEMPTS_MAX: u32 = 16;

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
