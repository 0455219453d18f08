//! Why a catalog could not answer.

/// Why the catalog could not answer.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The server is away or the call took too long; the same call may succeed later.
    #[error("catalog is unavailable ({context}): {reason}")]
    Unavailable {
        /// What was tried.
        context: String,
        /// What went wrong, without secrets.
        reason: String,
    },
    /// The server answered, and said no; trying again does not help.
    #[error("catalog refused {context}: {reason}")]
    Refused {
        /// What was tried.
        context: String,
        /// The reason given, without secrets.
        reason: String,
    },
    /// Something stored is not what the contract says; it was left as it is.
    #[error("{place}: {reason}")]
    Malformed {
        /// The key or file.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the embedded catalog could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process owns the folder.
    #[error("{}: another gigamerge works on this folder; stop it, or give this one another --data-dir", path.display())]
    Locked {
        /// The lock file.
        path: std::path::PathBuf,
    },
    /// The claim is not ours any more.
    #[error("the lease on {what} was lost")]
    LeaseLost {
        /// What was leased.
        what: String,
    },
}
