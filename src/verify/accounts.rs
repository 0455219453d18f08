//! Files that are rightly on disk without an entry, and entries that are rightly in no plan.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
};

/// Two hashes: 128 bits do not collide by chance.
pub(super) type FileKey = (u64, u64);

/// Makes keys; all sets of one run share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys([RandomState; 2]);

impl Keys {
    /// A path of the index, whatever its layer.
    pub(super) fn path(&self, path: &str) -> FileKey {
        (self.0[0].hash_one(path), self.0[1].hash_one(path))
    }

    /// The bytes of a path in one layer.
    pub(super) fn bytes(&self, layer: &str, path: &str) -> FileKey {
        let both = (layer, path);
        (self.0[0].hash_one(both), self.0[1].hash_one(both))
    }
}

/// What the queues and the catalog's other hashes account for.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    /// Bytes that wait for their deletion.
    pub(super) drops: HashSet<FileKey>,
    /// Paths that wait for their move.
    pub(super) moves: HashSet<FileKey>,
    /// Bytes that will be named soon: outputs of merges and moves.
    pub(super) outputs: HashSet<FileKey>,
    /// Paths that are not merged any more.
    pub(super) set_aside: HashSet<FileKey>,
}

impl Accounts {
    /// Whether bytes without an entry are accounted for.
    pub(super) fn knows(&self, bytes: FileKey) -> bool {
        self.drops.contains(&bytes) || self.outputs.contains(&bytes)
    }
}

/// What was seen of one entry.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// Place of its layer in the configuration.
    pub(super) layer: u8,
    /// It is to be merged.
    pub(super) is_mergeable: bool,
    /// Some plan names it, or it was given up with one.
    pub(super) is_planned: bool,
    /// A short hash of the plan that names it, and whether that waits.
    pub(super) plan: (u32, bool),
}

/// Entries of one first folder.
pub(super) type SeenEntries = HashMap<FileKey, Seen>;
