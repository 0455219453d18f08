//! How commands print: tables whose columns fit, times as people read them.

use std::io::{self, BufWriter, Write};

use bytesize::ByteSize;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::model::IndexEntry;

/// Stdout could not be written.
#[derive(Debug, thiserror::Error)]
#[error("stdout cannot be written: {0}")]
pub struct PrintError(#[source] io::Error);

/// Runs `write` on a buffered stdout.
pub(super) fn print(
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), PrintError> {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        // Whoever reads has seen enough, as in `gigamerge query … | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(PrintError),
    }
}

/// Where a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Lines of cells, each column as wide as its widest cell.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    align: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(head: [(&str, Align); N]) -> Self {
        Self {
            align: head.map(|(_, align)| align),
            rows: vec![head.map(|(name, _)| name.to_owned())],
        }
    }

    pub(super) fn push(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: [usize; N] = std::array::from_fn(width);
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let cell = match self.align[column] {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                };
                line.push_str(&cell);
                line.push_str("  ");
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// What some files hold together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) files: u64,
    pub(super) rows: u64,
    pub(super) size_bytes: u64,
    /// Smallest and largest time, nanoseconds; of files with rows.
    pub(super) range_ns: Option<(i64, i64)>,
}

impl Sums {
    pub(super) fn add(&mut self, entry: &IndexEntry) {
        self.files += 1;
        self.rows = self.rows.saturating_add(entry.row_count);
        self.size_bytes = self.size_bytes.saturating_add(entry.size_bytes);
        if entry.row_count > 0 {
            let (min, max) = self
                .range_ns
                .unwrap_or((entry.min_time_ns, entry.max_time_ns));
            self.range_ns = Some((min.min(entry.min_time_ns), max.max(entry.max_time_ns)));
        }
    }

    /// Files, rows, size, first and last time as cells.
    pub(super) fn cells(&self) -> [String; 5] {
        let time = |time: Option<i64>| time.map_or_else(|| "-".to_owned(), time_text);
        [
            self.files.to_string(),
            self.rows.to_string(),
            size_text(self.size_bytes),
            time(self.range_ns.map(|range| range.0)),
            time(self.range_ns.map(|range| range.1)),
        ]
    }

    /// The same as JSON fields; times in nanoseconds, null without rows.
    pub(super) fn json(&self) -> Value {
        json!({
            "files": self.files, "row_count": self.rows, "size_bytes": self.size_bytes,
            "min_time": self.range_ns.map(|range| range.0), "max_time": self.range_ns.map(|range| range.1),
        })
    }
}

/// `12.5 MiB`.
pub(super) fn size_text(size_bytes: u64) -> String {
    ByteSize::b(size_bytes).display().iec().to_string()
}

/// RFC 3339, UTC, with as many digits of a second as are needed.
pub(super) fn time_text(time_ns: i64) -> String {
    DateTime::<Utc>::from_timestamp_nanos(time_ns).to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// An entry in the form of `metadata.json`: times as whole nanoseconds, unknown fields as they came.
pub(super) fn entry_json(entry: &IndexEntry) -> Value {
    let mut fields = entry.extra.clone();
    let known = [
        ("layer", json!(entry.layer.as_str())),
        ("database", json!(entry.table.database())),
        ("table", json!(entry.table.table())),
        ("path", json!(entry.path.as_str())),
        ("size_bytes", json!(entry.size_bytes)),
        ("row_count", json!(entry.row_count)),
        ("chunk_time", json!(entry.chunk_time_ns)),
        ("min_time", json!(entry.min_time_ns)),
        ("max_time", json!(entry.max_time_ns)),
        ("min", Value::Object(entry.min.clone())),
        ("max", Value::Object(entry.max.clone())),
        ("writer_id", json!(entry.writer.as_str())),
    ];
    fields.extend(known.map(|(key, value)| (key.to_owned(), value)));
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new([("NAME", Align::Left), ("N", Align::Right)]);
        table.push(["ü".to_owned(), "1".to_owned()]);
        table.push(["longer".to_owned(), "1000".to_owned()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "NAME       N\nü          1\nlonger  1000\n");
    }

    #[test]
    fn times_are_shown_in_utc_to_the_nanosecond() {
        assert_eq!(time_text(1_705_327_200_000_000_000), "2024-01-15T14:00:00Z");
        assert_eq!(
            time_text(1_705_327_200_000_000_001),
            "2024-01-15T14:00:00.000000001Z"
        );
        assert_eq!(time_text(i64::MIN), "1677-09-21T00:12:43.145224192Z");
    }
}
