//! The words of the lake as types: parsed once at the edge, trusted inside.
//!
//! Nothing here does I/O or knows a catalog; the rules come from the metadata
//! protocol that writers and readers share (see `lua/README.md`).

mod entry;
mod ids;
mod lease;
mod path;
mod plan;
mod table;

pub use entry::IndexEntry;
pub use ids::{LayerName, PlanId, WriterId};
pub use lease::{ClaimedDrop, ClaimedMerge, ClaimedMove, Lease};
pub use path::{DataPath, Iteration, PartitionDir};
pub use plan::{
    DropItem, Folder, MergePlan, MergeQueue, MoveItem, PlanPart, QuarantineKind, Quarantined,
    SetAside,
};
pub use table::TableRef;

/// Why a name, path or number from outside was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// A database, table, layer or writer name that no key or folder can hold.
    #[error("{what} {name:?} is not usable: {reason}")]
    Name {
        /// What kind of name it is.
        what: &'static str,
        /// The name as it came.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A data path that is malformed or would leave its table's folder.
    #[error("path {path:?} is not usable: {reason}")]
    Path {
        /// The path as it came.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}
