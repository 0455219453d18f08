//! Whole behaviours, with real servers.

mod merge_duckdb;
mod merge_edges;
mod merge_files;
mod merge_properties;
