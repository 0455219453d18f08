//! How tables are sorted and written.

use std::collections::BTreeMap;

use crate::{
    config::{
        TableConfig, TableOverride,
        problem::{Report, did_you_mean},
        raw::{Section, Setting},
        units,
    },
    merge::{Compression, Dedup, Keep, SortColumn},
};

const OVERRIDES_MAX: usize = 1000;
const SORT_COLUMNS_MAX: usize = 32;
/// Columns of each kind that a table's settings name.
const COLUMNS_MAX: usize = 64;
const PATTERN_CHARS_MAX: usize = 400;
const TIME_COLUMN: &str = "__timestamp";
const ROW_GROUP_ROWS: usize = 122_880;

/// The settings that defaults and overrides share.
struct TableSettings {
    order_by: Option<Vec<SortColumn>>,
    time_column: Option<String>,
    compression: Option<Compression>,
    column_compression: Option<BTreeMap<String, Compression>>,
    bloom_filter_columns: Option<Vec<String>>,
    index_columns: Option<Vec<String>>,
    #[allow(clippy::option_option, reason = "not set, off and on are three things")]
    dedup: Option<Option<Dedup>>,
    row_group_rows: Option<usize>,
}

pub(super) fn check(
    mut section: Section<'_>,
    report: &Report,
) -> (TableConfig, Vec<TableOverride>) {
    let settings = settings(&mut section, report);
    let overrides: Vec<TableOverride> = section
        .sections("overrides", OVERRIDES_MAX)
        .map(|list| list.value)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|section| table_override(section, report))
        .collect();
    section.finish();
    let time_column = settings
        .time_column
        .unwrap_or_else(|| TIME_COLUMN.to_owned());
    let defaults = TableConfig {
        order_by: settings.order_by.unwrap_or_else(|| {
            vec![SortColumn {
                name: TIME_COLUMN.to_owned(),
                descending: false,
                nulls_first: false,
            }]
        }),
        time_column,
        compression: settings.compression.unwrap_or(Compression::Zstd(1)),
        column_compression: settings.column_compression.unwrap_or_default(),
        bloom_filter_columns: settings.bloom_filter_columns.unwrap_or_default(),
        index_columns: settings.index_columns.unwrap_or_default(),
        dedup: settings.dedup.flatten(),
        row_group_rows: settings.row_group_rows.unwrap_or(ROW_GROUP_ROWS),
    };
    check_dedup(
        &defaults.order_by,
        defaults.dedup.as_ref(),
        "tables",
        report,
    );
    for (index, one) in overrides.iter().enumerate() {
        // Several overrides may meet in one table; what comes of that is known when it is merged.
        let order_by = one.order_by.as_ref().unwrap_or(&defaults.order_by);
        let dedup = one.dedup.as_ref().unwrap_or(&defaults.dedup).as_ref();
        if one.order_by.is_some() || one.dedup.is_some() {
            check_dedup(
                order_by,
                dedup,
                &format!("tables.overrides[{index}]"),
                report,
            );
        }
    }
    (defaults, overrides)
}

/// Rows with the same key must lie side by side when rows are sorted.
fn check_dedup(order_by: &[SortColumn], dedup: Option<&Dedup>, section: &str, report: &Report) {
    let Some(dedup) = dedup else { return };
    for column in order_by {
        if !dedup.by.contains(&column.name) {
            report.problem(
                format!("{section}.dedup.by"),
                format!(
                    "leaves the sort column {} out, so rows with the same key may lie anywhere; add it",
                    units::quote(&column.name)
                ),
            );
        }
    }
}

fn table_override(mut section: Section<'_>, report: &Report) -> Option<TableOverride> {
    section.require("match", "\"db.table\"");
    let place = section.place();
    let pattern = section
        .text("match")
        .and_then(|pattern| match check_pattern(&pattern.value) {
            Ok(()) => Some(pattern.value),
            Err(message) => {
                report.problem(&pattern.place, message);
                None
            }
        });
    if section.is_empty() {
        report.problem(
            place,
            "changes nothing; add a setting, such as order_by or compression, or remove it",
        );
    }
    let settings = settings(&mut section, report);
    section.finish();
    Some(TableOverride {
        pattern: pattern?,
        order_by: settings.order_by,
        time_column: settings.time_column,
        compression: settings.compression,
        column_compression: settings.column_compression,
        bloom_filter_columns: settings.bloom_filter_columns,
        index_columns: settings.index_columns,
        dedup: settings.dedup,
        row_group_rows: settings.row_group_rows,
    })
}

fn settings(section: &mut Section<'_>, report: &Report) -> TableSettings {
    let order_by = section
        .texts("order_by", SORT_COLUMNS_MAX)
        .and_then(|columns| order_by(&columns, report));
    let time_column = section.text("time_column").and_then(|column| {
        if column.value.is_empty() {
            report.problem(&column.place, "is empty; write the name of a column");
            return None;
        }
        Some(column.value)
    });
    let compression = section.text("compression").and_then(|text| {
        parse_compression(&text.value)
            .map_err(|message| report.problem(&text.place, message))
            .ok()
    });
    let column_compression = section
        .texts_by_name("column_compression", COLUMNS_MAX)
        .map(|columns| column_compression(columns, report));
    let bloom_filter_columns = section
        .texts("bloom_filter_columns", COLUMNS_MAX)
        .map(|columns| column_names(&columns, report));
    let index_columns = section
        .texts("index_columns", COLUMNS_MAX)
        .map(|columns| column_names(&columns, report));
    let dedup = dedup(section, report);
    let row_group_rows = section
        .integer("row_group_rows", 100..=10_000_000)
        .and_then(|rows| usize::try_from(rows).ok());
    TableSettings {
        order_by,
        time_column,
        compression,
        column_compression,
        bloom_filter_columns,
        index_columns,
        dedup,
        row_group_rows,
    }
}

#[allow(clippy::option_option, reason = "not set, off and on are three things")]
fn dedup(section: &mut Section<'_>, report: &Report) -> Option<Option<Dedup>> {
    let is_set = section.has("dedup");
    let mut part = section.section("dedup");
    if is_set {
        part.require("by", "[\"host\", \"__timestamp\"]");
    }
    let by = part.texts("by", SORT_COLUMNS_MAX);
    let keep = part.text("keep").map(|text| {
        parse_keep(&text.value).map_err(|message| report.problem(&text.place, message))
    });
    part.finish();
    let by = column_names(&by?, report);
    let keep = keep.unwrap_or(Ok(Keep::Last)).ok()?;
    Some((!by.is_empty()).then_some(Dedup { by, keep }))
}

/// Reads `first`, `last` or `max(column)`.
pub(crate) fn parse_keep(text: &str) -> Result<Keep, String> {
    let column = text
        .strip_prefix("max(")
        .and_then(|rest| rest.strip_suffix(')'));
    match (text, column) {
        ("first", _) => Ok(Keep::First),
        ("last", _) => Ok(Keep::Last),
        (_, Some(column)) if !column.is_empty() => Ok(Keep::Max(column.to_owned())),
        _ => Err(format!(
            "{} is not possible; write \"last\", \"first\" or \"max(column)\"{}",
            units::quote(text),
            did_you_mean(text, ["last", "first", "max"])
        )),
    }
}

fn column_compression(
    columns: Vec<(String, Setting<String>)>,
    report: &Report,
) -> BTreeMap<String, Compression> {
    let parsed = columns.into_iter().filter_map(|(column, text)| {
        parse_compression(&text.value)
            .map(|compression| (column, compression))
            .map_err(|message| report.problem(&text.place, message))
            .ok()
    });
    parsed.collect()
}

/// Names of columns. Those that a table does not have do no harm: tables change.
fn column_names(columns: &Setting<Vec<String>>, report: &Report) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(columns.value.len());
    for (index, name) in columns.value.iter().enumerate() {
        let mut place = columns.place.clone();
        place.path = format!("{}[{index}]", place.path);
        if name.is_empty() {
            report.problem(place, "is empty; write the name of a column");
        } else if names.contains(name) {
            report.problem(
                place,
                format!("column {} is named twice; remove one", units::quote(name)),
            );
        } else {
            names.push(name.clone());
        }
    }
    names
}

fn check_pattern(pattern: &str) -> Result<(), String> {
    if pattern.chars().count() > PATTERN_CHARS_MAX {
        return Err(format!("is longer than {PATTERN_CHARS_MAX} characters"));
    }
    if pattern.contains([':', '/', '\\']) || pattern.chars().any(char::is_control) {
        return Err(format!(
            "{} holds a character that no table name holds",
            units::quote(pattern)
        ));
    }
    if !pattern.contains('.') && pattern != "*" {
        return Err(format!(
            "{} names no database; write \"database.table\", with * for any characters, such as {}",
            units::quote(pattern),
            units::quote(&format!("*.{pattern}"))
        ));
    }
    Ok(())
}

fn order_by(columns: &Setting<Vec<String>>, report: &Report) -> Option<Vec<SortColumn>> {
    if columns.value.is_empty() {
        report.problem(
            &columns.place,
            "is empty; name one column at least, such as [\"__timestamp\"]",
        );
        return None;
    }
    let mut parsed: Vec<SortColumn> = Vec::with_capacity(columns.value.len());
    for (index, text) in columns.value.iter().enumerate() {
        let mut place = columns.place.clone();
        place.path = format!("{}[{index}]", place.path);
        match parse_sort_column(text) {
            None => report.problem(
                place,
                format!(
                    "{} is not a sort column; write \"name\", \"name desc\" or \"name asc nulls first\" (names with spaces in double quotes)",
                    units::quote(text)
                ),
            ),
            Some(column) if parsed.iter().any(|other| other.name == column.name) => report.problem(
                place,
                format!("column {} is named twice; remove one", units::quote(&column.name)),
            ),
            Some(column) => parsed.push(column),
        }
    }
    Some(parsed)
}

/// Reads `name [asc|desc] [nulls first|last]`; nulls come last unless said otherwise.
pub(crate) fn parse_sort_column(text: &str) -> Option<SortColumn> {
    let text = text.trim();
    let (name, rest) = match text.strip_prefix('"') {
        Some(quoted) => {
            let (name, rest) = quoted.split_once('"')?;
            (name, rest)
        }
        None => text.split_once(char::is_whitespace).unwrap_or((text, "")),
    };
    let rest = rest.to_ascii_lowercase();
    let mut words = rest.split_whitespace().peekable();
    let descending = match words.peek() {
        Some(&"asc") => words.next().is_none(),
        Some(&"desc") => words.next().is_some(),
        _ => false,
    };
    let nulls_first = match (words.next(), words.next(), words.next()) {
        (None, _, _) | (Some("nulls"), Some("last"), None) => false,
        (Some("nulls"), Some("first"), None) => true,
        _ => return None,
    };
    (!name.is_empty()).then(|| SortColumn {
        name: name.to_owned(),
        descending,
        nulls_first,
    })
}

/// Reads `none`, `snappy`, `lz4`, `zstd` or `zstd(level)`.
pub(crate) fn parse_compression(text: &str) -> Result<Compression, String> {
    let word = text.trim().to_ascii_lowercase();
    match word.as_str() {
        "none" => return Ok(Compression::None),
        "snappy" => return Ok(Compression::Snappy),
        "lz4" => return Ok(Compression::Lz4),
        "zstd" => return Ok(Compression::Zstd(1)),
        _ => {}
    }
    if let Some(level) = word
        .strip_prefix("zstd(")
        .and_then(|rest| rest.strip_suffix(')'))
    {
        return match level.trim().parse() {
            Ok(level @ 1..=22) => Ok(Compression::Zstd(level)),
            _ => Err(format!(
                "{} has no level of zstd; levels go from 1 to 22, such as \"zstd(1)\"",
                units::quote(text)
            )),
        };
    }
    Err(format!(
        "{} is not a compression; write \"zstd(1)\", \"snappy\", \"lz4\" or \"none\"{}",
        units::quote(text),
        did_you_mean(&word, ["zstd", "snappy", "lz4", "none"])
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, descending: bool, nulls_first: bool) -> SortColumn {
        SortColumn {
            name: name.to_owned(),
            descending,
            nulls_first,
        }
    }

    #[test]
    fn a_sort_column_is_read_as_sql_writes_it() {
        assert_eq!(
            parse_sort_column("host"),
            Some(column("host", false, false))
        );
        assert_eq!(
            parse_sort_column(" host DESC "),
            Some(column("host", true, false))
        );
        assert_eq!(
            parse_sort_column("host asc nulls first"),
            Some(column("host", false, true))
        );
        assert_eq!(
            parse_sort_column("host nulls last"),
            Some(column("host", false, false))
        );
        assert_eq!(
            parse_sort_column("\"my host\" desc nulls first"),
            Some(column("my host", true, true))
        );
        for bad in [
            "",
            "\"\"",
            "host down",
            "host nulls",
            "host desc asc",
            "host nulls first x",
            "\"host",
        ] {
            assert_eq!(parse_sort_column(bad), None, "{bad:?}");
        }
    }
}
