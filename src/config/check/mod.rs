//! From values as written to a [`Config`], or to a list of everything that is wrong.

mod layers;
mod tables;

use std::{path::PathBuf, time::Duration};

use croner::parser::{CronParser, Seconds};
use tracing_subscriber::EnvFilter;

use super::{
    CatalogConfig, Config, DropConfig, LevelConfig, LogConfig, LogFormat, RedisConfig, Secret,
    WorkerConfig,
    problem::{Place, Report, did_you_mean},
    raw::{Section, Setting},
    units,
};
use crate::model::{Iteration, WriterId};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

const LEVELS_MAX: usize = 32;
const WRITERS_MAX: usize = 10_000;
const SCHEDULE_CHARS_MAX: usize = 200;
const CONCURRENCY_MAX: u64 = 256;
const MEMORY_BUDGET_BYTES: u64 = 512 << 20;
/// Below this a merge would spill all the time.
const MEMORY_PER_MERGE_BYTES_MIN: u64 = 64 << 20;
/// Queries that took their file list before a merge usually end within this time.
const GRACE_WARNING: Duration = Duration::from_secs(30);

/// A configuration whose folders have not been looked at. Only meaningful when nothing was reported.
pub(super) struct Checked {
    pub(super) config: Config,
    pub(super) roots: Vec<Setting<PathBuf>>,
    pub(super) scratch: Option<Setting<PathBuf>>,
}

pub(super) fn check(mut root: Section<'_>, report: &Report) -> Checked {
    let catalog = catalog(root.section("catalog"), report);
    let (layers, roots) = layers::check(&mut root, report);
    if layers.len() > 1 && catalog == CatalogConfig::Json {
        report.warning(
            "layers",
            "the json catalog works on the first layer only; the others are left alone",
        );
    }
    let levels = levels(root.section("merge"), report);
    let (table_defaults, table_overrides) = tables::check(root.section("tables"), report);
    let (worker, scratch) = worker(root.section("worker"), report);
    let drops = drops(root.section("drops"), report);
    let log = log(root.section("log"), report);
    root.finish();
    Checked {
        config: Config {
            catalog,
            layers,
            levels,
            table_defaults,
            table_overrides,
            worker,
            drops,
            log,
            warnings: Vec::new(),
        },
        roots,
        scratch,
    }
}

#[derive(Clone, Copy, PartialEq)]
enum CatalogKind {
    Json,
    Redis,
}

fn catalog(mut section: Section<'_>, report: &Report) -> CatalogConfig {
    let is_kind_set = section.has("type");
    let kind = section
        .choice(
            "type",
            &[("json", CatalogKind::Json), ("redis", CatalogKind::Redis)],
        )
        .map(|kind| kind.value)
        .or((!is_kind_set).then_some(CatalogKind::Json));
    if kind == Some(CatalogKind::Redis) {
        section.require("url", "\"redis://localhost:6379/0\"");
    }
    let url = section.secret("url");
    let timeout = section.duration("timeout", Duration::from_millis(100)..=300 * SECOND);
    section.finish();
    let Some(url) = url else {
        return CatalogConfig::Json;
    };
    if kind == Some(CatalogKind::Json) {
        if is_ours(&url.place) {
            report.problem(
                url.place,
                "is set, but the catalog is \"json\"; write type = \"redis\" as well, or remove the URL",
            );
        }
        return CatalogConfig::Json;
    }
    if let Err(message) = check_redis_url(&url.value) {
        report.problem(&url.place, message);
    }
    CatalogConfig::Redis(RedisConfig {
        url: url.value,
        timeout: timeout.map_or(5 * SECOND, |timeout| timeout.value),
    })
}

/// GigAPI does not look at its URL when its type is json; a URL of ours is meant.
fn is_ours(place: &Place) -> bool {
    place
        .origin
        .as_ref()
        .is_none_or(|origin| !origin.starts_with("GIGAPI_"))
}

/// Refuses what cannot be a server; no message repeats any of it.
fn check_redis_url(url: &Secret) -> Result<(), &'static str> {
    const SHAPE: &str = "is not a Redis URL; write redis://[user:password@]host[:port][/database]";
    let (scheme, rest) = url.0.split_once("://").ok_or(SHAPE)?;
    match scheme {
        "redis" | "rediss" => {}
        "unix" | "redis+unix" if rest.starts_with('/') => return Ok(()),
        "redis+sentinel" => {
            return Err(
                "Sentinel is not supported by this version; name the primary itself with redis://host:port/0",
            );
        }
        _ => return Err(SHAPE),
    }
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let (host, database) = host.split_once('/').unwrap_or((host, ""));
    let (name, port) = match host.strip_prefix('[') {
        // An IPv6 address has colons of its own.
        Some(address) => address.split_once(']').ok_or(SHAPE)?,
        None => host
            .find(':')
            .map_or((host, ""), |colon| host.split_at(colon)),
    };
    if name.is_empty() {
        return Err("names no host; write redis://host:port/0");
    }
    let is_port = match port.strip_prefix(':') {
        Some(digits) => digits.parse::<u16>().is_ok_and(|port| port > 0),
        None => port.is_empty(),
    };
    if !is_port {
        return Err("has a port that is not a number from 1 to 65535");
    }
    let database = database.trim_end_matches('/');
    if !database.is_empty() && database.parse::<u32>().is_err() {
        return Err("has a database that is not a number; write for example redis://host:6379/0");
    }
    Ok(())
}

fn levels(mut section: Section<'_>, report: &Report) -> Vec<LevelConfig> {
    let is_enabled = section
        .boolean("enabled")
        .is_none_or(|enabled| enabled.value);
    let mut levels: Vec<(LevelConfig, String)> = Vec::new();
    let list = section.sections("levels", LEVELS_MAX);
    let is_readable = list.is_some();
    if let Some(list) = list {
        if list.value.is_empty() {
            report.problem(
                &list.place,
                "is empty; to turn merging off, write merge.enabled = false",
            );
        }
        let (expected, before) = (list.value.len(), levels.len());
        for section in list.value {
            levels.extend(level(section, report));
        }
        // With a level that cannot be read, a gap would be reported that is not there.
        if levels.len() - before == expected {
            check_iterations(&mut levels, &list.place, report);
        }
    }
    section.finish();
    if !is_enabled {
        if is_readable {
            report.warning(
                "merge.enabled",
                "is false: files are registered and deleted, but nothing is merged",
            );
        }
        return Vec::new();
    }
    levels.into_iter().map(|(level, _)| level).collect()
}

fn level(mut section: Section<'_>, report: &Report) -> Option<(LevelConfig, String)> {
    section.require("iteration", "1");
    section.require("timeout", "\"10s\"");
    section.require("max_size", "\"100 MiB\"");
    let path = section.place().path;
    let iteration = section.integer("iteration", 1..=1000);
    let timeout = section.whole_seconds("timeout", SECOND..=30 * DAY);
    let max_size = section.size_bytes("max_size", 1 << 10..=1 << 50);
    let schedule =
        section
            .text("schedule")
            .and_then(|schedule| match check_schedule(&schedule.value) {
                Ok(()) => Some(schedule.value),
                Err(message) => {
                    report.problem(&schedule.place, message);
                    None
                }
            });
    section.finish();
    let level = LevelConfig {
        iteration: Iteration(u32::try_from(iteration?).ok()?),
        timeout: timeout?.value,
        max_size_bytes: max_size?.value,
        schedule,
    };
    Some((level, path))
}

/// Levels must count 1, 2, 3 …: a gap would leave files that nobody merges.
fn check_iterations(levels: &mut [(LevelConfig, String)], place: &Place, report: &Report) {
    levels.sort_by_key(|(level, _)| level.iteration);
    let mut next = Iteration(1);
    for pair in levels.windows(2) {
        let ((below, below_path), (above, above_path)) = (&pair[0], &pair[1]);
        if below.iteration == above.iteration {
            report.problem(
                format!("{above_path}.iteration"),
                format!(
                    "{} is the iteration of {below_path} too; each iteration has one level",
                    above.iteration
                ),
            );
        } else if above.max_size_bytes < below.max_size_bytes {
            report.warning(
                format!("{above_path}.max_size"),
                &format!("is smaller than {below_path}.max_size: full files of the level below stay alone"),
            );
        }
    }
    for (level, _) in levels.iter() {
        if level.iteration > next {
            report.problem(
                place,
                format!("iteration {next} is missing; levels count from 1 without gaps"),
            );
            return;
        }
        next = level.iteration.next();
    }
}

/// Read exactly as the scheduler will read it: seconds first.
fn check_schedule(line: &str) -> Result<(), String> {
    const FIX: &str = "write second minute hour day month weekday, such as \"0 */5 * * * *\"";
    if line.chars().count() > SCHEDULE_CHARS_MAX {
        return Err(format!("is longer than {SCHEDULE_CHARS_MAX} characters"));
    }
    let cron = CronParser::builder()
        .seconds(Seconds::Required)
        .dom_and_dow(true)
        .build()
        .parse(line)
        .map_err(|_| format!("{} is not a cron line; {FIX}", units::quote(line)))?;
    cron.find_next_occurrence(&chrono::Utc::now(), false)
        .map_err(|_| format!("{} never comes; {FIX}", units::quote(line)))?;
    Ok(())
}

fn worker(mut section: Section<'_>, report: &Report) -> (WorkerConfig, Option<Setting<PathBuf>>) {
    let concurrency = section
        .integer("concurrency", 1..=CONCURRENCY_MAX)
        .unwrap_or_else(default_concurrency);
    let memory_min = MEMORY_PER_MERGE_BYTES_MIN.saturating_mul(concurrency);
    let memory_budget_bytes = match section.size_bytes("memory_budget", 1..=1 << 50) {
        None => MEMORY_BUDGET_BYTES.max(memory_min),
        Some(budget) => {
            if budget.value < memory_min {
                report.problem(
                    &budget.place,
                    format!(
                        "\"{}\" is too small for {concurrency} merges at a time; write at least \"{}\", or lower worker.concurrency",
                        units::format_size(budget.value),
                        units::format_size(memory_min)
                    ),
                );
            }
            budget.value
        }
    };
    let scratch = section
        .text("scratch_dir")
        .and_then(|setting| layers::folder(&setting, report));
    let lease = section.whole_seconds("lease", 5 * SECOND..=HOUR);
    let stop_timeout = section.duration("stop_timeout", Duration::ZERO..=HOUR);
    let max_attempts = section.integer("max_attempts", 1..=1000);
    let writers = section
        .texts("writers", WRITERS_MAX)
        .and_then(|writers| check_writers(writers, report));
    section.finish();
    let worker = WorkerConfig {
        concurrency: usize::try_from(concurrency).unwrap_or(1),
        memory_budget_bytes,
        scratch_dir: scratch.as_ref().map(|setting| setting.value.clone()),
        lease: lease.map_or(60 * SECOND, |lease| lease.value),
        stop_timeout: stop_timeout.map_or(30 * SECOND, |timeout| timeout.value),
        max_attempts: max_attempts
            .and_then(|attempts| u32::try_from(attempts).ok())
            .unwrap_or(5),
        writers,
    };
    (worker, scratch)
}

fn default_concurrency() -> u64 {
    std::thread::available_parallelism()
        .map_or(1, |cores| cores.get() as u64)
        .min(CONCURRENCY_MAX)
}

fn check_writers(writers: Setting<Vec<String>>, report: &Report) -> Option<Vec<WriterId>> {
    if writers.value.is_empty() {
        report.problem(
            &writers.place,
            "is empty, so nothing would be merged; remove it to serve all writers",
        );
        return None;
    }
    let mut ids = Vec::with_capacity(writers.value.len());
    for (index, name) in writers.value.iter().enumerate() {
        match WriterId::parse(name) {
            Ok(id) => ids.push(id),
            Err(error) => {
                let mut place = writers.place.clone();
                place.path = format!("{}[{index}]", place.path);
                report.problem(place, error.to_string());
            }
        }
    }
    Some(ids)
}

fn drops(mut section: Section<'_>, report: &Report) -> DropConfig {
    let grace = section.whole_seconds("grace", Duration::ZERO..=30 * DAY);
    let interval = section.duration("interval", Duration::from_millis(100)..=HOUR);
    if let Some(grace) = &grace
        && grace.value < GRACE_WARNING
    {
        report.warning(
            &grace.place,
            &format!(
                "\"{}\" is short: a query that took its file list before a merge may find files gone",
                units::format_duration(grace.value)
            ),
        );
    }
    section.finish();
    DropConfig {
        grace: grace.map_or(300 * SECOND, |grace| grace.value),
        interval: interval.map_or(10 * SECOND, |interval| interval.value),
    }
}

fn log(mut section: Section<'_>, report: &Report) -> LogConfig {
    let level = section.text("level").map_or_else(
        || "info".to_owned(),
        |level| {
            if let Err(message) = check_log_level(&level.value) {
                report.problem(&level.place, message);
            }
            level.value
        },
    );
    let format = section.choice(
        "format",
        &[("text", LogFormat::Text), ("json", LogFormat::Json)],
    );
    section.finish();
    LogConfig {
        level,
        format: format.map_or(LogFormat::Text, |format| format.value),
    }
}

/// A level, or a filter in which each part but the first has the form `target=level`.
///
/// The filter's own parser takes "inof" for the name of a target, and then logs nothing.
fn check_log_level(filter: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let is_level = |word: &str| LEVELS.contains(&word.to_ascii_lowercase().as_str());
    for part in filter.split(',').map(str::trim) {
        let word = part.rsplit_once('=').map_or(part, |(_, level)| level);
        if !is_level(word) {
            return Err(format!(
                "{} is not a level; write error, warn, info, debug, trace or off{}",
                units::quote(word),
                did_you_mean(word, LEVELS)
            ));
        }
    }
    EnvFilter::try_new(filter).map(drop).map_err(|_| {
        format!(
            "{} is not a filter; write a level, or for example \"info,gigamerge::merge=debug\"",
            units::quote(filter)
        )
    })
}
