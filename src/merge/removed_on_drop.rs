//! Files that do not outlive whoever made them.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{LazyLock, mpsc},
};

use rustix::fs::{Mode, OFlags};

use super::MergeError;

/// What the kernel frees in a few milliseconds.
const FREED_AT_ONCE: u64 = 16 << 20;

/// Files that wait for being freed; each is open meanwhile.
const WAITING_COUNT_MAX: usize = 128;

/// A file that is removed when this is dropped, unless it is kept. Other handles to it are to be
/// closed before.
#[derive(Debug)]
pub(super) struct RemovedOnDrop {
    path: PathBuf,
    kept: bool,
}

impl RemovedOnDrop {
    /// Creates a new file; an existing one is an error and stays.
    pub(super) fn create(path: PathBuf) -> Result<(Self, File), MergeError> {
        // Not for everybody: who may read it is decided by its group.
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o640).open(&path);
        let file = file.map_err(|source| MergeError::Io {
            path: path.clone(),
            source,
        })?;
        Ok((Self { path, kept: false }, file))
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the file where it is.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for RemovedOnDrop {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Whatever else may be there by now is not waited for, and no link is followed.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = rustix::fs::open(&self.path, flags, Mode::empty());
        // A file that is gone already is as wanted; nothing else can be done here.
        let _ = std::fs::remove_file(&self.path);
        if let Ok(file) = open {
            free(File::from(file));
        }
    }
}

/// Closes a file that is gone from its folder. Freeing a large one takes the kernel long, and who
/// stops a merge need not wait for it.
fn free(file: File) {
    static FREEING: LazyLock<Option<mpsc::SyncSender<File>>> = LazyLock::new(|| {
        let (send, files) = mpsc::sync_channel::<File>(WAITING_COUNT_MAX);
        let thread = std::thread::Builder::new().name("merge-free".into());
        let started = thread.spawn(move || files.iter().for_each(drop));
        started.ok().map(|_| send)
    });
    let is_large = file.metadata().is_ok_and(|meta| meta.len() > FREED_AT_ONCE);
    if is_large && let Some(freeing) = &*FREEING {
        // What it has no place for is closed here.
        let _ = freeing.try_send(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_leaves_its_folder_at_once_unless_it_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        for size in [1, 2 * FREED_AT_ONCE] {
            let (guard, file) = RemovedOnDrop::create(path("gone")).unwrap();
            file.set_len(size).unwrap();
            drop((file, guard));
            assert!(!path("gone").exists());
        }
        let (guard, _) = RemovedOnDrop::create(path("kept")).unwrap();
        guard.keep();
        assert!(path("kept").exists());
        assert!(RemovedOnDrop::create(path("kept")).is_err());
        assert!(path("kept").exists());
    }

    #[test]
    fn what_took_its_place_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let (guard, _) = RemovedOnDrop::create(path.clone()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, pipe, Mode::RUSR | Mode::WUSR, 0).unwrap();
        drop(guard);
        assert!(!path.exists());
    }
}
