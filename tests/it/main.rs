//! Whole behaviours, with real servers.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::default_trait_access,
    clippy::expect_used,
    clippy::too_many_lines,
    clippy::unnecessary_debug_formatting,
    clippy::unused_async,
    clippy::unwrap_used,
    reason = "a test may stop at the first surprise"
)]

mod absurd_files;
mod bad_files;
mod budgets;
mod catalog_suite;
mod commands;
mod config_messages;
mod crash_matrix;
mod daemon_signals;
mod demo;
mod embedded_run;
mod full_disk;
mod golden;
mod guide;
mod hour;
mod imports;
mod janitor;
mod kills;
mod links;
mod long_plans;
mod memory;
mod merge_copied_groups;
mod merge_dedup;
mod merge_duckdb;
mod merge_edges;
mod merge_files;
mod merge_files_command;
mod merge_nearly_sorted;
mod merge_properties;
mod merge_scratch;
mod merge_settings;
mod moves;
mod moves_script;
mod one_holder;
mod poison;
mod protocol_model;
mod redis_connections;
mod redis_faults;
mod redis_finding;
mod redis_hostile_plans;
mod redis_interleavings;
mod redis_library;
mod redis_lost_writes;
mod redis_run;
mod redis_scripts;
mod secrets;
mod soak;
mod support;
mod undelete;
mod verify;
mod writers;
