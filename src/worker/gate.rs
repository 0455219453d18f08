//! Who may run beside whom: a plan that may end the process runs alone, so that it takes no
//! other plan's attempt with it.
//!
//! Claims are made one at a time behind the gate, and none while a suspect waits or runs: then
//! only the suspect's attempt stands in the catalog when the process dies.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio_util::sync::CancellationToken;

/// One for the whole process.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    claiming: Arc<Mutex<()>>,
    running: Arc<RwLock<()>>,
}

/// The right to claim a plan, before it is known what kind it is.
#[derive(Debug)]
pub(super) struct ClaimTurn {
    claiming: OwnedMutexGuard<()>,
    beside: OwnedRwLockReadGuard<()>,
    running: Arc<RwLock<()>>,
}

/// The right to run, until it is dropped.
#[derive(Debug)]
pub(super) enum RunTurn {
    /// Others may run too.
    Beside { _turn: OwnedRwLockReadGuard<()> },
    /// Nothing else runs.
    Alone { _turn: OwnedRwLockWriteGuard<()> },
}

impl Gate {
    /// Waits while a suspect waits or runs.
    pub(super) async fn enter(&self) -> ClaimTurn {
        let claiming = Arc::clone(&self.claiming).lock_owned().await;
        ClaimTurn {
            beside: Arc::clone(&self.running).read_owned().await,
            running: Arc::clone(&self.running),
            claiming,
        }
    }
}

impl ClaimTurn {
    /// Lets the next claim be made. One that is to run alone waits first until everything that
    /// runs has ended; `None` when it is stopped before.
    pub(super) async fn begin(self, alone: bool, stop: &CancellationToken) -> Option<RunTurn> {
        if !alone {
            return Some(RunTurn::Beside { _turn: self.beside });
        }
        drop(self.beside);
        let turn = tokio::select! {
            turn = self.running.write_owned() => RunTurn::Alone { _turn: turn },
            () = stop.cancelled() => return None,
        };
        drop(self.claiming);
        Some(turn)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_suspect_waits_for_those_that_run_and_nobody_claims_meanwhile() {
        let (gate, stop) = (Gate::default(), CancellationToken::new());
        let first = gate.enter().await.begin(false, &stop).await;
        let second = gate.enter().await.begin(false, &stop).await;
        let suspect = gate.enter().await;
        let (of_suspect, never) = (stop.clone(), stop.clone());
        let mut waiting = tokio::spawn(async move { suspect.begin(true, &of_suspect).await });
        assert!(tokio::time::timeout(SOON, &mut waiting).await.is_err());
        assert!(tokio::time::timeout(SOON, gate.enter()).await.is_err());
        drop((first, second));
        let alone = waiting.await.unwrap();
        assert!(matches!(alone, Some(RunTurn::Alone { .. })));
        assert!(tokio::time::timeout(SOON, gate.enter()).await.is_err());
        drop(alone);
        let after = gate.enter().await.begin(false, &never).await;
        assert!(matches!(after, Some(RunTurn::Beside { .. })));
    }

    #[tokio::test]
    async fn a_suspect_that_is_stopped_while_it_waits_lets_the_others_in() {
        let (gate, stop) = (Gate::default(), CancellationToken::new());
        let running = gate.enter().await.begin(false, &stop).await;
        stop.cancel();
        assert!(gate.enter().await.begin(true, &stop).await.is_none());
        drop(running);
        let never = CancellationToken::new();
        let alone = gate.enter().await.begin(true, &never);
        assert!(alone.await.is_some());
    }
}
