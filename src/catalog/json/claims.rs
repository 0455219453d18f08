//! Who works on which files, and when those that failed may be tried again. In memory only:
//! claims do not outlive the process, because the layer's lock keeps others away.

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

/// What is remembered of a file between attempts.
#[derive(Debug, Clone, Copy)]
struct Retry {
    attempts: u32,
    not_before: Instant,
}

/// Claims by token. A token is never given twice, and a renewed one is void.
#[derive(Debug, Default)]
pub(super) struct Claims {
    live: HashMap<String, Claim>,
    retries: HashMap<DataPath, Retry>,
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
            .retries
            .iter()
            .filter(|(_, retry)| retry.not_before > now);
        claimed.chain(waiting.map(|(path, _)| path)).collect()
    }

    /// Claims files; returns the token and how often they were claimed, this time included.
    pub(super) fn take(&mut self, paths: &[DataPath], lease: Duration) -> (String, u32) {
        let now = Instant::now();
        self.live.retain(|_, claim| claim.expires_at > now);
        let earlier = paths.iter().filter_map(|path| self.retries.get(path));
        let attempts = 1 + earlier.map(|retry| retry.attempts).max().unwrap_or(0);
        for path in paths {
            let retry = Retry {
                attempts,
                not_before: now,
            };
            self.retries.insert(path.clone(), retry);
        }
        let token = PlanId::random().to_string();
        let claim = Claim {
            paths: paths.to_vec(),
            expires_at: now + lease,
        };
        self.live.insert(token.clone(), claim);
        (token, attempts)
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

    /// Ends a claim: its files wait for `retry_after`, or their past is forgotten. False when it was lost.
    pub(super) fn end(&mut self, token: &str, retry_after: Option<Duration>) -> bool {
        let is_held = self.held(token).is_some();
        let Some(claim) = self.live.remove(token).filter(|_| is_held) else {
            return false;
        };
        for path in claim.paths {
            match (retry_after, self.retries.get_mut(&path)) {
                (Some(delay), Some(retry)) => retry.not_before = Instant::now() + delay,
                _ => {
                    self.retries.remove(&path);
                }
            }
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
