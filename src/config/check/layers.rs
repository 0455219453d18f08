//! Layers, and folders as people write them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    config::{
        LayerConfig,
        problem::Report,
        raw::{Section, Setting},
        units,
    },
    model::LayerName,
};

use super::{DAY, GRACE, SECOND, warn_of_short_grace};

const LAYERS_MAX: usize = 64;

/// The layers and the places of their roots. Missing parts were reported.
pub(super) fn check(
    root: &mut Section<'_>,
    is_embedded: bool,
    report: &Report,
) -> (Vec<LayerConfig>, Vec<Setting<PathBuf>>) {
    if !root.has("layers") && !root.has("data_dir") {
        report.problem(
            "data_dir",
            "is missing: where is the lake? Give --data-dir DIR, set GIGAMERGE_DATA_DIR, or write data_dir = \"/path\" in the file",
        );
    }
    let list = root.sections("layers", LAYERS_MAX);
    if let Some(data_dir) = root.text("data_dir") {
        return only_layer(&data_dir, report);
    }
    let Some(list) = list else {
        return (Vec::new(), Vec::new());
    };
    if list.value.is_empty() {
        report.problem(
            &list.place,
            "is empty; name one layer at least, or remove it and set data_dir",
        );
    }
    let mut layers: Vec<LayerConfig> = Vec::new();
    let mut roots = Vec::new();
    let count = list.value.len();
    for (place, section) in list.value.into_iter().enumerate() {
        let Some((layer, root, ttl)) = layer(section, &layers, report) else {
            continue;
        };
        if let Some(ttl) = ttl {
            warn_of_ttl(&ttl, is_embedded, place + 1 == count, report);
        }
        layers.push(layer);
        roots.push(root);
    }
    (layers, roots)
}

/// What a lifetime leads to where it may surprise.
fn warn_of_ttl(ttl: &Setting<Duration>, is_embedded: bool, is_last: bool, report: &Report) {
    if is_embedded {
        report.warning(&ttl.place, "the json catalog moves and expires nothing");
    } else if is_last {
        report.warning(
            &ttl.place,
            &format!(
                "files that are older than \"{}\" are deleted for good: this is the last layer",
                units::format_duration(ttl.value)
            ),
        );
    }
}

fn only_layer(
    data_dir: &Setting<String>,
    report: &Report,
) -> (Vec<LayerConfig>, Vec<Setting<PathBuf>>) {
    let (Some(folder), Ok(name)) = (folder(data_dir, report), LayerName::parse("default")) else {
        return (Vec::new(), Vec::new());
    };
    let layer = LayerConfig {
        name,
        root: folder.value.clone(),
        is_global: true,
        ttl: None,
        grace: None,
    };
    (vec![layer], vec![folder])
}

#[derive(Clone, Copy, PartialEq)]
enum LayerKind {
    Fs,
    S3,
}

fn layer(
    mut section: Section<'_>,
    earlier: &[LayerConfig],
    report: &Report,
) -> Option<(LayerConfig, Setting<PathBuf>, Option<Setting<Duration>>)> {
    section.require("name", "\"hot\"");
    section.require("url", "\"file:///path\"");
    let name = section
        .text("name")
        .and_then(|name| check_name(&name, earlier, report));
    let kind = section.choice("type", &[("fs", LayerKind::Fs), ("s3", LayerKind::S3)]);
    let url = section.text("url");
    let is_global = section.boolean("global");
    let ttl = section.whole_seconds("ttl", SECOND..=36_500 * DAY);
    let grace = section.whole_seconds("grace", GRACE);
    warn_of_short_grace(grace.as_ref(), report);
    for key in ["auth_key", "auth_secret"] {
        if let Some(secret) = section.secret(key) {
            report.warning(
                secret.place,
                "is not used: layers of type \"fs\" need no access key",
            );
        }
    }
    section.finish();
    let is_s3 = kind
        .as_ref()
        .is_some_and(|kind| kind.value == LayerKind::S3)
        || url
            .as_ref()
            .is_some_and(|url| url.value.trim_start().starts_with("s3://"));
    if is_s3 {
        let place = match (&kind, &url) {
            (Some(kind), _) if kind.value == LayerKind::S3 => &kind.place,
            (_, Some(url)) => &url.place,
            _ => return None,
        };
        report.problem(
            place,
            "this version works on file systems only; use a layer of type \"fs\", or leave the s3 layer to another compactor",
        );
        return None;
    }
    let root = folder(&url?, report)?;
    let layer = LayerConfig {
        name: name?,
        root: root.value.clone(),
        is_global: is_global.is_some_and(|is_global| is_global.value),
        ttl: ttl.as_ref().map(|ttl| ttl.value),
        grace: grace.map(|grace| grace.value),
    };
    Some((layer, root, ttl))
}

fn check_name(
    name: &Setting<String>,
    earlier: &[LayerConfig],
    report: &Report,
) -> Option<LayerName> {
    if name.value.is_empty() {
        report.problem(&name.place, "is empty; write a name, such as \"hot\"");
        return None;
    }
    match LayerName::parse(&name.value) {
        Ok(parsed) => {
            if earlier.iter().any(|layer| layer.name == parsed) {
                report.problem(
                    &name.place,
                    format!(
                        "{} is the name of an earlier layer too; each layer needs its own",
                        units::quote(&name.value)
                    ),
                );
            }
            Some(parsed)
        }
        Err(error) => {
            report.problem(
                &name.place,
                format!("{error}; write letters, digits, - and _"),
            );
            None
        }
    }
}

/// A folder as an absolute path; reported when it is none.
pub(super) fn folder(setting: &Setting<String>, report: &Report) -> Option<Setting<PathBuf>> {
    match parse_folder(&setting.value) {
        Ok(value) => Some(Setting {
            value,
            place: setting.place.clone(),
        }),
        Err(message) => {
            report.problem(&setting.place, message);
            None
        }
    }
}

/// `/abs`, `rel`, `file:///abs` or `file://./rel`; nothing is decoded or expanded.
fn parse_folder(text: &str) -> Result<PathBuf, String> {
    const FIX: &str = "write file:///absolute/path, file://./relative/path or a plain path";
    let path = match text.split_once("://") {
        None => text,
        Some(("file", path)) if path.starts_with('/') || path.starts_with('.') => path,
        Some(("file", _)) => return Err(format!("names a host; {FIX}")),
        // The rest may hold an access key.
        Some((_, _)) => return Err(format!("is not on a file system; {FIX}")),
    };
    if path.is_empty() {
        return Err(format!("is empty; {FIX}"));
    }
    if path.chars().any(|c| c.is_control() || c == '\u{fffd}') {
        return Err(format!(
            "{} holds a character that no path should hold; {FIX}",
            units::quote(path)
        ));
    }
    if path == "~" || path.starts_with("~/") {
        return Err(format!(
            "{}: \"~\" is not expanded here; write the whole path",
            units::quote(path)
        ));
    }
    let absolute = std::path::absolute(path).map_err(|error| {
        format!(
            "{} cannot be made absolute ({error}); write an absolute path",
            units::quote(path)
        )
    })?;
    // Without trailing slashes and "." parts, so that equal folders look equal.
    let absolute: PathBuf = absolute.components().collect();
    if absolute == Path::new("/") {
        return Err("is the root of the whole file system; name a folder of its own".to_owned());
    }
    Ok(absolute)
}
