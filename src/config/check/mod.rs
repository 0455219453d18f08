//! From values as written to a [`Config`], or to a list of everything that is wrong.

mod catalog;
mod layers;
mod tables;

pub(crate) use tables::{parse_compression, parse_keep, parse_sort_column};

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use croner::parser::{CronParser, Seconds};
use tracing_subscriber::EnvFilter;

use super::{
    CatalogConfig, Config, DropConfig, LevelConfig, LogConfig, LogFormat, WorkerConfig,
    problem::{Place, Report, did_you_mean},
    raw::{Section, Setting},
    units,
};
use crate::{
    crash_points::CrashPoints,
    model::{Iteration, WriterId},
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

const LEVELS_MAX: usize = 32;
const WRITERS_MAX: usize = 10_000;
const SCHEDULE_CHARS_MAX: usize = 200;
const CONCURRENCY_MAX: u64 = 256;
const MEMORY_BUDGET_BYTES: u64 = 512 << 20;
/// Below this a merge would spill all the time.
const MEMORY_PER_MERGE_BYTES_MIN: u64 = 64 << 20;
/// Queries that took their file list before a merge usually end within this time.
const GRACE_WARNING: Duration = Duration::from_secs(30);
const GRACE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(30 * 24);
/// Unlinking takes the disk's journal from readers: a merge of thousands is spread over seconds.
const DROPS_PER_SECOND: u32 = 500;

/// A configuration whose folders have not been looked at. Only meaningful when nothing was reported.
pub(super) struct Checked {
    pub(super) config: Config,
    pub(super) roots: Vec<Setting<PathBuf>>,
    pub(super) scratch: Option<Setting<PathBuf>>,
}

pub(super) fn check(mut root: Section<'_>, report: &Report) -> Checked {
    let catalog = catalog::check(root.section("catalog"), report);
    let is_embedded = catalog == CatalogConfig::Json;
    let (layers, roots) = layers::check(&mut root, is_embedded, report);
    if layers.len() > 1 && is_embedded {
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
            crash_points: CrashPoints::none(),
        },
        roots,
        scratch,
    }
}

fn levels(mut section: Section<'_>, report: &Report) -> Vec<LevelConfig> {
    let enabled = section.boolean("enabled");
    let mut levels: Vec<(LevelConfig, String)> = Vec::new();
    if let Some(list) = section.sections("levels", LEVELS_MAX) {
        if list.value.is_empty() {
            report.problem(
                &list.place,
                "is empty; to turn merging off, write merge.enabled = false",
            );
        }
        let written_count = list.value.len();
        for section in list.value {
            levels.extend(level(section, report));
        }
        // With a level that cannot be read, a gap would be reported that is not there.
        if levels.len() == written_count {
            check_iterations(&mut levels, &list.place, report);
        }
    }
    section.finish();
    if let Some(enabled) = enabled
        && !enabled.value
    {
        let message = if enabled.place.is_gigapi() {
            "nothing is merged; when that is meant for the writer only, set GIGAMERGE_MERGE__ENABLED=true"
        } else {
            "nothing is merged"
        };
        report.warning(enabled.place, message);
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
    let min_free = section.size_bytes("min_free", 0..=1 << 50);
    let lease = section.whole_seconds("lease", 5 * SECOND..=HOUR);
    let stop_timeout = section.duration("stop_timeout", Duration::ZERO..=HOUR);
    let max_attempts = section.integer("max_attempts", 1..=1000);
    let janitor_interval = section.duration("janitor_interval", SECOND..=30 * DAY);
    let writers = section
        .texts("writers", WRITERS_MAX)
        .and_then(|writers| check_writers(&writers, report));
    section.finish();
    let worker = WorkerConfig {
        concurrency: usize::try_from(concurrency).unwrap_or(1),
        memory_budget_bytes,
        scratch_dir: scratch.as_ref().map(|setting| setting.value.clone()),
        min_free_bytes: min_free.map(|setting| setting.value),
        lease: lease.map_or(60 * SECOND, |lease| lease.value),
        stop_timeout: stop_timeout.map_or(30 * SECOND, |timeout| timeout.value),
        max_attempts: max_attempts
            .and_then(|attempts| u32::try_from(attempts).ok())
            .unwrap_or(5),
        janitor_interval: janitor_interval.map_or(DAY, |interval| interval.value),
        writers,
    };
    (worker, scratch)
}

fn default_concurrency() -> u64 {
    std::thread::available_parallelism()
        .map_or(1, |cores| cores.get() as u64)
        .min(CONCURRENCY_MAX)
}

fn check_writers(writers: &Setting<Vec<String>>, report: &Report) -> Option<Vec<WriterId>> {
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

fn warn_of_short_grace(grace: Option<&Setting<Duration>>, report: &Report) {
    if let Some(grace) = grace.filter(|grace| grace.value < GRACE_WARNING) {
        report.warning(
            &grace.place,
            &format!(
                "\"{}\" is short: a query that took its file list before a merge may find files gone",
                units::format_duration(grace.value)
            ),
        );
    }
}

fn drops(mut section: Section<'_>, report: &Report) -> DropConfig {
    let grace = section.whole_seconds("grace", GRACE);
    let interval = section.duration("interval", Duration::from_millis(100)..=HOUR);
    let max_per_second = section.integer("max_per_second", 1..=100_000);
    warn_of_short_grace(grace.as_ref(), report);
    section.finish();
    DropConfig {
        grace: grace.map_or(300 * SECOND, |grace| grace.value),
        interval: interval.map_or(10 * SECOND, |interval| interval.value),
        max_per_second: max_per_second
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(DROPS_PER_SECOND),
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
pub(super) fn check_log_level(filter: &str) -> Result<(), String> {
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
