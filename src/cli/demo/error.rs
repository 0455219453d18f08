//! Why the demo failed.

use std::path::PathBuf;

use crate::{
    catalog::CatalogError, config::ConfigError, daemon::DaemonError, storage::StorageError,
};

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The folder could not be made or read.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder holds something already.
    #[error("{} is not empty; give the demo a new folder", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The demo's settings do not fit this machine.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The daemon could not start.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The catalog did not answer.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A file's place is unknown.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The demo's own writer or reader failed.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// What was promised does not hold.
    #[error("{0}; please report this as a defect")]
    Broken(String),
}

impl DemoError {
    pub(super) fn folder(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Folder { path, source }
    }

    pub(super) fn file<E: std::fmt::Display>(path: &std::path::Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |error| Self::File {
            path,
            reason: error.to_string(),
        }
    }
}
