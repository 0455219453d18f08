//! Finds files whose time in their layer is over and sees each of them through.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{WorkContext, WorkError, move_run};
use crate::{
    config::{CatalogConfig, Config},
    crash_points::CrashPoint,
};

/// Moves at a time: more would only take the disks from merges and readers.
const MOVES_AT_ONCE: usize = 2;

/// Whether there is a move or an expiry that this configuration could serve. On one layer without
/// a TTL there is none, and nobody need look; the embedded catalog has none.
pub fn serves_moves(config: &Config) -> bool {
    let is_shared = matches!(config.catalog, CatalogConfig::Redis(_));
    is_shared && (config.layers.len() > 1 || config.layers.iter().any(|layer| layer.ttl.is_some()))
}

/// Moves and expires what is due until nothing is, claims are stopped, or something beside the files
/// is wrong (a full disk, a lost mount): then the next run tries again. Returns the number of items
/// that were claimed.
pub async fn move_due(context: &Arc<WorkContext>) -> Result<u64, WorkError> {
    if !serves_moves(&context.config) {
        return Ok(0);
    }
    let _claiming = context.claiming.token();
    let permits = Arc::new(Semaphore::new(MOVES_AT_ONCE));
    let (halt, mut running) = (CancellationToken::new(), JoinSet::new());
    let (mut claimed_count, mut failed) = (0, None);
    loop {
        let permit = tokio::select! {
            biased;
            () = context.stop.claims.cancelled() => break,
            () = halt.cancelled() => break,
            permit = Arc::clone(&permits).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { break };
        // No move is counted as dead because a merge beside it ended the process.
        let turn = tokio::select! {
            () = context.stop.claims.cancelled() => break,
            turn = context.gate.enter() => turn,
        };
        let claimed_at = Instant::now();
        let lease = context.config.worker.lease;
        let claim = match context.catalog.claim_moves(1, lease).await {
            Ok(claims) => claims.into_iter().next(),
            Err(error) => {
                failed = Some(error);
                break;
            }
        };
        let Some(claim) = claim else { break };
        context.reached(CrashPoint::MoveClaimed);
        claimed_count += 1;
        let (worker, halt) = (Arc::clone(context), halt.clone());
        running.spawn(context.running.track_future(async move {
            let turn = turn.begin(false, &worker.stop.merges).await;
            if !move_run::run(&worker, claim, claimed_at).await {
                halt.cancel();
            }
            drop((turn, permit));
        }));
    }
    while running.join_next().await.is_some() {}
    failed.map_or(Ok(claimed_count), |error| Err(error.into()))
}

/// How long a move waits that found no room.
pub(super) const NO_ROOM_DELAY: Duration = Duration::from_secs(60);
