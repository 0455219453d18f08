//! What was done since the start, for logs and status.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that only grow.
#[derive(Debug, Default)]
pub struct Totals {
    merges: AtomicU64,
    promotions: AtomicU64,
    failures: AtomicU64,
    move_failures: AtomicU64,
    files_in: AtomicU64,
    rows: AtomicU64,
    rows_collapsed: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    drops: AtomicU64,
    moves: AtomicU64,
    bytes_moved: AtomicU64,
    expiries: AtomicU64,
    held_back: AtomicU64,
    moves_held_back: AtomicU64,
}

impl Totals {
    pub(super) fn add_merge(&self, files: u64, rows: u64, bytes_in: u64, bytes_out: u64) {
        self.merges.fetch_add(1, Ordering::Relaxed);
        self.files_in.fetch_add(files, Ordering::Relaxed);
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
    }

    pub(super) fn add_collapsed(&self, rows: u64) {
        self.rows_collapsed.fetch_add(rows, Ordering::Relaxed);
    }

    pub(super) fn add_promotion(&self) {
        self.promotions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_move_failure(&self) {
        self.move_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_drops(&self, count: u64) {
        self.drops.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn add_move(&self, bytes: u64) {
        self.moves.fetch_add(1, Ordering::Relaxed);
        self.bytes_moved.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_expiry(&self) {
        self.expiries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_held_back(&self) {
        self.held_back.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_move_held_back(&self) {
        self.moves_held_back.fetch_add(1, Ordering::Relaxed);
    }

    /// Times that a due plan was left where it is because there was no room for its merge.
    pub fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Relaxed)
    }

    /// Times that a due file stayed where it is because there was no room for it in the next layer.
    pub fn moves_held_back(&self) -> u64 {
        self.moves_held_back.load(Ordering::Relaxed)
    }

    /// Merges that were committed.
    pub fn merges(&self) -> u64 {
        self.merges.load(Ordering::Relaxed)
    }

    /// Files that went to the next iteration undecoded.
    pub fn promotions(&self) -> u64 {
        self.promotions.load(Ordering::Relaxed)
    }

    /// Attempts of merges that did not end in a commit.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Attempts to move or expire a file that did not end in a commit.
    pub fn move_failures(&self) -> u64 {
        self.move_failures.load(Ordering::Relaxed)
    }

    /// Files that were merged into others.
    pub fn files_in(&self) -> u64 {
        self.files_in.load(Ordering::Relaxed)
    }

    /// Rows written by merges.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Rows that merges left out because another one with the same key stays.
    pub fn rows_collapsed(&self) -> u64 {
        self.rows_collapsed.load(Ordering::Relaxed)
    }

    /// Bytes of merged files, and of the files they became.
    pub fn bytes(&self) -> (u64, u64) {
        (
            self.bytes_in.load(Ordering::Relaxed),
            self.bytes_out.load(Ordering::Relaxed),
        )
    }

    /// Files that went to the next layer, and their bytes.
    pub fn moves(&self) -> (u64, u64) {
        (
            self.moves.load(Ordering::Relaxed),
            self.bytes_moved.load(Ordering::Relaxed),
        )
    }

    /// Files that left the index because the time of their last layer was over.
    pub fn expiries(&self) -> u64 {
        self.expiries.load(Ordering::Relaxed)
    }

    /// Replaced files whose bytes are gone.
    pub fn drops(&self) -> u64 {
        self.drops.load(Ordering::Relaxed)
    }
}
