//! gigamerge keeps a time-series lake of Parquet files healthy: it merges many small files into few sorted ones.

pub mod catalog;
pub mod cli;
pub mod config;
pub mod crash_points;
pub mod daemon;
pub mod invariants;
pub mod merge;
pub mod model;
pub mod no_links;
pub mod storage;
pub mod telemetry;
pub mod verify;
pub mod worker;
