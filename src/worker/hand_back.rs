//! How claims end that did not commit, also while the catalog is away.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::WorkContext;
use crate::catalog::CatalogError;

/// What failed waits this long for each attempt it had, up to a limit.
const RETRY_DELAY: Duration = Duration::from_secs(10);
pub(super) const RETRY_DELAY_MAX: Duration = Duration::from_secs(300);
/// A claim that cannot be handed back because the catalog is away is handed back when it answers
/// again, within this time.
const HAND_BACK_TIME_MAX: Duration = Duration::from_mins(10);
const HAND_BACK_PAUSE_MAX: Duration = Duration::from_secs(10);

pub(super) fn retry_delay(attempts: u32) -> Duration {
    RETRY_DELAY
        .saturating_mul(attempts.max(1))
        .min(RETRY_DELAY_MAX)
}

/// An attempt of which the catalog hears nothing would count as one that died: it is told when it
/// answers again.
pub(super) async fn until_answered<T: Future<Output = Result<(), CatalogError>>>(
    context: &Arc<WorkContext>,
    end: impl Fn() -> T,
) -> Result<(), CatalogError> {
    let (started, mut pause) = (Instant::now(), Duration::from_secs(1));
    loop {
        let ended = end().await;
        match ended {
            Err(CatalogError::Unavailable { .. }) if started.elapsed() < HAND_BACK_TIME_MAX => {}
            // Another worker goes on.
            Err(CatalogError::LeaseLost { .. }) => return Ok(()),
            ended => return ended,
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.stop.merges.cancelled() => return ended,
        }
        pause = (pause * 2).min(HAND_BACK_PAUSE_MAX);
    }
}
