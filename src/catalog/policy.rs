//! The rules by which files are planned.

use std::time::Duration;

use crate::model::{Iteration, LayerName, WriterId};

/// The rules by which a catalog plans, the same for writers and for us.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Merge levels by iteration, 1 first, without gaps.
    pub levels: Vec<Level>,
    /// Layers in order of age.
    pub layers: Vec<LayerRule>,
    /// Writers whose queues are served; `None` for all.
    pub writers: Option<Vec<WriterId>>,
}

/// When files of one iteration are merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// The iteration of the inputs.
    pub iteration: Iteration,
    /// How long a plan waits for more files.
    pub timeout: Duration,
    /// A plan's inputs together stay at or below this size.
    pub max_size_bytes: u64,
}

/// What planning needs to know of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRule {
    /// Its name.
    pub name: LayerName,
    /// `fs` or `s3`, as on the wire.
    pub kind: String,
    /// Its URL without secrets, as on the wire.
    pub url: String,
    /// How long a file stays before it moves on; `None` for ever.
    pub ttl: Option<Duration>,
    /// The layer that comes next, if any.
    pub next: Option<LayerName>,
}

impl Policy {
    /// The level that merges files of `iteration`; `None` when such files are final.
    pub fn level(&self, iteration: Iteration) -> Option<&Level> {
        self.levels
            .iter()
            .find(|level| level.iteration == iteration)
    }

    /// Whether queues of this writer are ours.
    pub fn serves(&self, writer: &WriterId) -> bool {
        self.writers
            .as_ref()
            .is_none_or(|served| served.contains(writer))
    }
}
