//! The configuration as written: a tree of values that know where they came from.
//!
//! Each setting is asked for by name and type; what nobody asked for is unknown. So the names
//! that the code reads and the names that it accepts cannot drift apart. A wrong value is
//! reported and then missing, so that one pass finds every problem.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use config::{Value, ValueKind};

use super::{
    Secret,
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

    pub(super) fn text(&mut self, key: &'static str) -> Option<Setting<String>> {
        let (value, place) = self.take(key)?;
        match value.kind {
            ValueKind::String(text) => Some(Setting { value: text, place }),
            other => {
                self.report.problem(
                    place,
                    format!("{} is not text; write it in quotes", shown(&other)),
                );
                None
            }
        }
    }

    /// Like [`text`](Self::text), for values that no message may repeat.
    pub(super) fn secret(&mut self, key: &'static str) -> Option<Setting<Secret>> {
        let (value, place) = self.take(key)?;
        if let ValueKind::String(text) = value.kind {
            let value = Secret(text);
            return Some(Setting { value, place });
        }
        self.report
            .problem(place, "must be text; write it in quotes");
        None
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<Setting<bool>> {
        let (value, place) = self.take(key)?;
        let parsed = match &value.kind {
            ValueKind::Boolean(value) => Some(*value),
            ValueKind::String(text) if place.origin.is_some() => {
                text.trim().to_ascii_lowercase().parse().ok()
            }
            _ => None,
        };
        if parsed.is_none() {
            self.report.problem(
                &place,
                format!("{} is not true or false", shown(&value.kind)),
            );
        }
        parsed.map(|value| Setting { value, place })
    }

    pub(super) fn integer(
        &mut self,
        key: &'static str,
        allowed: RangeInclusive<u64>,
    ) -> Option<u64> {
        let (value, place) = self.take(key)?;
        let parsed = match &value.kind {
            ValueKind::I64(value) => Some(i128::from(*value)),
            ValueKind::String(text) if place.origin.is_some() => text.trim().parse().ok(),
            _ => None,
        };
        let Some(parsed) = parsed else {
            let fix = match &value.kind {
                ValueKind::String(text) if text.trim().parse::<u64>().is_ok() => {
                    format!("; write {} without quotes", text.trim())
                }
                _ => String::new(),
            };
            self.report.problem(
                place,
                format!("{} is not a whole number{fix}", shown(&value.kind)),
            );
            return None;
        };
        let number = u64::try_from(parsed).ok().filter(|n| allowed.contains(n));
        if number.is_none() {
            self.report.problem(
                place,
                format!(
                    "{parsed} is out of range; from {} to {} is possible",
                    allowed.start(),
                    allowed.end()
                ),
            );
        }
        number
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        allowed: RangeInclusive<Duration>,
    ) -> Option<Setting<Duration>> {
        let (value, place) = self.take(key)?;
        let parsed = match &value.kind {
            ValueKind::String(text) => units::parse_duration(text),
            ValueKind::I64(0..) | ValueKind::Float(0.0..) => Err(format!(
                "{} has no unit; write \"{}s\"",
                shown(&value.kind),
                shown(&value.kind)
            )),
            other => Err(format!(
                "{} is not a duration; write for example \"30s\"",
                shown(other)
            )),
        };
        self.within(
            parsed,
            place,
            &allowed,
            units::format_duration,
            "short",
            "long",
        )
    }

    /// Like [`duration`](Self::duration), for times that travel as whole seconds.
    pub(super) fn whole_seconds(
        &mut self,
        key: &'static str,
        allowed: RangeInclusive<Duration>,
    ) -> Option<Setting<Duration>> {
        let setting = self.duration(key, allowed)?;
        if setting.value.subsec_nanos() == 0 {
            return Some(setting);
        }
        self.report.problem(
            &setting.place,
            format!(
                "\"{}\" has a fraction of a second; write \"{}s\"",
                units::format_duration(setting.value),
                setting.value.as_secs() + 1
            ),
        );
        None
    }

    pub(super) fn size_bytes(
        &mut self,
        key: &'static str,
        allowed: RangeInclusive<u64>,
    ) -> Option<Setting<u64>> {
        let (value, place) = self.take(key)?;
        let parsed = match &value.kind {
            ValueKind::String(text) => units::parse_size(text),
            ValueKind::I64(bytes @ 0..) => Err(format!(
                "{bytes} has no unit; write \"{}\"",
                units::format_size(bytes.unsigned_abs())
            )),
            other => Err(format!(
                "{} is not a size; write for example \"100 MiB\"",
                shown(other)
            )),
        };
        self.within(
            parsed,
            place,
            &allowed,
            units::format_size,
            "small",
            "large",
        )
    }

    /// A list of texts, or one text with commas between them (as the environment has to write it).
    pub(super) fn texts(
        &mut self,
        key: &'static str,
        count_max: usize,
    ) -> Option<Setting<Vec<String>>> {
        let (value, place) = self.take(key)?;
        let texts: Option<Vec<String>> = match value.kind {
            ValueKind::String(text) => Some(split_at_commas(&text)),
            ValueKind::Array(values) => values
                .into_iter()
                .map(|value| match value.kind {
                    ValueKind::String(text) => Some(text),
                    _ => None,
                })
                .collect(),
            _ => None,
        };
        let Some(value) = texts else {
            self.report
                .problem(place, "is not a list of texts; write [\"…\", \"…\"]");
            return None;
        };
        if value.len() > count_max {
            self.report.problem(
                place,
                format!(
                    "has {} parts; at most {count_max} are possible",
                    value.len()
                ),
            );
            return None;
        }
        Some(Setting { value, place })
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<Setting<T>> {
        let Setting { value, place } = self.text(key)?;
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == value) {
            return Some(Setting {
                value: *choice,
                place,
            });
        }
        let words: Vec<String> = choices
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        self.report.problem(
            place,
            format!(
                "{} is not possible; write {}{}",
                units::quote(&value),
                words.join(" or "),
                did_you_mean(&value, choices.iter().map(|(word, _)| *word))
            ),
        );
        None
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
                path: join(&self.path, key),
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

    fn within<T: Copy + PartialOrd>(
        &self,
        parsed: Result<T, String>,
        place: Place,
        allowed: &RangeInclusive<T>,
        format: impl Fn(T) -> String,
        below: &str,
        above: &str,
    ) -> Option<Setting<T>> {
        let message = match parsed {
            Err(message) => message,
            Ok(value) if value < *allowed.start() => format!(
                "\"{}\" is too {below}; at least \"{}\" is needed",
                format(value),
                format(*allowed.start())
            ),
            Ok(value) if value > *allowed.end() => format!(
                "\"{}\" is too {above}; at most \"{}\" is possible",
                format(value),
                format(*allowed.end())
            ),
            Ok(value) => return Some(Setting { value, place }),
        };
        self.report.problem(place, message);
        None
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
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

/// Splits at commas that stand outside of double quotes.
fn split_at_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut is_quoted = false;
    for c in text.chars() {
        if c == '"' {
            is_quoted = !is_quoted;
        }
        if c == ',' && !is_quoted {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts.iter().map(|part| part.trim().to_owned()).collect()
}
