//! `gigamerge merge-files`: one merge by hand, published as the daemon publishes.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::MergeFilesArgs;
use crate::{
    config,
    daemon::{self, DaemonError, Signal},
    merge::{
        self, Dedup, MergeControl, MergeError, MergeOptions, MergeReport, MergeRequest, SortColumn,
    },
    storage::{self, StorageError, Workspace},
};

/// Files that one command merges, at most.
const FILE_COUNT_MAX: usize = 1_000_000;
/// A merge stops between batches; a sort or a full row group is not waited for longer than this.
const STOP_TIME: Duration = Duration::from_millis(50);
/// The progress bar moves this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Characters of the bar itself.
const BAR_WIDTH: u64 = 30;

/// Why nothing was merged. Neither output nor scratch is left behind.
#[derive(Debug, thiserror::Error)]
pub enum MergeFilesError {
    /// A list of files cannot be read.
    #[error("{}: the list of files cannot be read", path.display())]
    List {
        /// The list.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No file was named.
    #[error("the lists name no file; name one at least")]
    NoFiles,
    /// Too many files were named.
    #[error("more than {FILE_COUNT_MAX} files were named; merge them in several steps")]
    TooManyFiles,
    /// A file has the name of the output.
    #[error("{}: exists already and is not overwritten; remove it or choose another --out", .0.display())]
    OutputExists(PathBuf),
    /// The folder of the output cannot be written, or the output cannot be published.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The merge failed.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// Ctrl-C cannot be listened to.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// There is no thread for the merge.
    #[error("no thread can be started for the merge")]
    Thread(#[source] io::Error),
    /// The merge panicked.
    #[error("the merge thread panicked; the inputs are kept as they were")]
    Panicked,
    /// The summary cannot be printed; the output is complete.
    #[error("stdout cannot be written")]
    Stdout(#[source] io::Error),
}

/// Reads one sort column.
pub(super) fn sort_column(text: &str) -> Result<SortColumn, String> {
    config::parse_sort_column(text).ok_or_else(|| {
        "write \"name\", \"name desc\" or \"name asc nulls first\", columns separated by commas"
            .to_owned()
    })
}

/// Merges, publishes and prints a summary. SIGTERM and Ctrl-C stop it and leave nothing behind.
pub async fn run(args: &MergeFilesArgs) -> Result<(), MergeFilesError> {
    let started = Instant::now();
    // Who names a link means what it leads to; what cannot be examined is reported as it was named.
    let inputs: Vec<PathBuf> = input_files(&args.files)?
        .into_iter()
        .map(|file| fs::canonicalize(&file).unwrap_or(file))
        .collect();
    if fs::symlink_metadata(&args.out).is_ok() {
        return Err(MergeFilesError::OutputExists(args.out.clone()));
    }
    let control = Arc::new(MergeControl::default());
    let mut signals = daemon::listen()?;
    let folder = match args.out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(StorageError::Io {
            path: folder.to_owned(),
            source: io::Error::new(io::ErrorKind::NotFound, "the folder does not exist"),
        }
        .into());
    }
    let workspace = Workspace::create(folder)?;
    let staged = workspace.dir().join("output.parquet");
    let file_count = inputs.len();
    let request = MergeRequest {
        inputs,
        output: staged.clone(),
        scratch: workspace.dir().to_owned(),
        options: MergeOptions {
            order_by: args.order_by.clone(),
            compression: args.compression,
            column_compression: BTreeMap::new(),
            bloom_filter_columns: Vec::new(),
            dedup: (!args.dedup_by.is_empty()).then(|| Dedup {
                by: args.dedup_by.clone(),
                keep: args.keep.clone(),
            }),
            row_group_rows: args.row_group_rows as usize,
            memory_budget_bytes: args.memory,
            thread_count: args.threads.into(),
            bounds_of: Vec::new(),
        },
    };
    let (send, mut merged) = tokio::sync::oneshot::channel();
    let merging = Arc::clone(&control);
    // A thread that the end of the program does not wait for.
    std::thread::Builder::new()
        .name("merge".to_owned())
        .spawn(move || send.send(merge::merge_files(&request, &merging)))
        .map_err(MergeFilesError::Thread)?;
    let shows_progress = io::stderr().is_terminal();
    let mut stop_at = None;
    let report = loop {
        tokio::select! {
            done = &mut merged => break done.map_err(|_| MergeFilesError::Panicked)?,
            Some(signal) = signals.recv(), if stop_at.is_none() => {
                if signal == Signal::Stop {
                    control.cancel();
                    stop_at = Some(tokio::time::Instant::now() + STOP_TIME);
                }
            }
            // Its files go away with their folder.
            () = tokio::time::sleep_until(stop_at.unwrap_or_else(tokio::time::Instant::now)), if stop_at.is_some() => {
                break Err(MergeError::Cancelled);
            }
            () = tokio::time::sleep(PROGRESS_INTERVAL), if shows_progress => show_progress(&control),
        }
    };
    if shows_progress {
        eprint!("\r\x1b[K");
    }
    let report = report?;
    storage::publish_file(&staged, &args.out).map_err(|error| match error {
        StorageError::Exists { path } => MergeFilesError::OutputExists(path),
        error => error.into(),
    })?;
    drop(workspace);
    let text = summary(&report, file_count, &args.out, started.elapsed());
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(MergeFilesError::Stdout(error))
        }
        _ => Ok(()),
    }
}

/// The named files and those of the named lists, in order.
fn input_files(names: &[PathBuf]) -> Result<Vec<PathBuf>, MergeFilesError> {
    let mut files = Vec::new();
    for name in names {
        match name.to_str().and_then(|text| text.strip_prefix('@')) {
            None => files.push(name.clone()),
            Some(list) => {
                let text = fs::read_to_string(list).map_err(|source| MergeFilesError::List {
                    path: list.into(),
                    source,
                })?;
                let lines = text.lines().filter(|line| !line.trim().is_empty());
                files.extend(lines.map(PathBuf::from));
            }
        }
        if files.len() > FILE_COUNT_MAX {
            return Err(MergeFilesError::TooManyFiles);
        }
    }
    if files.is_empty() {
        return Err(MergeFilesError::NoFiles);
    }
    Ok(files)
}

/// Rewrites one line of a terminal.
fn show_progress(control: &MergeControl) {
    let progress = (control.progress().1, control.rows_total());
    // A terminal that went away is no reason to stop.
    let _ = write!(io::stderr(), "\r\x1b[K{}", progress_line(progress));
}

fn progress_line((rows_done, rows_total): (u64, u64)) -> String {
    let share = |of: u64| {
        let part = u128::from(rows_done.min(rows_total)) * u128::from(of);
        usize::try_from(part / u128::from(rows_total.max(1))).unwrap_or(0)
    };
    format!(
        "[{:<width$}] {:>3} %, {rows_done} rows",
        "#".repeat(share(BAR_WIDTH)),
        share(100),
        width = usize::try_from(BAR_WIDTH).unwrap_or(0),
    )
}

fn summary(report: &MergeReport, file_count: usize, out: &Path, elapsed: Duration) -> String {
    let collapsed = match report.collapsed_row_count {
        0 => String::new(),
        count => format!(", {count} others collapsed into them"),
    };
    format!(
        "merged {file_count} files into {}\n\
         rows: {}{collapsed}\n\
         row groups: {}, {} encoded, {} copied undecoded\n\
         bytes: {} -> {}\n\
         seconds: {:.2}\n\
         strategy: {} streamed runs, {} runs sorted in memory\n\
         spilled runs: {}\n",
        out.display(),
        report.row_count,
        report.row_group_count,
        report
            .row_group_count
            .saturating_sub(report.copied_row_group_count),
        report.copied_row_group_count,
        report.input_bytes,
        report.output_bytes,
        elapsed.as_secs_f64(),
        report.streamed_run_count,
        report.sorted_run_count,
        report.spilled_run_count,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_bar_is_full_at_the_end_and_never_longer() {
        assert!(progress_line((0, 0)).contains("  0 %"));
        assert!(progress_line((5, 10)).contains(" 50 %"));
        let full = progress_line((12, 10));
        assert!(
            full.contains(&"#".repeat(30)) && full.contains("100 %"),
            "{full}"
        );
        assert!(!full.contains(&"#".repeat(31)));
    }

    #[test]
    fn lists_and_names_keep_their_order_and_an_empty_list_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list");
        fs::write(&list, "b\n\nc d\n").unwrap();
        let at = PathBuf::from(format!("@{}", list.display()));
        let files = input_files(&["a".into(), at.clone(), "e".into()]).unwrap();
        assert_eq!(files, ["a", "b", "c d", "e"].map(PathBuf::from));
        fs::write(&list, "\n").unwrap();
        assert!(matches!(input_files(&[at]), Err(MergeFilesError::NoFiles)));
        assert!(matches!(
            input_files(&["@/nowhere/list".into()]),
            Err(MergeFilesError::List { .. })
        ));
    }
}
