//! Whole behaviours, with real servers.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod merge_duckdb;
mod merge_edges;
mod merge_files;
mod merge_properties;
