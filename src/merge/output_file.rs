//! The output file on its way to the disk.

use std::{
    fs::File,
    io::{self, Write},
    sync::mpsc,
    thread::JoinHandle,
};

/// Bytes that the kernel may hold back before they are sent to the disk.
const UNSYNCED_BYTES_MAX: u64 = 16 << 20;

/// A file that is synced while it is written: whoever syncs it in the end hardly waits, and
/// other programs never wait for hundreds of megabytes of ours.
pub(super) struct OutputFile {
    file: File,
    unsynced_bytes: u64,
    syncing: Option<Syncing>,
}

struct Syncing {
    wanted: mpsc::SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl OutputFile {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            unsynced_bytes: 0,
            syncing: None,
        }
    }

    fn sync_soon(&mut self) {
        self.unsynced_bytes = 0;
        if self.syncing.is_none() {
            self.syncing = start(&self.file);
        }
        if let Some(syncing) = &self.syncing {
            // When it is still at it, it will be asked again.
            let _ = syncing.wanted.try_send(());
        }
    }

    /// Waits for what is being synced. The kernel tells of a write error once: who syncs the
    /// file later would not hear of it.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        let Some(syncing) = self.syncing.take() else {
            return Ok(());
        };
        drop(syncing.wanted);
        let done = syncing.thread.join();
        done.unwrap_or_else(|_| Err(io::Error::other("syncing ended without a result")))
    }
}

/// Without the thread the file is synced in the end.
fn start(file: &File) -> Option<Syncing> {
    let file = file.try_clone().ok()?;
    let (wanted, asked) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("merge-sync".into())
        .spawn(move || asked.iter().try_for_each(|()| file.sync_data()))
        .ok()?;
    Some(Syncing { wanted, thread })
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.unsynced_bytes += count as u64;
        if self.unsynced_bytes >= UNSYNCED_BYTES_MAX {
            self.sync_soon();
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
