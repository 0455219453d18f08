//! The right to work on something for a while.

use super::{DropItem, MergePlan, MoveItem};

/// Proof that a claim is still ours. The token is the claimed item's exact text
/// (Redis) or a number that is never given twice (embedded): nobody else can hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What the catalog compares, byte for byte.
    pub token: String,
    /// When another worker may take over, Unix seconds by the catalog's clock.
    pub expires_at_s: i64,
}

/// A merge plan that is ours until its lease ends.
#[derive(Debug, Clone)]
pub struct ClaimedMerge {
    /// What to merge.
    pub plan: MergePlan,
    /// Our right to it; replaced at each renewal.
    pub lease: Lease,
}

/// A delete that is ours until its lease ends.
#[derive(Debug, Clone)]
pub struct ClaimedDrop {
    /// What to delete.
    pub item: DropItem,
    /// Our right to it.
    pub lease: Lease,
}

/// A move that is ours until its lease ends.
#[derive(Debug, Clone)]
pub struct ClaimedMove {
    /// What to move.
    pub item: MoveItem,
    /// Our right to it; replaced at each renewal.
    pub lease: Lease,
}
