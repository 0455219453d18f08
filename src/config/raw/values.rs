//! Values by their type, within their bounds.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use config::{Value, ValueKind};

use super::{Section, Setting, plain, shown};
use crate::config::{
    Secret,
    problem::{Place, did_you_mean},
    units,
};

impl Section<'_> {
    pub(in crate::config) fn text(&mut self, key: &'static str) -> Option<Setting<String>> {
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
    pub(in crate::config) fn secret(&mut self, key: &'static str) -> Option<Setting<Secret>> {
        let (value, place) = self.take(key)?;
        if let ValueKind::String(text) = value.kind {
            let value = Secret(text);
            return Some(Setting { value, place });
        }
        self.report
            .problem(place, "must be text; write it in quotes");
        None
    }

    pub(in crate::config) fn boolean(&mut self, key: &'static str) -> Option<Setting<bool>> {
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

    pub(in crate::config) fn integer(
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

    pub(in crate::config) fn duration(
        &mut self,
        key: &'static str,
        allowed: RangeInclusive<Duration>,
    ) -> Option<Setting<Duration>> {
        let (value, place) = self.take(key)?;
        let parsed = match &value.kind {
            ValueKind::String(text) => units::parse_duration(text),
            ValueKind::I64(0..) | ValueKind::Float(0.0..1e9) => Err(format!(
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
    pub(in crate::config) fn whole_seconds(
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

    pub(in crate::config) fn size_bytes(
        &mut self,
        key: &'static str,
        allowed: RangeInclusive<u64>,
    ) -> Option<Setting<u64>> {
        let (value, place) = self.take(key)?;
        let parsed = match &value.kind {
            ValueKind::String(text) => units::parse_size(text),
            ValueKind::I64(bytes @ 0..) => Err(format!(
                "{bytes} has no unit; write \"{}\"",
                units::suggest_size(bytes.unsigned_abs())
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
    pub(in crate::config) fn texts(
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

    /// Texts under names that are the user's.
    pub(in crate::config) fn texts_by_name(
        &mut self,
        key: &'static str,
        count_max: usize,
    ) -> Option<Vec<(String, Setting<String>)>> {
        let (value, place) = self.take(key)?;
        let ValueKind::Table(values) = value.kind else {
            self.report.problem(
                &place,
                format!("is not a section; write {key} = {{ name = \"…\" }}"),
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
        // In the order of names: problems come in the same order each time.
        let values: BTreeMap<String, Value> = values.into_iter().collect();
        let mut texts = Vec::with_capacity(values.len());
        for (name, value) in values {
            let place = Place {
                path: format!("{}.{}", place.path, plain(&name)),
                origin: value.origin().map(str::to_owned),
            };
            match value.kind {
                ValueKind::String(text) => texts.push((name, Setting { value: text, place })),
                other => self.report.problem(
                    place,
                    format!("{} is not text; write it in quotes", shown(&other)),
                ),
            }
        }
        Some(texts)
    }

    /// One of a few words.
    pub(in crate::config) fn choice<T: Copy>(
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
