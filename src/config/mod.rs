//! The configuration: as written (`raw`), then checked completely (`check`) into these plain types.

use std::{path::PathBuf, time::Duration};

use crate::{
    catalog::Policy,
    merge::{Compression, MergeOptions, SortColumn},
    model::{Iteration, LayerName, TableRef, WriterId},
};

/// Everything the daemon needs to know, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where the index is.
    pub catalog: CatalogConfig,
    /// Storage layers, youngest data first. Never empty.
    pub layers: Vec<LayerConfig>,
    /// Merge levels by iteration, 1 first, without gaps; empty when merging is off.
    pub levels: Vec<LevelConfig>,
    /// How tables are sorted and written when no override matches.
    pub table_defaults: TableConfig,
    /// Overrides by table pattern; the first match of each setting wins.
    pub table_overrides: Vec<TableOverride>,
    /// How work is done.
    pub worker: WorkerConfig,
    /// How replaced files are deleted.
    pub drops: DropConfig,
    /// What is logged.
    pub log: LogConfig,
}

/// The kind of catalog.
#[derive(Debug, Clone, PartialEq)]
pub enum CatalogConfig {
    /// `metadata.json` in each partition of the first layer.
    Json,
    /// Redis.
    Redis(RedisConfig),
}

/// How to reach Redis.
#[derive(Debug, Clone, PartialEq)]
pub struct RedisConfig {
    /// `redis://[user:password@]host[:port][/db]`.
    pub url: Secret,
    /// Longest wait for a connection or an answer.
    pub timeout: Duration,
}

/// Text that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// One storage layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerConfig {
    /// Its name.
    pub name: LayerName,
    /// The root folder, absolute.
    pub root: PathBuf,
    /// Shared by all writers.
    pub is_global: bool,
    /// How long files stay before they move on; `None` for ever.
    pub ttl: Option<Duration>,
}

/// One merge level.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelConfig {
    /// The iteration of the inputs.
    pub iteration: Iteration,
    /// How long a plan waits for more files, and how often the level runs unless `schedule` is set.
    pub timeout: Duration,
    /// A plan's inputs together stay at or below this size.
    pub max_size_bytes: u64,
    /// A cron line (seconds first) instead of "every timeout".
    pub schedule: Option<String>,
}

/// How a table is sorted and written.
#[derive(Debug, Clone, PartialEq)]
pub struct TableConfig {
    /// The sort order.
    pub order_by: Vec<SortColumn>,
    /// The column that `min_time` and `max_time` of an entry describe.
    pub time_column: String,
    /// Page compression.
    pub compression: Compression,
    /// Rows in a row group, at most.
    pub row_group_rows: usize,
}

/// Settings for tables whose `database.table` matches a pattern.
#[derive(Debug, Clone, PartialEq)]
pub struct TableOverride {
    /// `database.table`, with `*` for any run of characters.
    pub pattern: String,
    /// The sort order, if it differs.
    pub order_by: Option<Vec<SortColumn>>,
    /// Compression, if it differs.
    pub compression: Option<Compression>,
    /// Row group size, if it differs.
    pub row_group_rows: Option<usize>,
}

/// How work is done.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerConfig {
    /// Merges at a time.
    pub concurrency: usize,
    /// Memory of all running merges together, bytes.
    pub memory_budget_bytes: u64,
    /// Where sorted runs are spilled to; `None` for the table's own `tmp` folder.
    pub scratch_dir: Option<PathBuf>,
    /// How long a claim is valid without renewal.
    pub lease: Duration,
    /// How long running merges may go on after a stop was asked for.
    pub stop_timeout: Duration,
    /// A plan that failed this often is given up.
    pub max_attempts: u32,
    /// Writers whose files are merged; `None` for all.
    pub writers: Option<Vec<WriterId>>,
}

/// How replaced files are deleted.
#[derive(Debug, Clone, PartialEq)]
pub struct DropConfig {
    /// How long a replaced file stays readable, from the commit.
    pub grace: Duration,
    /// How often due deletes are looked for.
    pub interval: Duration,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct LogConfig {
    /// A level (`info`) or a filter in the form of `tracing-subscriber`.
    pub level: String,
    /// The form.
    pub format: LogFormat,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}
