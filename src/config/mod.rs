//! The configuration: as written (`raw`), then checked completely (`check`) into these plain types.
//!
//! Sources, weakest first: defaults, the environment that `GigAPI` writers use (`GIGAPI_…`,
//! `LOGLEVEL`), the file, our own environment (`GIGAMERGE_…`, two underscores between levels),
//! the command line. Everything is checked before anything opens, and every problem is reported
//! at once ([`ConfigError`]). `config/gigamerge.toml` explains each setting.

mod check;
mod env;
mod folders;
mod load;
mod pattern;
mod print;
mod problem;
mod raw;
mod secret;
mod units;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::{
    catalog::{LayerRule, Level, Policy},
    crash_points::CrashPoints,
    merge::{Compression, Dedup, MergeOptions, SortColumn},
    model::{Iteration, LayerName, TableRef, WriterId},
};

pub(crate) use check::{parse_compression, parse_keep, parse_sort_column};
pub use load::{ConfigSources, Overrides};
pub use problem::{ConfigError, Problem, Problems};
pub use secret::Secret;
pub(crate) use units::parse_size;

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
    /// What is legal and yet may surprise: one sentence each, with its place, to be shown at the start.
    pub warnings: Vec<String>,
    /// Where the program dies; a test's business, which no source can set.
    pub crash_points: CrashPoints,
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
    /// `redis://[user:password@]host[:port][/db]`, `rediss://…`, `unix://…`,
    /// `redis+sentinel://[user:password@]host[:port],…/master[/db]` or `rediss+sentinel://…`.
    pub url: Secret,
    /// Longest wait for a connection or an answer.
    pub timeout: Duration,
    /// Certificates, for `rediss` only.
    pub tls: TlsConfig,
}

impl RedisConfig {
    /// A server with the defaults of everything else.
    pub fn new(url: &str) -> Self {
        Self {
            url: Secret(url.to_owned()),
            timeout: Duration::from_secs(5),
            tls: TlsConfig::default(),
        }
    }
}

/// Whom to trust, and who we are. By default the server is verified against the usual roots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM file of the only authorities that are trusted.
    pub ca: Option<PathBuf>,
    /// PEM file of our own certificate, for servers that ask for one.
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// Verifies nothing.
    pub insecure: bool,
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
    /// How long a replaced file stays readable here; `None` for `drops.grace`.
    pub grace: Option<Duration>,
}

/// One merge level.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelConfig {
    /// The iteration of the inputs.
    pub iteration: Iteration,
    /// How long a plan waits for more files, and how often the level runs unless `schedule` is set.
    pub timeout: Duration,
    /// A plan's inputs together stay at or below this size. (In Redis plans of many files are cut.)
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
    /// Page compression of some columns.
    pub column_compression: BTreeMap<String, Compression>,
    /// Columns that get bloom filters.
    pub bloom_filter_columns: Vec<String>,
    /// Columns besides the sort columns whose bounds an index entry names.
    pub index_columns: Vec<String>,
    /// Which rows are the same; `None` keeps all.
    pub dedup: Option<Dedup>,
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
    /// The time column, if it differs.
    pub time_column: Option<String>,
    /// Compression, if it differs.
    pub compression: Option<Compression>,
    /// Compression of some columns, if it differs.
    pub column_compression: Option<BTreeMap<String, Compression>>,
    /// Columns with bloom filters, if they differ.
    pub bloom_filter_columns: Option<Vec<String>>,
    /// Columns with bounds in the index, if they differ.
    pub index_columns: Option<Vec<String>>,
    /// Which rows are the same, if that differs; `Some(None)` keeps all.
    #[allow(clippy::option_option, reason = "not set, off and on are three things")]
    pub dedup: Option<Option<Dedup>>,
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
    /// Free space below which no merge starts, bytes; `None` for a share of the file system.
    pub min_free_bytes: Option<u64>,
    /// How long a claim is valid without renewal.
    pub lease: Duration,
    /// How long running merges may go on after a stop was asked for.
    pub stop_timeout: Duration,
    /// A plan that failed this often is given up.
    pub max_attempts: u32,
    /// How often leftovers of dead workers are looked for, beside the start.
    pub janitor_interval: Duration,
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
    /// Files deleted in a second, at most.
    pub max_per_second: u32,
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

impl Config {
    /// The rules by which a catalog plans.
    pub fn policy(&self) -> Policy {
        let levels = self
            .levels
            .iter()
            .map(|level| Level {
                iteration: level.iteration,
                timeout: level.timeout,
                max_size_bytes: level.max_size_bytes,
            })
            .collect();
        let next_names = self
            .layers
            .iter()
            .skip(1)
            .map(|layer| Some(layer.name.clone()));
        let layers = self
            .layers
            .iter()
            .zip(next_names.chain([None]))
            .map(|(layer, next)| LayerRule {
                name: layer.name.clone(),
                kind: "fs".to_owned(),
                url: layer.url(),
                ttl: layer.ttl,
                next,
            })
            .collect();
        Policy {
            levels,
            layers,
            writers: self.worker.writers.clone(),
        }
    }

    /// How long a replaced file of this layer stays readable. The empty name stands for the first layer.
    pub fn grace(&self, layer: &LayerName) -> Duration {
        let found = match layer.as_str() {
            "" => self.layers.first(),
            _ => self.layers.iter().find(|one| one.name == *layer),
        };
        found
            .and_then(|layer| layer.grace)
            .unwrap_or(self.drops.grace)
    }

    /// How this table is sorted and written: for each setting the first override that matches, else the default.
    pub fn table(&self, table: &TableRef) -> TableConfig {
        let name = table.to_string();
        let matching: Vec<&TableOverride> = self
            .table_overrides
            .iter()
            .filter(|one| pattern::matches(&one.pattern, &name))
            .collect();
        let defaults = &self.table_defaults;
        TableConfig {
            order_by: matching
                .iter()
                .find_map(|one| one.order_by.clone())
                .unwrap_or_else(|| defaults.order_by.clone()),
            time_column: matching
                .iter()
                .find_map(|one| one.time_column.clone())
                .unwrap_or_else(|| defaults.time_column.clone()),
            compression: matching
                .iter()
                .find_map(|one| one.compression)
                .unwrap_or(defaults.compression),
            column_compression: matching
                .iter()
                .find_map(|one| one.column_compression.clone())
                .unwrap_or_else(|| defaults.column_compression.clone()),
            bloom_filter_columns: matching
                .iter()
                .find_map(|one| one.bloom_filter_columns.clone())
                .unwrap_or_else(|| defaults.bloom_filter_columns.clone()),
            index_columns: matching
                .iter()
                .find_map(|one| one.index_columns.clone())
                .unwrap_or_else(|| defaults.index_columns.clone()),
            dedup: matching
                .iter()
                .find_map(|one| one.dedup.clone())
                .unwrap_or_else(|| defaults.dedup.clone()),
            row_group_rows: matching
                .iter()
                .find_map(|one| one.row_group_rows)
                .unwrap_or(defaults.row_group_rows),
        }
    }
}

impl LayerConfig {
    /// The root as the URL that stands on the wire.
    pub fn url(&self) -> String {
        format!("file://{}", self.root.display())
    }
}

/// Threads of one merge: the one that merges and one that encodes.
const MERGE_THREAD_COUNT: usize = 2;

impl TableConfig {
    /// Whether an index entry names the bounds of a column.
    pub fn is_indexed(&self, column: &str) -> bool {
        self.order_by.iter().any(|sort| sort.name == column)
            || self.index_columns.iter().any(|name| name == column)
    }

    /// How one merge sorts and writes. Bounds of the sort columns, of the time column and of
    /// those that are named for it are wanted, because the index entry has them.
    pub fn merge_options(&self, memory_budget_bytes: u64) -> MergeOptions {
        let mut bounds_of: Vec<String> = Vec::new();
        let sorted_by = self.order_by.iter().map(|column| &column.name);
        for column in sorted_by
            .chain([&self.time_column])
            .chain(&self.index_columns)
        {
            if !bounds_of.contains(column) {
                bounds_of.push(column.clone());
            }
        }
        MergeOptions {
            order_by: self.order_by.clone(),
            compression: self.compression,
            column_compression: self.column_compression.clone(),
            bloom_filter_columns: self.bloom_filter_columns.clone(),
            dedup: self.dedup.clone(),
            row_group_rows: self.row_group_rows,
            memory_budget_bytes,
            thread_count: MERGE_THREAD_COUNT,
            bounds_of,
        }
    }
}

#[cfg(test)]
mod tests;
