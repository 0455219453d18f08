//! Looks at one file: is it there, and is it what its entry says? Blocking.

use std::{io, path::Path, time::SystemTime};

use crate::{
    config::TableConfig,
    merge::{self, MergeError, RowsProblem},
    model::IndexEntry,
    storage::{Layer, StorageError},
};

/// Memory for decoding one file.
const DEEP_BUDGET_BYTES: u64 = 32 << 20;

/// What a look at a file found.
#[derive(Debug)]
pub(super) enum Look {
    /// All is well.
    Fine,
    Missing,
    Outside(String),
    Unreadable(String),
    /// The entry as it should be, and what differs.
    Differs(Box<IndexEntry>, String),
    /// Its rows are not what its footer says.
    Rows(Vec<RowsProblem>),
}

/// Compares a file with its entry; with `deep` also its rows with its footer.
pub(super) fn look(layer: &Layer, entry: &IndexEntry, config: &TableConfig, deep: bool) -> Look {
    let file = match layer.checked_file(&entry.table, &entry.path) {
        Ok(file) => file,
        Err(StorageError::Outside { path }) => return Look::Outside(path.display().to_string()),
        Err(error) => return Look::Unreadable(error.to_string()),
    };
    match file.try_exists() {
        Ok(true) => {}
        Ok(false) => return Look::Missing,
        Err(error) => return Look::Unreadable(error.to_string()),
    }
    let told = match describe(&file, config) {
        Ok(told) => told,
        // It may have gone since.
        Err(_) if matches!(file.try_exists(), Ok(false)) => return Look::Missing,
        Err(reason) => return Look::Unreadable(reason),
    };
    let problems = differences(entry, &told);
    if !problems.is_empty() {
        let right = IndexEntry {
            size_bytes: told.size_bytes,
            row_count: told.row_count,
            min_time_ns: told.times.map_or(entry.min_time_ns, |times| times.0),
            max_time_ns: told.times.map_or(entry.max_time_ns, |times| times.1),
            ..entry.clone()
        };
        return Look::Differs(Box::new(right), problems.join("; "));
    }
    if deep {
        let options = config.merge_options(DEEP_BUDGET_BYTES);
        match merge::inspect_rows(&file, &options) {
            Ok(problems) if problems.is_empty() => {}
            Ok(problems) => return Look::Rows(problems),
            Err(error) => return Look::Unreadable(error.to_string()),
        }
    }
    Look::Fine
}

/// What a footer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) size_bytes: u64,
    pub(super) row_count: u64,
    /// Smallest and largest time; `None` where the file has no integer times.
    pub(super) times: Option<(i64, i64)>,
}

/// Reads a footer; the error is a reason.
pub(super) fn describe(file: &Path, config: &TableConfig) -> Result<Told, String> {
    let options = config.merge_options(DEEP_BUDGET_BYTES);
    let summary = merge::summarize(file, &options).map_err(|error| match error {
        MergeError::BadInputs(bad) => bad.into_iter().map(|bad| bad.reason).collect(),
        other => other.to_string(),
    })?;
    let time = summary
        .bounds
        .iter()
        .find(|bounds| bounds.column == config.time_column);
    Ok(Told {
        size_bytes: summary.size_bytes,
        row_count: summary.row_count,
        times: time.and_then(|time| time.min.as_i64().zip(time.max.as_i64())),
    })
}

fn differences(entry: &IndexEntry, told: &Told) -> Vec<String> {
    let mut problems = Vec::new();
    if entry.size_bytes != told.size_bytes {
        let (said, is) = (entry.size_bytes, told.size_bytes);
        problems.push(format!("size_bytes is {said}, the file has {is}"));
    }
    if entry.row_count != told.row_count {
        let (said, is) = (entry.row_count, told.row_count);
        problems.push(format!("row_count is {said}, the file has {is}"));
    }
    let said = (entry.min_time_ns, entry.max_time_ns);
    if let Some(is) = told.times.filter(|is| *is != said) {
        let effect = if said.0 <= is.0 && said.1 >= is.1 {
            "readers open it in vain"
        } else {
            "readers may miss rows"
        };
        problems.push(format!(
            "times are {}..{}, the file has {}..{}: {effect}",
            said.0, said.1, is.0, is.1
        ));
    }
    problems
}

/// How long ago a file's bytes or name last changed. A rename counts: writers finish elsewhere.
pub(super) fn age_s(meta: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let now_s = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let changed_s = u64::try_from(meta.ctime().max(meta.mtime())).unwrap_or(0);
    now_s.saturating_sub(changed_s)
}

/// Whether a file is gone for sure.
pub(super) fn is_gone(file: &Path) -> bool {
    matches!(
        std::fs::symlink_metadata(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound
    )
}
