//! What a merge may take: memory, room on disks, open files. Shared by all merges of the process.
//!
//! Memory is granted by need, and in such a way that nobody waits: each merge that may still
//! start keeps its least share. Room on disk is asked for before a plan is claimed, so that no
//! attempt is spent, and reserved once the inputs are known: twice the input, on each file system
//! that the merge writes to, beside what others reserved and a rest that stays free for writers.

use std::{
    collections::{HashMap, HashSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::statvfs,
    process::{Resource, getrlimit},
};

use super::run_error::blocking;
use crate::{config::Config, model::LayerName, storage::Layer};

/// No merge works well with less.
const MEMORY_MIN_BYTES: u64 = 64 << 20;
/// Unless `worker.min_free` says otherwise, this share of a file system stays free, at most …
const MIN_FREE_PART: u64 = 20;
/// … this much: enough for writers until somebody looks.
const MIN_FREE_BYTES_MAX: u64 = 1 << 30;
/// Output and sorted pieces exist beside the input until the commit.
const ROOM_FACTOR: u64 = 2;
/// Files that one merge has open at once, its output, scratch and locks included.
const FILES_PER_MERGE: u64 = 56;
/// Files that the rest of the process has open: log, connections, catalog, threads that look for files.
const FILES_BESIDE: u64 = 48;

/// How many merges run at once: as many as are configured, if the process may open enough files.
pub fn merges_at_once(config: &Config) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let by_files = limit.saturating_sub(FILES_BESIDE) / FILES_PER_MERGE;
    let by_files = usize::try_from(by_files).unwrap_or(usize::MAX).max(1);
    config.worker.concurrency.min(by_files)
}

/// The budgets of one process.
#[derive(Debug)]
pub struct Budgets {
    memory: Arc<Memory>,
    disk: Arc<Disk>,
}

impl Budgets {
    /// Nothing is taken yet.
    pub fn new(config: &Config) -> Self {
        Self {
            memory: Arc::new(Memory {
                total_bytes: config.worker.memory_budget_bytes,
                merges_max: config.worker.concurrency.max(1) as u64,
                taken: Mutex::default(),
            }),
            disk: Arc::default(),
        }
    }

    /// Memory for a merge that could use `wanted_bytes`.
    pub(super) fn memory(&self, wanted_bytes: u64) -> MemoryGrant {
        self.memory.grant(wanted_bytes)
    }

    /// Whether a plan with this much input could start on a layer now. Says so once when it cannot,
    /// and once when it can again.
    pub(super) async fn has_room(
        &self,
        config: &Config,
        layer: &Layer,
        input_bytes: u64,
    ) -> Result<bool, RoomError> {
        self.reserve(config, layer, input_bytes)
            .await
            .map(|room| room.is_some())
    }

    /// Reserves room for a merge; `None` when there is not enough.
    pub(super) async fn reserve(
        &self,
        config: &Config,
        layer: &Layer,
        input_bytes: u64,
    ) -> Result<Option<Room>, RoomError> {
        let folders = [
            Some(layer.root().to_owned()),
            config.worker.scratch_dir.clone(),
        ];
        let need = Need {
            work: "merge",
            bytes: input_bytes.saturating_mul(ROOM_FACTOR),
        };
        self.reserve_in(config, layer, folders.into_iter().flatten().collect(), need)
            .await
    }

    /// Reserves room for a copy in a layer; `None` when there is not enough.
    pub(super) async fn reserve_copy(
        &self,
        config: &Config,
        layer: &Layer,
        bytes: u64,
    ) -> Result<Option<Room>, RoomError> {
        let need = Need {
            work: "move",
            bytes,
        };
        self.reserve_in(config, layer, vec![layer.root().to_owned()], need)
            .await
    }

    async fn reserve_in(
        &self,
        config: &Config,
        layer: &Layer,
        folders: Vec<PathBuf>,
        need: Need,
    ) -> Result<Option<Room>, RoomError> {
        let disk = Arc::clone(&self.disk);
        let (layer, min_free) = (layer.name().clone(), config.worker.min_free_bytes);
        // A hung mount must not block the runtime.
        blocking(move || disk.reserve(&folders, &layer, need, min_free))
            .await
            .map_err(|_| RoomError {
                path: PathBuf::new(),
                source: std::io::Error::other("the look at the disk panicked"),
            })?
    }
}

/// How much room there is cannot be known.
#[derive(Debug, thiserror::Error)]
#[error("{}: the free space cannot be read: {source}", path.display())]
pub(super) struct RoomError {
    path: PathBuf,
    source: std::io::Error,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Sums are changed in one go.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Memory {
    total_bytes: u64,
    merges_max: u64,
    /// Bytes, and among how many merges.
    taken: Mutex<(u64, u64)>,
}

impl Memory {
    fn grant(self: &Arc<Self>, wanted_bytes: u64) -> MemoryGrant {
        let mut taken = guard(&self.taken);
        let least = MEMORY_MIN_BYTES.min(self.total_bytes / self.merges_max);
        let others = self.merges_max.saturating_sub(taken.1 + 1);
        let most = self
            .total_bytes
            .saturating_sub(taken.0)
            .saturating_sub(least.saturating_mul(others));
        let bytes = wanted_bytes.min(most).max(least);
        taken.0 += bytes;
        taken.1 += 1;
        drop(taken);
        MemoryGrant {
            memory: Arc::clone(self),
            bytes,
        }
    }
}

/// Memory of one merge, until this is dropped.
#[derive(Debug)]
pub(super) struct MemoryGrant {
    memory: Arc<Memory>,
    pub(super) bytes: u64,
}

impl Drop for MemoryGrant {
    fn drop(&mut self) {
        let mut taken = guard(&self.memory.taken);
        taken.0 = taken.0.saturating_sub(self.bytes);
        taken.1 = taken.1.saturating_sub(1);
    }
}

#[derive(Debug, Default)]
struct Disk {
    /// Bytes by file system.
    reserved: Mutex<HashMap<u64, u64>>,
    /// Layers that were said to have no room for this work.
    short: Mutex<HashSet<(LayerName, &'static str)>>,
}

/// What room is wanted for, and how much on each file system.
#[derive(Clone, Copy)]
struct Need {
    work: &'static str,
    bytes: u64,
}

struct FileSystem {
    device: u64,
    free_bytes: u64,
    total_bytes: u64,
}

fn file_system(folder: &Path) -> Result<FileSystem, RoomError> {
    let failed = |source: std::io::Error| RoomError {
        path: folder.to_owned(),
        source,
    };
    let meta = std::fs::metadata(folder).map_err(failed)?;
    let stat = statvfs(folder).map_err(|errno| failed(errno.into()))?;
    Ok(FileSystem {
        device: meta.dev(),
        // What is kept for root is not ours to use.
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

impl Disk {
    fn reserve(
        self: Arc<Self>,
        folders: &[PathBuf],
        layer: &LayerName,
        need: Need,
        min_free_bytes: Option<u64>,
    ) -> Result<Option<Room>, RoomError> {
        let (needed, work) = (need.bytes, need.work);
        let mut systems: Vec<(FileSystem, &PathBuf)> = Vec::new();
        for folder in folders {
            let system = file_system(folder)?;
            if systems
                .iter()
                .all(|(known, _)| known.device != system.device)
            {
                systems.push((system, folder));
            }
        }
        let mut reserved = guard(&self.reserved);
        for (system, folder) in &systems {
            let kept = min_free_bytes
                .unwrap_or_else(|| (system.total_bytes / MIN_FREE_PART).min(MIN_FREE_BYTES_MAX));
            let others = reserved.get(&system.device).copied().unwrap_or(0);
            let wanted = needed.saturating_add(others).saturating_add(kept);
            if system.free_bytes < wanted {
                drop(reserved);
                if guard(&self.short).insert((layer.clone(), work)) {
                    tracing::warn!(%layer, folder = %folder.display(), free_bytes = system.free_bytes, needed_bytes = needed,
                        kept_free_bytes = kept, reserved_bytes = others,
                        "too little free space: no {work} starts on this layer until there is more; deletes go on");
                }
                return Ok(None);
            }
        }
        let devices: Vec<u64> = systems.iter().map(|(system, _)| system.device).collect();
        for device in &devices {
            *reserved.entry(*device).or_default() += needed;
        }
        drop(reserved);
        if guard(&self.short).remove(&(layer.clone(), work)) {
            tracing::info!(%layer, "there is room again; {work}s go on");
        }
        Ok(Some(Room {
            disk: Arc::clone(&self),
            devices,
            bytes: needed,
        }))
    }
}

/// Reserved room, until this is dropped.
#[derive(Debug)]
pub(super) struct Room {
    disk: Arc<Disk>,
    devices: Vec<u64>,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut reserved = guard(&self.disk.reserved);
        for device in &self.devices {
            if let Some(bytes) = reserved.get_mut(device) {
                *bytes = bytes.saturating_sub(self.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory(total_mib: u64, merges_max: u64) -> Arc<Memory> {
        Arc::new(Memory {
            total_bytes: total_mib * MIB,
            merges_max,
            taken: Mutex::default(),
        })
    }

    #[test]
    fn a_merge_gets_what_it_needs_and_leaves_the_others_their_least() {
        let memory = memory(512, 3);
        let large = memory.grant(10_000 * MIB);
        assert_eq!(large.bytes, 384 * MIB);
        let small = memory.grant(MIB);
        assert_eq!(small.bytes, 64 * MIB);
        let last = memory.grant(200 * MIB);
        assert_eq!(last.bytes, 64 * MIB);
        assert!(large.bytes + small.bytes + last.bytes <= 512 * MIB);
        drop(large);
        drop(last);
        assert_eq!(memory.grant(100 * MIB).bytes, 100 * MIB);
        drop(small);
        assert_eq!(*guard(&memory.taken), (0, 0));
    }

    #[test]
    fn every_order_of_grants_stays_within_the_budget() {
        let memory = memory(640, 4);
        let mut state = 7;
        let mut held: Vec<MemoryGrant> = Vec::new();
        for _ in 0..10_000 {
            state = (state * 1_103_515_245_u64 + 12_345) % (1 << 31);
            if held.len() == 4 || state % 3 == 0 && !held.is_empty() {
                held.remove(usize::try_from(state % held.len() as u64).unwrap());
            } else {
                held.push(memory.grant(state % (900 * MIB)));
            }
            let sum: u64 = held.iter().map(|grant| grant.bytes).sum();
            assert!(sum <= 640 * MIB, "{sum}");
            assert!(held.iter().all(|grant| grant.bytes >= 64 * MIB));
        }
    }

    #[test]
    fn what_running_merges_reserved_is_not_given_twice() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().to_owned()];
        let layer = LayerName::parse("hot").unwrap();
        let disk = Arc::new(Disk::default());
        let free = file_system(folder.path()).unwrap().free_bytes;
        let need = |bytes: u64| Need {
            work: "merge",
            bytes: bytes * ROOM_FACTOR,
        };
        let reserve = |bytes| {
            Arc::clone(&disk)
                .reserve(&folders, &layer, need(bytes), Some(0))
                .unwrap()
        };
        let half = reserve(free / 4).unwrap();
        assert!(reserve(free * 2 / 5).is_none());
        drop(half);
        assert!(reserve(free * 2 / 5).is_some());
        assert!(guard(&disk.reserved).values().all(|bytes| *bytes == 0));
        let kept = Arc::clone(&disk).reserve(&folders, &layer, need(0), Some(u64::MAX));
        assert!(kept.unwrap().is_none());
    }
}
