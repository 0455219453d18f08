//! Settings from environment variables: ours, and those that `GigAPI` writers use.
//!
//! An empty variable counts as not set.

use std::{collections::BTreeMap, time::Duration};

use config::{Map, Value};

use super::{
    check,
    load::{Writer, Written},
    problem::Report,
    units,
};

/// Highest index in a variable's name. A list is filled up to it, so it must be bounded.
const INDEX_MAX: usize = 63;

/// The four levels of `GigAPI`: factor on the base timeout, largest plan.
const LEVELS: [(u64, &str); 4] = [
    (1, "100 MiB"),
    (10, "400 MiB"),
    (100, "4 GiB"),
    (420, "4 GiB"),
];
const BASE_TIMEOUT_S: u64 = 10;
const BASE_TIMEOUT_MAX_S: u64 = 6_000;

type Env = BTreeMap<String, String>;

/// The merge levels, from `GigAPI`'s base timeout when there is one.
///
/// They are values of the tree and not defaults of the checks, so that
/// `GIGAMERGE_MERGE__LEVELS__0__TIMEOUT` changes one of them and leaves the rest.
pub(super) fn defaults(env: &Env, report: &Report) -> Vec<Written> {
    const NAME: &str = "GIGAPI_MERGE_TIMEOUT_S";
    let base_s = match variable(env, NAME) {
        None => None,
        Some(text) => match text.trim().parse() {
            // GigAPI takes 0 for "not set".
            Ok(0) => None,
            Ok(base_s @ 1..=BASE_TIMEOUT_MAX_S) => Some(base_s),
            _ => {
                report.problem(
                    NAME,
                    format!(
                        "{} is not a number of seconds from 1 to {BASE_TIMEOUT_MAX_S}",
                        units::quote(text)
                    ),
                );
                None
            }
        },
    };
    let origin = base_s.map(|_| NAME.to_owned());
    let levels: Vec<Value> = (1i64..)
        .zip(LEVELS)
        .map(|(iteration, (factor, max_size))| {
            let timeout_s = base_s.unwrap_or(BASE_TIMEOUT_S) * factor;
            let level = Map::from([
                (
                    "iteration".to_owned(),
                    Value::new(origin.as_ref(), iteration),
                ),
                (
                    "timeout".to_owned(),
                    Value::new(origin.as_ref(), format!("{timeout_s}s")),
                ),
                ("max_size".to_owned(), Value::new(origin.as_ref(), max_size)),
            ]);
            Value::new(origin.as_ref(), level)
        })
        .collect();
    vec![Written {
        writer: Writer::Default,
        key: "merge.levels".to_owned(),
        value: Value::new(origin.as_ref(), levels),
    }]
}

/// The variables of `GigAPI` writers, so that a sidecar can share its writer's environment.
pub(super) fn gigapi(env: &Env, report: &Report) -> Vec<Written> {
    let mut written = Vec::new();
    let mut add = |key: &str, name: &str, value: Value| {
        written.push(Written {
            writer: Writer::Gigapi,
            key: key.to_owned(),
            value: Value::new(Some(&name.to_owned()), value.kind),
        });
    };
    for (name, key) in [
        ("GIGAPI_METADATA_TYPE", "catalog.type"),
        ("GIGAPI_METADATA_URL", "catalog.url"),
    ] {
        if let Some(text) = variable(env, name) {
            add(key, name, text.into());
        }
    }
    if let Some(text) = variable(env, "LOGLEVEL") {
        // Our levels end at error; GigAPI's go one further.
        let level = match text.trim().to_ascii_lowercase().as_str() {
            "fatal" | "panic" => "error".to_owned(),
            "warning" => "warn".to_owned(),
            other => other.to_owned(),
        };
        // Any program may own a variable of this name: its words must not keep us from starting.
        match check::check_log_level(&level) {
            Ok(()) => add("log.level", "LOGLEVEL", level.into()),
            Err(message) => report.warning("LOGLEVEL", &format!("is ignored: {message}")),
        }
    }
    if let Some(text) = variable(env, "GIGAPI_NO_MERGES") {
        match go_boolean(text) {
            Some(is_off) => add("merge.enabled", "GIGAPI_NO_MERGES", (!is_off).into()),
            None => report.problem(
                "GIGAPI_NO_MERGES",
                format!("{} is not true or false", units::quote(text)),
            ),
        }
    }
    let layers = gigapi_layers(env, report);
    if !layers.is_empty() {
        add("layers", "GIGAPI_LAYERS_0_NAME", layers.into());
    } else if let Some(root) = variable(env, "GIGAPI_ROOT") {
        // With layers, GigAPI does not look at its root either.
        add("data_dir", "GIGAPI_ROOT", root.into());
    }
    written
}

/// `GIGAPI_LAYERS_<n>_…`, counted from 0 and up to the first without a name, as writers do.
fn gigapi_layers(env: &Env, report: &Report) -> Vec<Value> {
    let mut layers: Vec<Value> = Vec::new();
    for index in 0..=INDEX_MAX {
        let prefix = format!("GIGAPI_LAYERS_{index}_");
        if variable(env, &format!("{prefix}NAME")).is_none() {
            break;
        }
        let mut layer = Map::new();
        for (suffix, key) in [
            ("NAME", "name"),
            ("TYPE", "type"),
            ("URL", "url"),
            ("AUTH_KEY", "auth_key"),
            ("AUTH_SECRET", "auth_secret"),
        ] {
            let name = format!("{prefix}{suffix}");
            if let Some(text) = variable(env, &name) {
                layer.insert(key.to_owned(), Value::new(Some(&name), text));
            }
        }
        let name = format!("{prefix}GLOBAL");
        if let Some(text) = variable(env, &name) {
            match go_boolean(text) {
                Some(is_global) => {
                    layer.insert("global".to_owned(), Value::new(Some(&name), is_global));
                }
                None => {
                    report.problem(name, format!("{} is not true or false", units::quote(text)));
                }
            }
        }
        let name = format!("{prefix}TTL");
        if let Some(text) = variable(env, &name) {
            // Writers in Go write "1h30m", those in Python a number of seconds; 0 means for ever.
            let text = match text.trim() {
                digits if digits.bytes().all(|b| b.is_ascii_digit()) => format!("{digits}s"),
                other => other.to_owned(),
            };
            if units::parse_duration(&text) != Ok(Duration::ZERO) {
                layer.insert("ttl".to_owned(), Value::new(Some(&name), text));
            }
        }
        layers.push(Value::new(Some(&format!("{prefix}*")), layer));
    }
    for name in env.keys() {
        let index = name
            .strip_prefix("GIGAPI_LAYERS_")
            .and_then(|rest| rest.split('_').next())
            .and_then(|digits| digits.parse::<usize>().ok());
        if index.is_some_and(|index| index >= layers.len()) && variable(env, name).is_some() {
            report.warning(
                name,
                "is ignored, as writers ignore it: layers count from 0, and each needs its _NAME",
            );
        }
    }
    layers
}

/// `GIGAMERGE_WORKER__LEASE=60s`, `GIGAMERGE_LAYERS__0__URL=file:///data`.
pub(super) fn own(env: &Env, report: &Report) -> Vec<Written> {
    let mut written = Vec::new();
    for (name, rest) in env
        .keys()
        .filter_map(|name| Some((name, name.strip_prefix("GIGAMERGE_")?)))
    {
        let Some(text) = variable(env, name) else {
            continue;
        };
        // The path of the file itself, which the command line reads.
        if rest == "CONFIG" || is_service_link(rest, text) {
            continue;
        }
        match path_of(rest) {
            Ok(key) => written.push(Written {
                writer: Writer::Environment,
                key,
                value: Value::new(Some(name), text),
            }),
            Err(message) => report.problem(name, message),
        }
    }
    written
}

/// `LAYERS__0__URL` → `layers[0].url`.
fn path_of(rest: &str) -> Result<String, String> {
    let mut path = String::new();
    for part in rest.split("__") {
        let part = part.to_ascii_lowercase();
        if part.is_empty() || part.starts_with('_') || part.ends_with('_') {
            return Err(
                "unknown setting; levels are separated by two underscores, as in GIGAMERGE_WORKER__LEASE"
                    .to_owned(),
            );
        }
        if !path.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            match part.parse::<usize>() {
                Ok(index) if index <= INDEX_MAX => {
                    path.push('[');
                    path.push_str(&index.to_string());
                    path.push(']');
                }
                _ => {
                    return Err(format!(
                        "number {part} is too large; at most {INDEX_MAX} is possible"
                    ));
                }
            }
        } else if part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&part);
        } else {
            return Err("unknown setting; names hold letters, digits and underscores".to_owned());
        }
    }
    Ok(path)
}

/// Kubernetes and Docker give every pod `<SERVICE>_PORT=tcp://…` and the like. A service named
/// `gigamerge` must not keep the daemon from starting.
fn is_service_link(rest: &str, text: &str) -> bool {
    let is_port =
        |part: &str| part == "PORT" || part.starts_with("PORT_") || part.contains("_PORT_");
    rest.ends_with("SERVICE_HOST")
        || rest.contains("SERVICE_PORT")
        || ((is_port(rest) || rest.ends_with("_PORT"))
            && (text.starts_with("tcp://")
                || text.starts_with("udp://")
                || rest.ends_with("_PROTO")
                || rest.ends_with("_ADDR")
                || rest.ends_with("_TCP_PORT")
                || rest.ends_with("_UDP_PORT")))
}

fn variable<'e>(env: &'e Env, name: &str) -> Option<&'e str> {
    env.get(name)
        .map(String::as_str)
        .filter(|text| !text.is_empty())
}

/// What `GigAPI`'s own parser takes for a boolean.
fn go_boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Some(true),
        "0" | "f" | "false" => Some(false),
        _ => None,
    }
}
