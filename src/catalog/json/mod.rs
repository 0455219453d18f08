//! The embedded catalog: one `metadata.json` per partition, no server.
//!
//! One process owns a layer (a lock on its root says so), so claims live in memory. Files that
//! any program renames into a partition are found by [`refresh`](crate::catalog::Catalog::refresh)
//! and registered from their footers. An output is announced in `pending` before its bytes
//! appear, so that after a crash it is known for an orphan and never taken for a new file.

mod audit;
mod calls;
mod claims;
mod deletes;
mod discovery;
mod index;
mod mend;
mod merges;
mod metadata_file;
mod partition;
mod planner;
mod quarantine;
mod records;
mod refresh;
mod replaced;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock, atomic::AtomicBool},
};

use serde_json::{Map, Value};

pub use audit::JsonAudit;

use self::index::Inner;
use super::{Catalog, CatalogError, Policy};
use crate::{
    crash_points::CrashPoints,
    model::{LayerName, TableRef},
};

const LOCK_NAME: &str = ".gigamerge.lock";

/// What a data file's footer says of it; the caller knows Parquet, the catalog does not.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbedFile {
    /// Rows in the file.
    pub row_count: u64,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Smallest time, nanoseconds.
    pub min_time_ns: i64,
    /// Largest time, nanoseconds.
    pub max_time_ns: i64,
    /// Column → smallest value.
    pub min: Map<String, Value>,
    /// Column → largest value.
    pub max: Map<String, Value>,
}

/// Reads a file's footer, or says why it cannot be registered.
pub type Probe = Arc<dyn Fn(&TableRef, &Path) -> Result<ProbedFile, String> + Send + Sync>;

/// `metadata.json` files under the roots of `fs` layers.
#[derive(Clone)]
pub struct JsonCatalog {
    inner: Arc<Inner>,
}

impl JsonCatalog {
    /// Takes the lock of every layer, loads what is there and removes outputs that a crash left behind.
    ///
    /// # Errors
    /// [`CatalogError::Locked`] when another process owns a layer; I/O errors name the file.
    pub async fn open(
        layers: Vec<(LayerName, PathBuf)>,
        policy: Arc<Policy>,
        probe: Probe,
    ) -> Result<Self, CatalogError> {
        Self::open_with(layers, policy, probe, CrashPoints::none()).await
    }

    /// Like [`open`](Self::open), for tests that crash.
    pub async fn open_with(
        layers: Vec<(LayerName, PathBuf)>,
        policy: Arc<Policy>,
        probe: Probe,
        crash_points: CrashPoints,
    ) -> Result<Self, CatalogError> {
        let locks = layers
            .iter()
            .map(|(_, root)| lock(root))
            .collect::<Result<Vec<_>, _>>()?;
        Self::load(layers, policy, probe, (locks, crash_points), false).await
    }

    /// Opens for looking only, beside a process that works: takes no lock and writes nothing. Files that are not
    /// registered yet count as if they were.
    pub async fn open_to_look(
        layers: Vec<(LayerName, PathBuf)>,
        policy: Arc<Policy>,
        probe: Probe,
    ) -> Result<Self, CatalogError> {
        let nothing = (Vec::new(), CrashPoints::none());
        Self::load(layers, policy, probe, nothing, true).await
    }

    async fn load(
        layers: Vec<(LayerName, PathBuf)>,
        policy: Arc<Policy>,
        probe: Probe,
        (locks, crash_points): (Vec<File>, CrashPoints),
        is_read_only: bool,
    ) -> Result<Self, CatalogError> {
        let inner = Arc::new(Inner {
            layers,
            probe,
            policy: RwLock::new(policy),
            partitions: Mutex::new(BTreeMap::new()),
            announced: Mutex::new(HashMap::new()),
            scan: Mutex::new(refresh::ScanMemory::default()),
            locks: Mutex::new(locks),
            is_read_only,
            is_closed: AtomicBool::new(false),
            crash_points,
        });
        let catalog = Self { inner };
        catalog.refresh().await?;
        Ok(catalog)
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|error| {
                Err(CatalogError::Unavailable {
                    context: "embedded catalog".to_owned(),
                    reason: error.to_string(),
                })
            })
    }
}

fn lock(root: &Path) -> Result<File, CatalogError> {
    let path = root.join(LOCK_NAME);
    let io = |source| CatalogError::Io {
        path: path.clone(),
        source,
    };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o640)
        .open(&path)
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(CatalogError::Locked { path }),
        Err(std::fs::TryLockError::Error(source)) => Err(io(source)),
    }
}
