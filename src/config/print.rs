//! The effective configuration as TOML: complete, and without secrets.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    CatalogConfig, Config, LayerConfig, LevelConfig, LogFormat, TableConfig, TableOverride,
    units::{format_duration, format_size},
};
use crate::merge::{Compression, Dedup, SortColumn};

impl Config {
    /// Every setting with its value, as a file that loads to the same configuration again,
    /// apart from passwords: `***` stands in their place.
    pub fn to_toml(&self) -> String {
        let mut out = Toml::default();
        out.section("[catalog]");
        match &self.catalog {
            CatalogConfig::Json => out.text("type", "json"),
            CatalogConfig::Redis(redis) => {
                out.text("type", "redis");
                out.text("url", &redis.url.hidden_url());
                out.text("timeout", &format_duration(redis.timeout));
                let tls = &redis.tls;
                for (key, file) in [
                    ("tls_ca", &tls.ca),
                    ("tls_cert", &tls.cert),
                    ("tls_key", &tls.key),
                ] {
                    if let Some(file) = file {
                        out.text(key, &file.to_string_lossy());
                    }
                }
                out.plain("tls_insecure", tls.insecure);
            }
        }
        for layer in &self.layers {
            out.layer(layer);
        }
        out.section("[merge]");
        out.plain("enabled", !self.levels.is_empty());
        for level in &self.levels {
            out.level(level);
        }
        out.section("[tables]");
        out.table(&self.table_defaults);
        for one in &self.table_overrides {
            out.table_override(one);
        }
        let worker = &self.worker;
        out.section("[worker]");
        out.plain("concurrency", worker.concurrency);
        out.text("memory_budget", &format_size(worker.memory_budget_bytes));
        if let Some(folder) = &worker.scratch_dir {
            out.text("scratch_dir", &folder.to_string_lossy());
        }
        if let Some(bytes) = worker.min_free_bytes {
            out.text("min_free", &format_size(bytes));
        }
        out.text("lease", &format_duration(worker.lease));
        out.text("stop_timeout", &format_duration(worker.stop_timeout));
        out.plain("max_attempts", worker.max_attempts);
        out.text(
            "janitor_interval",
            &format_duration(worker.janitor_interval),
        );
        if let Some(writers) = &worker.writers {
            out.texts(
                "writers",
                writers.iter().map(|writer| writer.as_str().to_owned()),
            );
        }
        out.section("[drops]");
        out.text("grace", &format_duration(self.drops.grace));
        out.text("interval", &format_duration(self.drops.interval));
        out.plain("max_per_second", self.drops.max_per_second);
        out.section("[log]");
        out.text("level", &self.log.level);
        out.text(
            "format",
            match self.log.format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
        );
        out.0
    }
}

#[derive(Default)]
struct Toml(String);

impl Toml {
    fn section(&mut self, header: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(header);
        self.0.push('\n');
    }

    fn plain(&mut self, key: &str, value: impl std::fmt::Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{key} = {value}");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.plain(key, quote(value));
    }

    fn texts(&mut self, key: &str, values: impl Iterator<Item = String>) {
        let values: Vec<String> = values.map(|value| quote(&value)).collect();
        self.plain(key, format_args!("[{}]", values.join(", ")));
    }

    fn layer(&mut self, layer: &LayerConfig) {
        self.section("[[layers]]");
        self.text("name", layer.name.as_str());
        self.text("type", "fs");
        self.text("url", &layer.url());
        self.plain("global", layer.is_global);
        if let Some(ttl) = layer.ttl {
            self.text("ttl", &format_duration(ttl));
        }
        if let Some(grace) = layer.grace {
            self.text("grace", &format_duration(grace));
        }
    }

    fn level(&mut self, level: &LevelConfig) {
        self.section("[[merge.levels]]");
        self.plain("iteration", level.iteration);
        self.text("timeout", &format_duration(level.timeout));
        self.text("max_size", &format_size(level.max_size_bytes));
        if let Some(schedule) = &level.schedule {
            self.text("schedule", schedule);
        }
    }

    fn compressions(&mut self, columns: &BTreeMap<String, Compression>) {
        let parts: Vec<String> = columns
            .iter()
            .map(|(column, own)| format!(" {} = {}", quote(column), quote(&compression(*own))))
            .collect();
        self.plain(
            "column_compression",
            format_args!("{{{} }}", parts.join(",")),
        );
    }

    fn dedup(&mut self, dedup: Option<&Dedup>) {
        let by: Vec<String> = dedup
            .iter()
            .flat_map(|dedup| dedup.by.iter().map(|column| quote(column)))
            .collect();
        let by = by.join(", ");
        match dedup {
            None => self.plain("dedup", "{ by = [] }"),
            Some(dedup) => {
                let keep = quote(&dedup.keep.to_string());
                self.plain("dedup", format_args!("{{ by = [{by}], keep = {keep} }}"));
            }
        }
    }

    fn table(&mut self, table: &TableConfig) {
        self.texts("order_by", table.order_by.iter().map(sort_column));
        self.text("time_column", &table.time_column);
        self.text("compression", &compression(table.compression));
        self.compressions(&table.column_compression);
        self.texts(
            "bloom_filter_columns",
            table.bloom_filter_columns.iter().cloned(),
        );
        self.texts("index_columns", table.index_columns.iter().cloned());
        self.dedup(table.dedup.as_ref());
        self.plain("row_group_rows", table.row_group_rows);
    }

    fn table_override(&mut self, one: &TableOverride) {
        self.section("[[tables.overrides]]");
        self.text("match", &one.pattern);
        if let Some(order_by) = &one.order_by {
            self.texts("order_by", order_by.iter().map(sort_column));
        }
        if let Some(column) = &one.time_column {
            self.text("time_column", column);
        }
        if let Some(value) = one.compression {
            self.text("compression", &compression(value));
        }
        if let Some(columns) = &one.column_compression {
            self.compressions(columns);
        }
        if let Some(columns) = &one.bloom_filter_columns {
            self.texts("bloom_filter_columns", columns.iter().cloned());
        }
        if let Some(columns) = &one.index_columns {
            self.texts("index_columns", columns.iter().cloned());
        }
        if let Some(dedup) = &one.dedup {
            self.dedup(dedup.as_ref());
        }
        if let Some(rows) = one.row_group_rows {
            self.plain("row_group_rows", rows);
        }
    }
}

fn sort_column(column: &SortColumn) -> String {
    let mut text = if column.name.contains(char::is_whitespace) {
        format!("\"{}\"", column.name)
    } else {
        column.name.clone()
    };
    if column.descending {
        text.push_str(" desc");
    }
    if column.nulls_first {
        text.push_str(" nulls first");
    }
    text
}

fn compression(compression: Compression) -> String {
    match compression {
        Compression::None => "none".to_owned(),
        Compression::Snappy => "snappy".to_owned(),
        Compression::Lz4 => "lz4".to_owned(),
        Compression::Zstd(level) => format!("zstd({level})"),
    }
}

/// A TOML basic string.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
