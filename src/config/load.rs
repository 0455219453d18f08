//! Reads every source and lays one over the other.
//!
//! Weakest first: defaults, the environment of `GigAPI` writers, the file, our own environment,
//! the command line. A sidecar that shares its writer's environment needs no file; a file that
//! is there means what it says.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use config::{FileFormat, Map, Source, Value, ValueKind};

use super::{
    Config, ConfigError, Problems, Secret, check, env, folders,
    problem::Report,
    raw::{self, Section},
};

/// More than any configuration needs, and little enough to read at once.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the configuration comes from. Kept by the daemon, so that a reload reads the same places.
#[derive(Clone, Default)]
pub struct ConfigSources {
    /// The file, if one was named. There is no default place: what is not named is not read.
    pub file: Option<PathBuf>,
    /// The environment, as [`process_env`](Self::process_env) gives it.
    pub env: BTreeMap<String, String>,
    /// The command line.
    pub overrides: Overrides,
}

/// What the command line sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--data-dir`: root of the only layer.
    pub data_dir: Option<String>,
    /// `--catalog-url`: use Redis, there.
    pub catalog_url: Option<Secret>,
    /// `--log-level`.
    pub log_level: Option<String>,
    /// `--log-format`.
    pub log_format: Option<String>,
}

impl ConfigSources {
    /// The environment of this process. Bytes that are not text become `U+FFFD`, and are then refused where they stand.
    pub fn process_env() -> BTreeMap<String, String> {
        std::env::vars_os()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into_owned(),
                    value.to_string_lossy().into_owned(),
                )
            })
            .collect()
    }
}

/// Who wrote a value, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    Default,
    Gigapi,
    File,
    Environment,
    CommandLine,
}

/// Values of one source. Each variable is a source of its own, so that the order is always the same.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) writer: Writer,
    pub(super) key: String,
    pub(super) value: Value,
}

impl Source for Written {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(Map::from([(self.key.clone(), self.value.clone())]))
    }
}

impl Config {
    /// Reads, checks and returns the configuration, or everything that is wrong with it.
    ///
    /// Folders must exist: a wrong path is refused here and not found out later by an empty lake.
    pub fn load(sources: &ConfigSources) -> Result<Self, ConfigError> {
        let report = Report::default();
        let mut written = env::defaults(&sources.env, &report);
        written.extend(env::gigapi(&sources.env, &report));
        if let Some(path) = &sources.file {
            written.extend(read_file(path, &report)?);
        }
        written.extend(env::own(&sources.env, &report));
        written.extend(command_line(&sources.overrides));
        settle_layers(&mut written, &report);

        let checked = check::check(Section::root(lay_over(written), &report), &report);
        folders::check(&checked, &report);

        let (list, warnings, _) = report.into_parts();
        if list.is_empty() {
            return Ok(Self {
                warnings,
                ..checked.config
            });
        }
        Err(ConfigError::Problems(Problems {
            file: sources.file.clone(),
            list,
        }))
    }
}

fn read_file(path: &Path, report: &Report) -> Result<Vec<Written>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
            bytes_max: FILE_BYTES_MAX,
        });
    }
    let values = config::File::from_str(&text, FileFormat::Toml)
        .collect()
        .map_err(|error| not_toml(path, error))?;
    let mut written = Vec::new();
    for (key, value) in values.into_iter().collect::<BTreeMap<_, _>>() {
        // Other characters would be read as a path into the tree.
        if raw::is_plain(&key) {
            written.push(Written {
                writer: Writer::File,
                key,
                value,
            });
        } else {
            report.problem(raw::plain(&key), "unknown setting");
        }
    }
    Ok(written)
}

/// Takes place and reason from the parser's message and leaves the quoted line out: it may hold a password.
fn not_toml(path: &Path, error: config::ConfigError) -> ConfigError {
    let path = path.to_owned();
    let text = match error {
        config::ConfigError::FileParse { cause, .. } => cause.to_string(),
        other => other.to_string(),
    };
    let mut lines = text.lines();
    let position = lines
        .next()
        .and_then(|first| first.strip_prefix("TOML parse error at line "))
        .and_then(|rest| rest.split_once(", column "));
    if let Some((line, column)) = position
        && let (Ok(line), Ok(column)) = (line.parse(), column.parse())
    {
        // Skipped: the empty gutter, the line itself, the marker under it.
        let reason: Vec<&str> = lines.skip(3).collect();
        return ConfigError::Syntax {
            path,
            line,
            column,
            message: reason.join("; "),
        };
    }
    let message = if text.contains("number too") || text.contains("overflow") {
        "a number is beyond 64 bits".to_owned()
    } else {
        "is not valid TOML".to_owned()
    };
    ConfigError::NotToml { path, message }
}

fn command_line(overrides: &Overrides) -> Vec<Written> {
    let mut written = Vec::new();
    let mut add = |key: &str, option: &str, value: &str| {
        written.push(Written {
            writer: Writer::CommandLine,
            key: key.to_owned(),
            value: Value::new(Some(&option.to_owned()), value),
        });
    };
    if let Some(value) = &overrides.data_dir {
        add("data_dir", "--data-dir", value);
    }
    if let Some(Secret(url)) = &overrides.catalog_url {
        add("catalog.type", "--catalog-url", "redis");
        add("catalog.url", "--catalog-url", url);
    }
    if let Some(value) = &overrides.log_level {
        add("log.level", "--log-level", value);
    }
    if let Some(value) = &overrides.log_format {
        add("log.format", "--log-format", value);
    }
    written
}

/// `data_dir` and `layers` say the same thing twice: the stronger source decides, and one source must not say both.
fn settle_layers(written: &mut Vec<Written>, report: &Report) {
    let is_root = |one: &Written| one.key == "data_dir";
    let is_layers = |one: &Written| one.key == "layers" || one.key.starts_with("layers[");
    let (Some(root), Some(layers)) = (
        written.iter().rposition(is_root),
        written.iter().rposition(is_layers),
    ) else {
        return;
    };
    let (root_writer, layers_writer) = (written[root].writer, written[layers].writer);
    if root_writer == layers_writer {
        let place = written[root]
            .value
            .origin()
            .unwrap_or("data_dir")
            .to_owned();
        report.problem(place, "is set beside layers; remove one of the two");
    } else if root > layers {
        let place = written[root]
            .value
            .origin()
            .unwrap_or("data_dir")
            .to_owned();
        report.warning(
            place,
            &format!("replaces the layers that {} set", name_of(layers_writer)),
        );
        written.retain(|one| !is_layers(one));
        return;
    } else if root_writer != Writer::Gigapi {
        let place = written[layers]
            .value
            .origin()
            .unwrap_or("layers")
            .to_owned();
        report.warning(
            place,
            &format!("replaces the data_dir that {} set", name_of(root_writer)),
        );
    }
    written.retain(|one| !is_root(one));
}

fn name_of(writer: Writer) -> &'static str {
    match writer {
        Writer::Default => "the defaults",
        Writer::Gigapi => "the GIGAPI_ variables",
        Writer::File => "the file",
        Writer::Environment => "the GIGAMERGE_ variables",
        Writer::CommandLine => "the command line",
    }
}

fn lay_over(written: Vec<Written>) -> BTreeMap<String, Value> {
    let mut builder = config::Config::builder();
    for one in written {
        builder = builder.add_source(one);
    }
    // Our sources only hand out values that are in memory already: building them cannot fail.
    match builder.build().map(|built| built.cache.kind) {
        Ok(ValueKind::Table(values)) => values.into_iter().collect(),
        _ => BTreeMap::new(),
    }
}

/// Every setting that the code asks for, lists written as `layers[]`.
#[cfg(test)]
pub(super) fn known_settings() -> std::collections::BTreeSet<String> {
    let report = Report::default();
    let one_of_each = "
        layers = [{}]
        merge.levels = [{}]
        tables.overrides = [{}]
    ";
    let values = config::File::from_str(one_of_each, FileFormat::Toml)
        .collect()
        .unwrap();
    check::check(
        Section::root(values.into_iter().collect(), &report),
        &report,
    );
    let (_, _, asked) = report.into_parts();
    asked
        .into_iter()
        .map(|setting| setting.replace("[0]", "[]"))
        .collect()
}
