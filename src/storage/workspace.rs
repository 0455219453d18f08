//! A private folder that goes away with its owner.

use std::{
    fs::{self, File},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::StorageError;

const PREFIX: &str = "gigamerge-";
const LOCK: &str = "lock";

/// A folder for unfinished files, removed on drop. A lock inside tells the living from
/// the dead, so that a sweep after a crash never takes a running merge's folder.
#[derive(Debug)]
pub struct Workspace {
    dir: PathBuf,
    _lock: File,
}

impl Workspace {
    /// Makes a fresh folder below `parent`, which is made too where it is missing.
    pub fn create(parent: &Path) -> Result<Self, StorageError> {
        let dir = parent.join(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()));
        let lock_path = dir.join(LOCK);
        let lock = fs::create_dir_all(parent)
            .and_then(|()| fs::DirBuilder::new().mode(0o700).create(&dir))
            .and_then(|()| create_new(&lock_path))
            .and_then(|file| file.try_lock().map_err(std::io::Error::from).map(|()| file));
        match lock {
            Ok(lock) => Ok(Self { dir, _lock: lock }),
            Err(source) => {
                // The folder may be there without its lock when the disk is full.
                let _ = fs::remove_dir_all(&dir);
                Err(StorageError::Io { path: dir, source })
            }
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Folders below `parent` whose owners are gone.
    pub fn abandoned(parent: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        let is_ours = |entry: &fs::DirEntry| {
            entry.file_name().to_string_lossy().starts_with(PREFIX)
                && entry.file_type().is_ok_and(|kind| kind.is_dir())
        };
        entries
            .filter(is_ours)
            .map(|entry| entry.path())
            .filter(|dir| is_abandoned(dir))
            .collect()
    }

    /// Removes a folder if its owner is gone.
    pub fn remove_abandoned(dir: &Path) -> bool {
        is_abandoned(dir) && fs::remove_dir_all(dir).is_ok()
    }

    /// Removes folders below `parent` whose owners are gone; says how many.
    pub fn sweep(parent: &Path) -> u64 {
        let abandoned = Self::abandoned(parent);
        let removed = abandoned.iter().filter(|dir| Self::remove_abandoned(dir));
        removed.count() as u64
    }
}

/// Creates a file that is not for everybody. One of that name, also a link, is an error.
pub fn create_new(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o640).open(path)
}

fn is_abandoned(dir: &Path) -> bool {
    match File::open(dir.join(LOCK)) {
        Ok(lock) => lock.try_lock().is_ok(),
        // Between making the folder and its lock a living owner has none either.
        Err(_) => fs::metadata(dir)
            .and_then(|meta| meta.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() > 60)),
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // A thread that is not waited for may add a file to it while it goes; then once more.
        let removed = fs::remove_dir_all(&self.dir).or_else(|_| fs::remove_dir_all(&self.dir));
        if let Err(error) = removed {
            tracing::warn!(folder = %self.dir.display(), %error, "scratch folder could not be removed; it is swept at the next start");
        }
    }
}
