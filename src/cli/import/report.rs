//! What an import did, file by file where that matters, in numbers at the end.

use std::{fmt::Display, path::Path};

use indicatif::ProgressBar;

use super::{ImportError, importer::Item};
use crate::{
    cli::output::{print, size_text},
    model::IndexEntry,
};

/// Counts, and the progress bar that lines must not tear.
#[derive(Debug)]
pub(super) struct Report {
    bar: ProgressBar,
    in_place: u64,
    copied: u64,
    rows: u64,
    size_bytes: u64,
    indexed: u64,
    before: u64,
    empty: u64,
    twins: u64,
    gone: u64,
    bad: u64,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            bar: ProgressBar::hidden(),
            in_place: 0,
            copied: 0,
            rows: 0,
            size_bytes: 0,
            indexed: 0,
            before: 0,
            empty: 0,
            twins: 0,
            gone: 0,
            bad: 0,
        }
    }
}

impl Report {
    pub(super) fn start(&mut self, bar: ProgressBar) {
        self.bar = bar;
    }

    pub(super) fn advance(&self, files: usize) {
        self.bar.inc(files as u64);
    }

    /// A file that is left out.
    pub(super) fn bad(&mut self, what: &dyn Display, reason: &str) {
        self.bad += 1;
        self.bar.suspend(|| eprintln!("skipped: {what}: {reason}"));
    }

    pub(super) fn twin(&mut self, file: &Path, twin: &Path) {
        self.twins += 1;
        let (file, twin) = (file.display(), twin.display());
        self.bar.suspend(|| {
            eprintln!(
                "left out: {file}: the same bytes as {twin}, for the same partition; imported once"
            );
        });
    }

    pub(super) fn empty(&mut self) {
        self.empty += 1;
    }

    /// A file that a merge replaced, and that was deleted, while the import ran.
    pub(super) fn gone(&mut self) {
        self.gone += 1;
    }

    pub(super) fn imported_before(&mut self) {
        self.before += 1;
    }

    /// A file that the index names; `is_new` when it does so since this run.
    pub(super) fn indexed(&mut self, entry: &IndexEntry, is_new: bool) {
        if is_new {
            self.in_place += 1;
            self.add(entry);
        } else {
            self.indexed += 1;
        }
    }

    pub(super) fn registered(&mut self, item: &Item) {
        if item.source.is_some() {
            self.copied += 1;
        } else {
            self.in_place += 1;
        }
        self.add(&item.entry);
    }

    pub(super) fn would_register(&mut self, item: &Item) {
        self.registered(item);
        let path = &item.entry.path;
        let line = match &item.source {
            Some(source) => format!("would copy {} to {path}", source.file.display()),
            None => format!("would register {path}"),
        };
        self.bar.suspend(|| eprintln!("{line}"));
    }

    fn add(&mut self, entry: &IndexEntry) {
        self.rows = self.rows.saturating_add(entry.row_count);
        self.size_bytes = self.size_bytes.saturating_add(entry.size_bytes);
    }

    /// Prints the numbers; an error when a file was left out that should not have been.
    pub(super) fn finish(&self, is_dry_run: bool) -> Result<(), ImportError> {
        self.bar.finish_and_clear();
        let done = if is_dry_run {
            "would register"
        } else {
            "registered"
        };
        let mut lines = vec![format!(
            "{done}: {} files ({} in place, {} copied), {} rows, {}",
            self.in_place + self.copied,
            self.in_place,
            self.copied,
            self.rows,
            size_text(self.size_bytes)
        )];
        for (what, count) in [
            ("in the index already", self.indexed),
            ("imported before, and merged since", self.before),
            ("left out as copies of others", self.twins),
            ("left out because they have no rows", self.empty),
            ("deleted meanwhile", self.gone),
            ("skipped", self.bad),
        ] {
            if count > 0 {
                lines.push(format!("{what}: {count} files"));
            }
        }
        print(|out| lines.iter().try_for_each(|line| writeln!(out, "{line}")))?;
        match self.bad {
            0 => Ok(()),
            count => Err(ImportError::Incomplete { count }),
        }
    }
}
