//! Why a plan was not merged this time, and what follows from it.

use std::{path::PathBuf, time::Duration};

use super::{
    WorkError,
    budget::RoomError,
    hand_back::{RETRY_DELAY_MAX, retry_delay},
};
use crate::{catalog::CatalogError, merge::MergeError, model::ModelError, storage::StorageError};

/// Why a plan was not merged this time.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Work(#[from] WorkError),
    #[error("the merge thread panicked; the inputs are kept as they were")]
    Panicked,
    #[error("{} of the inputs are not there, first {}", .0.len(), .0.first().map(|path| path.display().to_string()).unwrap_or_default())]
    MissingInputs(Vec<PathBuf>),
    #[error("{}: the folder is not there; is its file system mounted?", .0.display())]
    FolderAway(PathBuf),
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("there is too little free space for its merge")]
    NoRoom,
    #[error(transparent)]
    RoomUnknown(#[from] RoomError),
    #[error("the lease was lost; another worker goes on")]
    LeaseLost,
    #[error("{0} left the index meanwhile")]
    SourceGone(String),
    #[error("the catalog names the output already")]
    OutputExists,
    #[error(
        "it is not known whether the commit took place ({0}); the output stays until that is known"
    )]
    CommitUnknown(CatalogError),
}

impl RunError {
    /// Trying again with the same inputs gives the same answer.
    pub(super) fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Merge(MergeError::TypeConflict { .. }) | Self::Model(_)
        )
    }

    /// The settings are at fault: they may be corrected at any time.
    fn is_setting(&self) -> bool {
        matches!(
            self,
            Self::Merge(
                MergeError::SortColumn { .. }
                    | MergeError::DedupKey { .. }
                    | MergeError::Budget { .. }
            )
        )
    }

    /// The inputs may be at fault, so that the plan is given up after some attempts. A full disk, a lost mount
    /// or a server that is away says nothing about the inputs: such a plan is tried until it succeeds.
    pub(super) fn blames_inputs(&self) -> bool {
        match self {
            Self::Panicked => true,
            Self::Merge(error) => {
                !self.is_setting()
                    && !matches!(error, MergeError::Io { .. } | MergeError::Cancelled)
            }
            _ => false,
        }
    }

    pub(super) fn retry_delay(&self, attempts: u32) -> Duration {
        if self.is_setting() {
            RETRY_DELAY_MAX
        } else {
            retry_delay(attempts)
        }
    }
}

/// Runs file work where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| RunError::Panicked)
}
