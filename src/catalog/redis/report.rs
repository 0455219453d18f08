//! Says what is wrong with stored data once, not at every tick.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

/// More than this are remembered no longer; the oldest knowledge is dropped at once.
const REMEMBERED_MAX: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct Reports(Mutex<HashSet<(String, String)>>);

impl Reports {
    /// Warns of a place that cannot be used, unless it was said before.
    pub(super) fn warn_once(&self, place: &str, reason: &str) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= REMEMBERED_MAX {
            said.clear();
        }
        if said.insert((place.to_owned(), reason.to_owned())) {
            tracing::warn!(place, reason, "skipped: not what the contract says");
        }
    }
}
