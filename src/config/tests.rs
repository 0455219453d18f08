//! How sources are laid over each other, what the files in `config/` say, and what is printed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{catalog::LayerRule, merge::Keep};

struct Sources {
    dir: TempDir,
    sources: ConfigSources,
}

impl Sources {
    fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
            sources: ConfigSources::default(),
        }
    }

    fn file(mut self, text: &str) -> Self {
        let path = self.dir.path().join("gigamerge.toml");
        std::fs::write(&path, text.replace("DIR", &self.dir())).unwrap();
        self.sources.file = Some(path);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        let value = value.replace("DIR", &self.dir());
        self.sources.env.insert(name.to_owned(), value);
        self
    }

    fn folder(self, name: &str) -> Self {
        std::fs::create_dir(self.dir.path().join(name)).unwrap();
        self
    }

    fn dir(&self) -> String {
        self.dir.path().display().to_string()
    }

    fn load(&self) -> Config {
        Config::load(&self.sources).unwrap_or_else(|error| panic!("{error}"))
    }

    fn problems(&self) -> Vec<String> {
        match Config::load(&self.sources) {
            Err(ConfigError::Problems(problems)) => {
                problems.list.iter().map(ToString::to_string).collect()
            }
            other => panic!("{other:?}"),
        }
    }
}

fn project(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_folder_is_all_that_is_needed() {
    let sources = Sources::new().env("GIGAMERGE_DATA_DIR", "DIR");
    let config = sources.load();
    assert_eq!(config.catalog, CatalogConfig::Json);
    assert_eq!(config.layers.len(), 1);
    assert_eq!(config.layers[0].name.as_str(), "default");
    assert_eq!(config.layers[0].root, sources.dir.path());
    let levels: Vec<_> = config
        .levels
        .iter()
        .map(|level| {
            (
                level.iteration.0,
                level.timeout.as_secs(),
                level.max_size_bytes >> 20,
            )
        })
        .collect();
    assert_eq!(
        levels,
        [
            (1, 10, 100),
            (2, 100, 400),
            (3, 1000, 4096),
            (4, 4200, 4096)
        ]
    );
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn each_source_overrides_the_weaker_ones() {
    let mut sources = Sources::new().env("GIGAPI_ROOT", "DIR");
    assert_eq!(sources.load().log.level, "info");
    sources = sources.env("LOGLEVEL", "fatal");
    assert_eq!(sources.load().log.level, "error");
    sources = sources.file("log.level = 'warn'");
    assert_eq!(sources.load().log.level, "warn");
    sources = sources.env("GIGAMERGE_LOG__LEVEL", "debug");
    assert_eq!(sources.load().log.level, "debug");
    sources.sources.overrides.log_level = Some("trace".to_owned());
    assert_eq!(sources.load().log.level, "trace");
}

#[test]
fn a_sidecar_can_share_its_writers_environment() {
    let sources = Sources::new()
        .folder("hot")
        .folder("cold")
        .env("GIGAPI_ROOT", "/not/there")
        .env("GIGAPI_METADATA_TYPE", "redis")
        .env("GIGAPI_METADATA_URL", "redis://:hunter2@localhost:6379/0")
        .env("GIGAPI_MERGE_TIMEOUT_S", "20")
        .env("GIGAPI_LAYERS_0_NAME", "hot")
        .env("GIGAPI_LAYERS_0_TYPE", "fs")
        .env("GIGAPI_LAYERS_0_URL", "file://DIR/hot")
        .env("GIGAPI_LAYERS_0_GLOBAL", "true")
        .env("GIGAPI_LAYERS_0_TTL", "1h30m")
        .env("GIGAPI_LAYERS_0_AUTH_KEY", "")
        .env("GIGAPI_LAYERS_1_NAME", "cold")
        .env("GIGAPI_LAYERS_1_URL", "DIR/cold")
        .env("GIGAPI_LAYERS_1_TTL", "0")
        .env("HTTP_PORT", "7971");
    let config = sources.load();
    let CatalogConfig::Redis(redis) = &config.catalog else {
        panic!("{:?}", config.catalog);
    };
    assert_eq!(redis.url.0, "redis://:hunter2@localhost:6379/0");
    let timeouts: Vec<u64> = config
        .levels
        .iter()
        .map(|level| level.timeout.as_secs())
        .collect();
    assert_eq!(timeouts, [20, 200, 2000, 8400]);
    let [hot, cold] = &config.layers[..] else {
        panic!("{:?}", config.layers);
    };
    assert_eq!(
        (hot.is_global, hot.ttl),
        (true, Some(Duration::from_mins(90)))
    );
    assert_eq!((cold.is_global, cold.ttl), (false, None));
    assert_eq!(cold.root, sources.dir.path().join("cold"));
}

#[test]
fn a_writers_ttl_in_plain_seconds_is_understood() {
    let config = Sources::new()
        .env("GIGAPI_LAYERS_0_NAME", "hot")
        .env("GIGAPI_LAYERS_0_URL", "DIR")
        .env("GIGAPI_LAYERS_0_TTL", "3600")
        .load();
    assert_eq!(config.layers[0].ttl, Some(Duration::from_hours(1)));
}

#[test]
fn a_writer_without_merges_has_a_compactor_without_merges() {
    let config = Sources::new()
        .env("GIGAPI_ROOT", "DIR")
        .env("GIGAPI_NO_MERGES", "TRUE")
        .load();
    assert_eq!(config.levels, []);
    assert_eq!(config.policy().levels, []);
}

#[test]
fn the_file_replaces_the_layers_of_the_writers_environment() {
    let sources = Sources::new()
        .folder("mine")
        .env("GIGAPI_LAYERS_0_NAME", "theirs")
        .env("GIGAPI_LAYERS_0_URL", "/not/there")
        .env("GIGAPI_LAYERS_1_NAME", "theirs-too")
        .env("GIGAPI_LAYERS_1_URL", "/not/there/either")
        .file("[[layers]]\nname = 'mine'\nurl = 'DIR/mine'");
    let config = sources.load();
    assert_eq!(config.layers.len(), 1);
    assert_eq!(config.layers[0].name.as_str(), "mine");

    let config = sources.file("data_dir = 'DIR/mine'").load();
    assert_eq!(config.layers.len(), 1);
    assert_eq!(
        config.warnings,
        ["data_dir: replaces the layers that the GIGAPI_ variables set"]
    );
}

#[test]
fn a_data_dir_on_the_command_line_replaces_the_layers_of_the_file() {
    let mut sources = Sources::new().file("[[layers]]\nname = 'a'\nurl = '/not/there'");
    sources.sources.overrides.data_dir = Some(sources.dir());
    let config = sources.load();
    assert_eq!(config.layers[0].root, sources.dir.path());
    assert_eq!(
        config.warnings,
        ["--data-dir: replaces the layers that the file set"]
    );
}

#[test]
fn a_catalog_url_on_the_command_line_means_redis() {
    let mut sources = Sources::new().file("data_dir = 'DIR'\ncatalog.type = 'json'");
    sources.sources.overrides.catalog_url = Some(Secret("redis://localhost".to_owned()));
    assert!(matches!(sources.load().catalog, CatalogConfig::Redis(_)));
}

#[test]
fn our_variables_change_one_part_of_a_list_and_leave_the_rest() {
    let config = Sources::new()
        .file("[[layers]]\nname = 'a'\nurl = '/not/there'\nglobal = true")
        .env("GIGAMERGE_LAYERS__0__URL", "DIR")
        .env("GIGAMERGE_MERGE__LEVELS__1__TIMEOUT", "3min")
        .env(
            "GIGAMERGE_TABLES__ORDER_BY",
            "host desc, \"a, b\", __timestamp",
        )
        .env("GIGAMERGE_WORKER__CONCURRENCY", "3")
        .env("GIGAMERGE_MERGE__ENABLED", "true")
        .env("GIGAMERGE_WORKER__MAX_ATTEMPTS", "")
        .load();
    assert!(config.layers[0].is_global);
    assert_eq!(config.levels[1].timeout, Duration::from_mins(3));
    assert_eq!(config.levels[1].max_size_bytes, 400 << 20);
    assert_eq!(config.levels.len(), 4);
    let names: Vec<&str> = config
        .table_defaults
        .order_by
        .iter()
        .map(|column| column.name.as_str())
        .collect();
    assert_eq!(names, ["host", "a, b", "__timestamp"]);
    assert_eq!(config.worker.concurrency, 3);
    assert_eq!(config.worker.max_attempts, 5);
}

#[test]
fn the_variables_of_a_kubernetes_service_named_gigamerge_are_not_settings() {
    let mut sources = Sources::new().env("GIGAMERGE_DATA_DIR", "DIR");
    for (name, value) in [
        ("GIGAMERGE_CONFIG", "/etc/gigamerge.toml"),
        ("GIGAMERGE_SERVICE_HOST", "10.0.0.1"),
        ("GIGAMERGE_SERVICE_PORT", "9090"),
        ("GIGAMERGE_SERVICE_PORT_HTTP", "9090"),
        ("GIGAMERGE_PORT", "tcp://10.0.0.1:9090"),
        ("GIGAMERGE_PORT_9090_TCP", "tcp://10.0.0.1:9090"),
        ("GIGAMERGE_PORT_9090_TCP_PROTO", "tcp"),
        ("GIGAMERGE_PORT_9090_TCP_PORT", "9090"),
        ("GIGAMERGE_PORT_9090_TCP_ADDR", "10.0.0.1"),
        ("GIGAMERGE_METRICS_SERVICE_HOST", "10.0.0.2"),
        ("GIGAMERGE_METRICS_PORT_80_TCP_ADDR", "10.0.0.2"),
    ] {
        sources = sources.env(name, value);
    }
    sources.load();
    assert_eq!(
        sources.env("GIGAMERGE_PORT", "9090").problems(),
        ["GIGAMERGE_PORT (port): unknown setting"]
    );
}

#[test]
fn relative_folders_become_absolute() {
    let config = Sources::new()
        .env("GIGAMERGE_DATA_DIR", "file://./src/")
        .load();
    assert_eq!(
        config.layers[0].root,
        std::env::current_dir().unwrap().join("src")
    );
}

#[test]
fn one_folder_under_two_names_is_found_out() {
    let sources = Sources::new()
        .folder("a")
        .file("[[layers]]\nname = 'a'\nurl = 'DIR/a'\n[[layers]]\nname = 'b'\nurl = 'DIR/link'\n");
    std::os::unix::fs::symlink(
        sources.dir.path().join("a"),
        sources.dir.path().join("link"),
    )
    .unwrap();
    let problems = sources.problems();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].contains("is the folder of layers[0].url too"),
        "{problems:?}"
    );
}

#[test]
fn the_policy_is_what_writers_are_told() {
    let sources = Sources::new().folder("hot").folder("cold").file(
        "[[layers]]\nname = 'hot'\nurl = 'DIR/hot/'\nttl = '7d'\n\
         [[layers]]\nname = 'cold'\nurl = 'DIR/cold'\n\
         [worker]\nwriters = ['w1']\n",
    );
    let policy = sources.load().policy();
    let rule = |name: &str, ttl, next: Option<&str>| LayerRule {
        name: LayerName::parse(name).unwrap(),
        kind: "fs".to_owned(),
        url: format!("file://{}/{name}", sources.dir()),
        ttl,
        next: next.map(|name| LayerName::parse(name).unwrap()),
    };
    assert_eq!(
        policy.layers,
        [
            rule("hot", Some(Duration::from_hours(7 * 24)), Some("cold")),
            rule("cold", None, None)
        ]
    );
    assert_eq!(policy.levels.len(), 4);
    assert_eq!(policy.writers, Some(vec![WriterId::parse("w1").unwrap()]));
}

#[test]
fn for_each_setting_of_a_table_the_first_match_wins() {
    let config = Sources::new()
        .file(
            "data_dir = 'DIR'\n[tables]\ncompression = 'snappy'\n\
             [[tables.overrides]]\nmatch = 'db.cpu'\norder_by = ['host', 't nulls first']\n\
             [[tables.overrides]]\nmatch = 'db.*'\norder_by = ['x']\ntime_column = 't'\nrow_group_rows = 1000\n\
             [[tables.overrides]]\nmatch = '*'\ncompression = 'zstd(9)'\n\
             column_compression = { message = 'lz4' }\nindex_columns = ['host', 'region']\n\
             [[tables.overrides]]\nmatch = 'db.*'\norder_by = ['x']\ndedup = { by = ['x', 'y'], keep = 'max(v)' }\n",
        )
        .load();
    let table = |database, table| config.table(&TableRef::new(database, table).unwrap());
    let cpu = table("db", "cpu");
    assert_eq!(cpu.order_by[0].name, "host");
    assert!(cpu.order_by[1].nulls_first);
    assert_eq!(cpu.time_column, "t");
    assert_eq!(cpu.row_group_rows, 1000);
    assert_eq!(cpu.compression, Compression::Zstd(9));
    assert_eq!(cpu.column_compression["message"], Compression::Lz4);
    assert!(cpu.is_indexed("host") && cpu.is_indexed("region") && !cpu.is_indexed("x"));
    let other = table("other", "cpu");
    assert_eq!(other.order_by, config.table_defaults.order_by);
    assert_eq!(other.time_column, "__timestamp");

    assert_eq!(cpu.merge_options(7).bounds_of, ["host", "t", "region"]);
    assert_eq!(
        table("db", "mem").merge_options(7).bounds_of,
        ["x", "t", "host", "region"]
    );
    assert_eq!(cpu.merge_options(7).memory_budget_bytes, 7);
}

#[test]
fn every_file_in_the_config_folder_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        count += 1;
        // Only the folders differ from what the file says: they belong to another machine.
        let mut sources = Sources::new().folder("0").folder("1");
        if std::fs::read_to_string(&path)
            .unwrap()
            .contains("\ndata_dir =")
        {
            sources = sources.env("GIGAMERGE_DATA_DIR", "DIR/0");
        } else {
            sources = sources
                .env("GIGAMERGE_LAYERS__0__URL", "DIR/0")
                .env("GIGAMERGE_LAYERS__1__URL", "DIR/1");
        }
        sources.sources.file = Some(path.clone());
        let warnings = sources.load().warnings;
        assert_eq!(warnings, Vec::<String>::new(), "{}", path.display());
    }
    assert!(count >= 3, "only {count} files");
}

/// Settings of a file, commented out or not, as `section[].key`.
fn settings_in(text: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut settings = BTreeSet::new();
    for line in text.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line).trim();
        let is_key =
            |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if let Some(name) = line
            .strip_prefix("[[")
            .and_then(|rest| rest.strip_suffix("]]"))
        {
            section = format!("{name}[].");
        } else if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = format!("{name}.");
        } else if let Some((key, _)) = line.split_once(" = ")
            && is_key(key)
        {
            settings.insert(format!("{section}{key}"));
        }
    }
    settings
}

#[test]
fn every_setting_of_the_code_is_in_the_example_file_and_the_other_way_round() {
    let mut known = load::known_settings();
    // Sections themselves are not settings.
    known.retain(|setting| {
        ![
            "catalog",
            "layers",
            "merge",
            "merge.levels",
            "tables",
            "tables.overrides",
            // Written as one setting.
            "tables.dedup.by",
            "tables.dedup.keep",
            "tables.overrides[].dedup.by",
            "tables.overrides[].dedup.keep",
            "worker",
            "drops",
            "log",
        ]
        .contains(&setting.as_str())
    });
    assert_eq!(known, settings_in(&project("config/gigamerge.toml")));
}

#[test]
fn the_example_file_says_the_defaults() {
    let sources = Sources::new().env("GIGAMERGE_DATA_DIR", "DIR");
    let defaults = sources.load();
    let sources = sources.file(&project("config/gigamerge.toml").replace("DIR", "_"));
    let mut config = sources.load();
    // A machine of more than eight cores has a larger budget by default.
    config.worker.memory_budget_bytes = defaults.worker.memory_budget_bytes;
    assert_eq!(config, defaults);
}

#[test]
fn the_service_gives_merges_more_time_to_stop_than_the_configuration_does() {
    let unit = project("systemd/gigamerge.service");
    let value = |key: &str| {
        unit.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .unwrap_or_else(|| panic!("no {key}"))
    };
    let config = Sources::new().env("GIGAMERGE_DATA_DIR", "DIR").load();
    assert!(units::parse_duration(value("TimeoutStopSec")).unwrap() > config.worker.stop_timeout);
    assert_eq!(
        value("RestartPreventExitStatus"),
        crate::cli::EXIT_CONFIG.to_string()
    );
}

/// Of some tables rows are unique, in all ways that there are.
fn dedup_of(order_by: &[SortColumn]) -> Option<Dedup> {
    let keep = match order_by.len() {
        1 => Keep::First,
        2 => Keep::Last,
        _ => Keep::Max("a \"column\"".to_owned()),
    };
    let mut by: Vec<String> = order_by.iter().map(|sort| sort.name.clone()).collect();
    by.push("more (of it)".to_owned());
    (!order_by[0].descending).then_some(Dedup { by, keep })
}

#[allow(clippy::too_many_lines, reason = "one part for each setting")]
fn settings() -> impl Strategy<Value = Config> {
    let name = "[a-z][a-z0-9_-]{0,8}";
    let column = ("[a-z]{1,3}( [a-z]{1,3})?", any::<bool>(), any::<bool>()).prop_map(
        |(name, descending, nulls_first)| SortColumn {
            name,
            descending,
            nulls_first,
        },
    );
    let order_by = prop::collection::vec(column, 1..4).prop_map(|mut columns| {
        let mut seen = BTreeSet::new();
        columns.retain(|column| seen.insert(column.name.clone()));
        columns
    });
    let compression = prop_oneof![
        Just(Compression::None),
        Just(Compression::Snappy),
        Just(Compression::Lz4),
        (1i32..=22).prop_map(Compression::Zstd)
    ];
    let columns = || prop::collection::btree_set("\\PC{1,6}", 0..3);
    let names = (columns(), columns()).prop_map(|(bloom, index)| {
        let names = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>();
        (names(bloom), names(index))
    });
    let compressions = prop::collection::btree_map("\\PC{1,6}", compression.clone(), 0..3);
    let table = (
        order_by,
        "\\PC{1,8}",
        compression,
        100usize..1_000_000,
        compressions,
        names,
    );
    let whole = |range: std::ops::Range<u64>| range.prop_map(Duration::from_secs);
    (
        (prop::bool::ANY, 1u64..6, any::<bool>()),
        (table.clone(), prop::collection::vec((name, table), 0..3)),
        (1usize..20, whole(5..3600), 0u64..3_600_000, 1u32..1000),
        (
            prop::option::of(prop::collection::vec("\\PC{0,6}", 1..4)),
            whole(0..9999),
            100u64..9999,
        ),
        (prop::option::of(whole(1..999_999)), 1024u64..1 << 45),
    )
        .prop_map(
            |(
                (is_redis, level_count, has_schedule),
                (defaults, overrides),
                (concurrency, lease, stop_timeout_ms, max_attempts),
                (writers, grace, interval_ms),
                (ttl, max_size_bytes),
            )| Config {
                catalog: if is_redis {
                    CatalogConfig::Redis(RedisConfig {
                        url: Secret("rediss://me@host:1/2".to_owned()),
                        timeout: Duration::from_millis(1500),
                        tls: TlsConfig {
                            insecure: true,
                            ..TlsConfig::default()
                        },
                    })
                } else {
                    CatalogConfig::Json
                },
                layers: vec![LayerConfig {
                    name: LayerName::parse("only").unwrap(),
                    root: PathBuf::new(),
                    is_global: is_redis,
                    ttl,
                    grace: ttl.map(|_| grace),
                }],
                levels: (1..level_count)
                    .map(|iteration| LevelConfig {
                        iteration: Iteration(u32::try_from(iteration).unwrap()),
                        timeout: lease * u32::try_from(iteration).unwrap(),
                        max_size_bytes,
                        schedule: has_schedule.then(|| "0 */5 * * * *".to_owned()),
                    })
                    .collect(),
                table_defaults: TableConfig {
                    order_by: defaults.0,
                    time_column: defaults.1,
                    compression: defaults.2,
                    column_compression: defaults.4,
                    bloom_filter_columns: defaults.5.0,
                    index_columns: defaults.5.1,
                    dedup: None,
                    row_group_rows: defaults.3,
                },
                table_overrides: overrides
                    .into_iter()
                    .map(|(name, table)| (dedup_of(&table.0), name, table))
                    .map(|(dedup, name, table)| TableOverride {
                        pattern: format!("{name}.*"),
                        order_by: Some(table.0),
                        time_column: None,
                        compression: Some(table.2),
                        column_compression: Some(table.4),
                        bloom_filter_columns: Some(table.5.0),
                        index_columns: None,
                        dedup: Some(dedup),
                        row_group_rows: None,
                    })
                    .collect(),
                worker: WorkerConfig {
                    concurrency,
                    memory_budget_bytes: (64 << 20) * concurrency as u64 + stop_timeout_ms,
                    scratch_dir: None,
                    min_free_bytes: None,
                    lease,
                    stop_timeout: Duration::from_millis(stop_timeout_ms),
                    max_attempts,
                    janitor_interval: lease,
                    writers: writers.map(|writers| {
                        writers
                            .iter()
                            .map(|id| {
                                WriterId::parse(&id.replace([':', '/', '\\'], ""))
                                    .unwrap_or_default()
                            })
                            .collect()
                    }),
                },
                drops: DropConfig {
                    grace,
                    interval: Duration::from_millis(interval_ms),
                    max_per_second: max_attempts,
                },
                log: LogConfig {
                    level: "info,gigamerge=debug".to_owned(),
                    format: if has_schedule {
                        LogFormat::Json
                    } else {
                        LogFormat::Text
                    },
                },
                warnings: Vec::new(),
                crash_points: CrashPoints::none(),
            },
        )
}

proptest! {
    #[test]
    fn what_check_config_prints_loads_to_the_same_configuration(mut config in settings()) {
        let sources = Sources::new();
        config.layers[0].root = sources.dir.path().to_owned();
        let sources = sources.file(&config.to_toml());
        let mut loaded = sources.load();
        loaded.warnings.clear();
        prop_assert_eq!(loaded, config);
    }

    #[test]
    fn any_file_is_loaded_or_refused(text in "\\PC{0,200}") {
        let sources = Sources::new().file(&text);
        let _ = Config::load(&sources.sources);
    }

    #[test]
    fn any_variables_are_loaded_or_refused(
        env in prop::collection::btree_map(
            "(GIGAMERGE|GIGAPI)_(LAYERS|MERGE|WORKER|TABLES|[A-Z]{1,3})(__?(LEVELS|[0-9]{1,12}|URL|NAME|LEASE|[A-Z_.\\[]{1,3})){0,4}",
            "\\PC{0,10}",
            0..6,
        )
    ) {
        let sources = ConfigSources { env, ..ConfigSources::default() };
        let _ = Config::load(&sources);
    }
}

#[test]
fn passwords_are_not_printed() {
    let mut sources = Sources::new().env("GIGAMERGE_DATA_DIR", "DIR");
    sources.sources.env.extend(BTreeMap::from([
        ("GIGAMERGE_CATALOG__TYPE".to_owned(), "redis".to_owned()),
        (
            "GIGAMERGE_CATALOG__URL".to_owned(),
            "redis://me:hunter2@host:6379/0".to_owned(),
        ),
    ]));
    let config = sources.load();
    let printed = config.to_toml();
    assert!(printed.contains("redis://me:***@host:6379/0"), "{printed}");
    assert!(!format!("{printed}{config:?}").contains("hunter2"));
}
