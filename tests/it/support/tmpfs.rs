//! A small file system of a test's own, which can be full.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

pub struct Tmpfs {
    folder: TempDir,
}

impl Tmpfs {
    /// `None`, with the reason on stderr, where mounting is not possible; in CI that is a failure.
    pub fn mount(size: &str) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .output();
        let reason = match mounted {
            Ok(output) if output.status.success() => return Some(Self { folder }),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        assert!(
            std::env::var_os("CI").is_none(),
            "a tmpfs must be mounted for this test: {reason}"
        );
        eprintln!("not tested: a tmpfs cannot be mounted here (root is needed): {reason}");
        None
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn resize(&self, size: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,size={size}")])
            .arg(self.folder.path())
            .status()
            .unwrap();
        assert!(status.success());
    }

    pub fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.folder.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Takes all but `left_bytes`; returns the file that holds it.
    pub fn fill(&self, left_bytes: u64) -> PathBuf {
        let path = self.folder.path().join("ballast");
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        let piece = vec![1; 4096];
        while self.free_bytes() > left_bytes && file.write_all(&piece).is_ok() {}
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a killed daemon may not be gone yet.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.folder.path())
            .status();
        let _ = fs::remove_dir_all(self.folder.path());
    }
}
