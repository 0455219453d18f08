//! The configuration as written: a tree of values that know where they came from.
//!
//! Each setting is asked for by name and type; what nobody asked for is unknown. So the names
//! that the code reads and the names that it accepts cannot drift apart. A wrong value is
//! reported and then missing, so that one pass finds every problem.

mod values;

use std::collections::BTreeMap;

use config::{Value, ValueKind};

use super::{
    problem::{Place, Report, did_you_mean},
    units,
};

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Setting<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// One table of the configuration.
pub(super) struct Section<'r> {
    path: String,
    origin: Option<String>,
    values: BTreeMap<String, Value>,
    known: Vec<&'static str>,
    report: &'r Report,
}

impl<'r> Section<'r> {
    pub(super) fn root(values: BTreeMap<String, Value>, report: &'r Report) -> Self {
        Self {
            path: String::new(),
            origin: None,
            values,
            known: Vec::new(),
            report,
        }
    }

    /// This table's own place.
    pub(super) fn place(&self) -> Place {
        Place {
            path: self.path.clone(),
            origin: self.origin.clone(),
        }
    }

    /// The place of a setting that is not there.
    pub(super) fn place_of(&self, key: &str) -> Place {
        Place {
            path: join(&self.path, key),
            origin: self.origin.clone(),
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Reports a setting that has no default.
    pub(super) fn require(&self, key: &str, example: &str) {
        if !self.has(key) {
            self.report.problem(
                self.place_of(key),
                format!("is missing; write for example {key} = {example}"),
            );
        }
    }

    /// A table inside this one; empty when it is not there.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'r> {
        let (values, origin) = match self.take(key) {
            None => (BTreeMap::new(), None),
            Some((value, place)) => match value.kind {
                ValueKind::Table(values) => (values.into_iter().collect(), place.origin),
                other => {
                    self.report.problem(
                        place,
                        format!("{} is not a section; write [{key}]", shown(&other)),
                    );
                    (BTreeMap::new(), None)
                }
            },
        };
        Section {
            path: join(&self.path, key),
            origin,
            values,
            known: Vec::new(),
            report: self.report,
        }
    }

    /// A list of tables; `None` when it is not there or wrong.
    pub(super) fn sections(
        &mut self,
        key: &'static str,
        count_max: usize,
    ) -> Option<Setting<Vec<Section<'r>>>> {
        let (value, place) = self.take(key)?;
        let ValueKind::Array(values) = value.kind else {
            self.report.problem(
                &place,
                format!(
                    "is not a list of sections; write [[{}]] for each",
                    place.path
                ),
            );
            return None;
        };
        if values.len() > count_max {
            self.report.problem(
                &place,
                format!(
                    "has {} parts; at most {count_max} are possible",
                    values.len()
                ),
            );
            return None;
        }
        let mut sections = Vec::with_capacity(values.len());
        for (index, value) in values.into_iter().enumerate() {
            let path = format!("{}[{index}]", place.path);
            let origin = value.origin().map(str::to_owned);
            match value.kind {
                ValueKind::Table(values) => sections.push(Section {
                    path,
                    origin,
                    values: values.into_iter().collect(),
                    known: Vec::new(),
                    report: self.report,
                }),
                ValueKind::Nil => self.report.problem(
                    path,
                    "is missing; numbers in the environment count from 0 without gaps",
                ),
                other => self.report.problem(
                    Place { path, origin },
                    format!(
                        "{} is not a section; write [[{}]]",
                        shown(&other),
                        place.path
                    ),
                ),
            }
        }
        Some(Setting {
            value: sections,
            place,
        })
    }

    /// Reports every setting that nobody asked for.
    pub(super) fn finish(self) {
        for (key, value) in &self.values {
            let place = Place {
                path: join(&self.path, &plain(key)),
                origin: origin_below(value),
            };
            let mut hint = did_you_mean(key, self.known.iter().copied());
            if hint.is_empty() && self.path.is_empty() && place.origin.is_some() {
                hint = self.report.variable_meant_by(key);
            }
            self.report.problem(place, format!("unknown setting{hint}"));
        }
    }

    fn take(&mut self, key: &'static str) -> Option<(Value, Place)> {
        self.known.push(key);
        self.report.asked(join(&self.path, key));
        let value = self.values.remove(key)?;
        let place = Place {
            path: join(&self.path, key),
            origin: value.origin().map(str::to_owned),
        };
        Some((value, place))
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// A key as TOML writes it: anything but plain names in quotes, so that no key can draw on a terminal.
pub(super) fn plain(key: &str) -> String {
    if is_plain(key) {
        key.to_owned()
    } else {
        units::quote(key)
    }
}

/// Whether a key is a name that no path expression reads anything into.
pub(super) fn is_plain(key: &str) -> bool {
    !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Tables lose their origin when sources are laid over each other; their values keep it.
fn origin_below(value: &Value) -> Option<String> {
    if let Some(origin) = value.origin() {
        return Some(origin.to_owned());
    }
    match &value.kind {
        ValueKind::Table(values) => values
            .iter()
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .find_map(origin_below),
        ValueKind::Array(values) => values.iter().find_map(origin_below),
        _ => None,
    }
}

/// A value for a message.
fn shown(kind: &ValueKind) -> String {
    match kind {
        ValueKind::String(text) => units::quote(text),
        ValueKind::Table(_) => "a section".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        other => other.to_string(),
    }
}
