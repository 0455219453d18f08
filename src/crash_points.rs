//! Places where the program can be made to die, so that tests can prove what a crash there leaves.
//!
//! Each step of a plan's life ends at a named [`CrashPoint`]. Which of them is deadly is a value
//! that is handed down with the configuration, not a global: parallel tests use different ones.
//! No setting, option or variable makes a deadly one; the shipped program has
//! [`CrashPoints::none`], and passing a point costs a comparison.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::process::{Signal, getpid, kill_process};

macro_rules! crash_points {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A step that has just been taken.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum CrashPoint {
            $($(#[$doc])* $variant,)*
        }

        impl CrashPoint {
            /// Every point.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

crash_points! {
    /// A merge plan was claimed.
    MergeClaimed = "merge-claimed",
    /// Its inputs were looked up, and nothing of earlier attempts is left.
    MergeResolved = "merge-resolved",
    /// The output is complete in scratch.
    MergeWritten = "merge-written",
    /// Its name was announced.
    MergeAnnounced = "merge-announced",
    /// It has its name.
    MergePublished = "merge-published",
    /// The index names it instead of its inputs.
    MergeCommitted = "merge-committed",
    /// A plan that cannot be merged now was given back.
    MergeReleased = "merge-released",
    /// A plan that can never be merged was given up.
    MergeGivenUp = "merge-given-up",
    /// A plan whose earlier attempts died was split, or its last file set aside.
    MergeJudged = "merge-judged",
    /// The name of a promoted file was announced.
    PromoteAnnounced = "promote-announced",
    /// The promoted file has its second name.
    PromotePublished = "promote-published",
    /// The output of an earlier attempt was found, and the index does not name it.
    DeadOutputFound = "dead-output-found",
    /// The output of an attempt that was never committed was removed.
    DeadOutputRemoved = "dead-output-removed",
    /// A move was claimed.
    MoveClaimed = "move-claimed",
    /// Its copy is complete in scratch of the next layer, and equal to the original.
    MoveCopied = "move-copied",
    /// The copy's name was announced.
    MoveAnnounced = "move-announced",
    /// The copy has its name.
    MovePublished = "move-published",
    /// The index names the copy, or the file no more.
    MoveCommitted = "move-committed",
    /// A move that cannot be made now was given back.
    MoveReleased = "move-released",
    /// A move that can never be made was given up.
    MoveGivenUp = "move-given-up",
    /// A move that had nothing left to do was ended.
    MoveEnded = "move-ended",
    /// Deletes were claimed.
    DropsClaimed = "drops-claimed",
    /// The index was asked, and does not name the file.
    DropChecked = "drop-checked",
    /// The file's bytes are gone.
    DropDeleted = "drop-deleted",
    /// The deletes are ended.
    DropsFinished = "drops-finished",
    /// `metadata.json` was written aside.
    MetadataWritten = "metadata-written",
    /// It is durable there.
    MetadataSynced = "metadata-synced",
    /// It has its name.
    MetadataRenamed = "metadata-renamed",
    /// Files to import were copied.
    ImportCopied = "import-copied",
    /// It was recorded that their names will appear.
    ImportRecorded = "import-recorded",
    /// They have their names.
    ImportPublished = "import-published",
    /// The index names them.
    ImportRegistered = "import-registered",
    /// It was recorded that they are in the index.
    ImportFinished = "import-finished",
}

/// What becomes of the process at a deadly point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// `SIGKILL`: nothing is cleaned up.
    Killed,
    /// `SIGSTOP`: as if it had been swapped out, until somebody sends `SIGCONT`.
    Stopped,
}

#[derive(Debug)]
struct Deadly {
    point: CrashPoint,
    fate: Fate,
    /// How often the point is passed unharmed before.
    passes_left: AtomicU32,
}

/// Which point is deadly, if any.
#[derive(Debug, Clone, Default)]
pub struct CrashPoints(Option<Arc<Deadly>>);

impl CrashPoints {
    /// None: what the shipped program has.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Dies (`SIGKILL`) when the point is reached for the `count`th time, counted from 1.
    pub fn kill_at(point: CrashPoint, count: u32) -> Self {
        Self::new(point, Fate::Killed, count)
    }

    /// Stops (`SIGSTOP`) when the point is reached for the `count`th time, counted from 1.
    pub fn stop_at(point: CrashPoint, count: u32) -> Self {
        Self::new(point, Fate::Stopped, count)
    }

    fn new(point: CrashPoint, fate: Fate, count: u32) -> Self {
        Self(Some(Arc::new(Deadly {
            point,
            fate,
            passes_left: AtomicU32::new(count.saturating_sub(1)),
        })))
    }

    /// A step was taken: lives on, unless this point is the deadly one.
    pub fn reached(&self, point: CrashPoint) {
        if let Some(deadly) = self.0.as_ref().filter(|deadly| deadly.point == point) {
            deadly.reached();
        }
    }
}

impl Deadly {
    fn reached(&self) {
        let left = self
            .passes_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        match (left, self.fate) {
            (Ok(_), _) => {}
            (Err(_), Fate::Killed) => loop {
                // No unwinding, no destructors. Delivered at once; the loop is for the compiler.
                let _ = kill_process(getpid(), Signal::KILL);
            },
            (Err(_), Fate::Stopped) => {
                // Once: afterwards the process lives on.
                if self.passes_left.swap(u32::MAX, Ordering::SeqCst) == 0 {
                    let _ = kill_process(getpid(), Signal::STOP);
                    // It takes effect in here, not some steps later.
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
}

/// Two configurations differ only in what a user can set.
impl PartialEq for CrashPoints {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
