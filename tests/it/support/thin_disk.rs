//! A file system that promises more than it has: ext4 in a sparse file on a small tmpfs. Writes succeed in
//! memory, and only `fsync` says that there is no room, as with thin volumes and network disks.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

use super::tmpfs::Tmpfs;

pub struct ThinDisk {
    backing: Tmpfs,
    folder: TempDir,
}

impl ThinDisk {
    /// Of `promised` size, on `real_size`. `None`, with the reason on stderr, where it cannot be made; in CI that
    /// is a failure.
    pub fn mount(real_size: &str, promised: &str) -> Option<Self> {
        let backing = Tmpfs::mount(real_size)?;
        let folder = TempDir::new().unwrap();
        let image = backing.path().join("image");
        // Without a journal: a write of it that fails would make everything read-only.
        let made = run("truncate", &["-s", promised], &image, None)
            .and_then(|()| {
                // Blocks as large as pages of the backing: none has room left for another one.
                let options = [
                    "-q",
                    "-F",
                    "-b",
                    "4096",
                    "-O",
                    "^has_journal",
                    "-E",
                    "lazy_itable_init=0",
                ];
                run("mkfs.ext4", &options, &image, None)
            })
            .and_then(|()| {
                let options = ["-o", "loop,errors=continue"];
                run("mount", &options, &image, Some(folder.path()))
            });
        match made {
            Ok(()) => Some(Self { backing, folder }),
            Err(reason) => {
                assert!(
                    std::env::var_os("CI").is_none(),
                    "a thin disk must be mounted for this test: {reason}"
                );
                eprintln!(
                    "not tested: a thin disk cannot be mounted here (root is needed): {reason}"
                );
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What stands below it.
    pub fn backing(&self) -> &Tmpfs {
        &self.backing
    }

    /// Everything that was written so far has its room, and nothing else: blocks of files that
    /// are gone would take what is written next.
    pub fn sync(&self) {
        let file = fs::File::open(self.path()).unwrap();
        rustix::fs::syncfs(&file).unwrap();
        let trimmed = Command::new("fstrim").arg(self.path()).status().unwrap();
        assert!(trimmed.success(), "fstrim {:?}", self.path());
    }
}

fn run(program: &str, options: &[&str], image: &Path, target: Option<&Path>) -> Result<(), String> {
    let output = Command::new(program)
        .args(options)
        .arg(image)
        .args(target)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

impl Drop for ThinDisk {
    fn drop(&mut self) {
        // Lazily: a killed daemon may not be gone yet.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
