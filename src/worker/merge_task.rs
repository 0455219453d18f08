//! Finds due plans of one iteration and sees each through.

use std::{sync::Arc, time::Instant};

use tokio::task::JoinSet;

use super::{WorkContext, WorkError, merge_run};
use crate::{
    crash_points::CrashPoint,
    model::{Iteration, MergeQueue},
};

/// Plans looked at in one go; what is left is found by the next look.
const DUE_PLANS_MAX: usize = 1000;

/// Merges what is due in one iteration until nothing is, or until claims are stopped. Returns the number of
/// plans that were claimed.
pub async fn merge_due(context: &Arc<WorkContext>, iteration: Iteration) -> Result<u64, WorkError> {
    let _claiming = context.claiming.token();
    let mut claimed_count = 0;
    while !context.stop.claims.is_cancelled() {
        let due = tokio::select! {
            () = context.stop.claims.cancelled() => break,
            due = context.catalog.due_merges(iteration, DUE_PLANS_MAX) => due?,
        };
        let queues: Vec<(MergeQueue, u64)> = due
            .into_iter()
            .map(|plan| (plan.queue, plan.size_bytes))
            .collect();
        let claimed = claim_and_run(context, &queues).await?;
        if claimed == 0 {
            break;
        }
        claimed_count += claimed;
    }
    Ok(claimed_count)
}

/// One claim for each due plan; others may have been faster, which is no error. Claimed plans are seen
/// through even when a later claim fails.
async fn claim_and_run(
    context: &Arc<WorkContext>,
    queues: &[(MergeQueue, u64)],
) -> Result<u64, WorkError> {
    let mut claimed_count = 0;
    let mut failed = None;
    let mut running = JoinSet::new();
    for (queue, input_bytes) in queues {
        let permit = tokio::select! {
            () = context.stop.claims.cancelled() => break,
            permit = Arc::clone(&context.merge_permits).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { break };
        if !has_room(context, queue, *input_bytes).await {
            context.totals.add_held_back();
            continue;
        }
        let turn = tokio::select! {
            () = context.stop.claims.cancelled() => break,
            turn = context.gate.enter() => turn,
        };
        let claimed_at = Instant::now();
        match context
            .catalog
            .claim_merge(queue, context.config.worker.lease)
            .await
        {
            Ok(None) => {}
            Ok(Some(claim)) => {
                context.reached(CrashPoint::MergeClaimed);
                claimed_count += 1;
                let worker = Arc::clone(context);
                running.spawn(context.running.track_future(async move {
                    merge_run::run(&worker, claim, claimed_at, turn).await;
                    drop(permit);
                }));
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    while running.join_next().await.is_some() {}
    failed.map_or(Ok(claimed_count), |error| Err(error.into()))
}

/// Whether a plan may be claimed as far as disks are concerned: a claim costs an attempt.
async fn has_room(context: &WorkContext, queue: &MergeQueue, input_bytes: u64) -> bool {
    // A layer that is not configured is the claim's business.
    let Ok(layer) = context.layers.get(&queue.layer) else {
        return true;
    };
    let room = context
        .budgets
        .has_room(&context.config, layer, input_bytes)
        .await;
    room.unwrap_or_else(|error| {
        tracing::warn!(layer = %queue.layer, %error, "no merge starts on this layer");
        false
    })
}
