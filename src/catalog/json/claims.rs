//! Who works on which files, and when those that failed may be tried again. In memory only:
//! claims do not outlive the process, because the layer's lock keeps others away. (Attempts do:
//! they stand in `metadata.json`.)

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use crate::model::{DataPath, PlanId};

#[derive(Debug)]
struct Claim {
    paths: Vec<DataPath>,
    expires_at: Instant,
}

/// Claims by token. A token is never given twice, and a renewed one is void.
#[derive(Debug, Default)]
pub(super) struct Claims {
    live: HashMap<String, Claim>,
    /// Files that wait, and how long.
    waiting: HashMap<DataPath, Instant>,
}

impl Claims {
    /// Files that are being worked on, or that wait for their next attempt.
    pub(super) fn taken(&self) -> HashSet<&DataPath> {
        let now = Instant::now();
        let claimed = self
            .live
            .values()
            .filter(|claim| claim.expires_at > now)
            .flat_map(|claim| &claim.paths);
        let waiting = self
            .waiting
            .iter()
            .filter(|(_, not_before)| **not_before > now);
        claimed.chain(waiting.map(|(path, _)| path)).collect()
    }

    /// Claims files; returns the token.
    pub(super) fn take(&mut self, paths: &[DataPath], lease: Duration) -> String {
        let now = Instant::now();
        self.live.retain(|_, claim| claim.expires_at > now);
        self.waiting.retain(|_, not_before| *not_before > now);
        let token = PlanId::random().to_string();
        let claim = Claim {
            paths: paths.to_vec(),
            expires_at: now + lease,
        };
        self.live.insert(token.clone(), claim);
        token
    }

    fn held(&self, token: &str) -> Option<&Claim> {
        self.live
            .get(token)
            .filter(|claim| claim.expires_at > Instant::now())
    }

    /// The files of a claim that is still held.
    pub(super) fn paths(&self, token: &str) -> Option<Vec<DataPath>> {
        self.held(token).map(|claim| claim.paths.clone())
    }

    /// The new token; `None` when the claim was lost.
    pub(super) fn renew(&mut self, token: &str, lease: Duration) -> Option<String> {
        self.held(token)?;
        let mut claim = self.live.remove(token)?;
        claim.expires_at = Instant::now() + lease;
        let renewed = PlanId::random().to_string();
        self.live.insert(renewed.clone(), claim);
        Some(renewed)
    }

    /// Ends a claim: its files wait for `retry_after`, if it is given. False when it was lost.
    pub(super) fn end(&mut self, token: &str, retry_after: Option<Duration>) -> bool {
        let is_held = self.held(token).is_some();
        let Some(claim) = self.live.remove(token).filter(|_| is_held) else {
            return false;
        };
        if let Some(delay) = retry_after {
            let not_before = Instant::now() + delay;
            let waiting = claim.paths.into_iter().map(|path| (path, not_before));
            self.waiting.extend(waiting);
        }
        true
    }

    /// Claims that are held.
    pub(super) fn live_count(&self) -> usize {
        let now = Instant::now();
        self.live
            .values()
            .filter(|claim| claim.expires_at > now)
            .count()
    }
}
