//! Whole behaviours, with real servers.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at the first surprise"
)]

mod catalog_suite;
mod golden;
mod guide;
mod redis_faults;
mod redis_interleavings;
mod redis_scripts;
mod support;
