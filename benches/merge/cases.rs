//! What is measured. Cases differ in one thing each, so that the part in question is what changes:
//! nearly all of a case named after sorting is sorting, and so on.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gigamerge::merge::{
    Compression, Dedup, Keep, MergeControl, MergeOptions, MergeRequest, SortColumn, merge_files,
    summarize,
};

use crate::rows::{Columns, Order, batch, write};

/// One case with its inputs on disk.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) rows: usize,
    folder: PathBuf,
    inputs: Vec<PathBuf>,
    options: MergeOptions,
    only_footers: bool,
}

impl Case {
    /// Does it once and gives the time; outputs are removed outside of it.
    pub(crate) fn run(&self) -> Duration {
        if self.only_footers {
            let started = Instant::now();
            for input in &self.inputs {
                let summary = summarize(input, &self.options).expect("a summary");
                std::hint::black_box(summary);
            }
            return started.elapsed();
        }
        let request = MergeRequest {
            inputs: self.inputs.clone(),
            output: self.folder.join("out"),
            scratch: self.folder.clone(),
            options: self.options.clone(),
        };
        let started = Instant::now();
        let report = merge_files(&request, &MergeControl::default()).expect("a merge");
        let time = started.elapsed();
        let rows = report.row_count + report.collapsed_row_count;
        assert_eq!(rows, self.rows as u64, "{}", self.name);
        std::fs::remove_file(&request.output).expect("the output is removed");
        time
    }
}

/// The shape of a case's inputs.
#[derive(Clone, Copy)]
struct Shape {
    files: usize,
    rows: usize,
    order: Order,
    columns: Columns,
    /// Ranges of files: the same, or one after the other.
    overlaps: bool,
    row_group_rows: usize,
}

const SHAPE: Shape = Shape {
    files: 8,
    rows: 50_000,
    order: Order::Sorted,
    columns: Columns::Keys,
    overlaps: true,
    row_group_rows: 50_000,
};

impl Shape {
    fn files(self, files: usize, rows: usize) -> Self {
        Self {
            files,
            rows,
            ..self
        }
    }

    fn of(self, columns: Columns) -> Self {
        Self { columns, ..self }
    }

    fn lying(self, order: Order) -> Self {
        Self { order, ..self }
    }
}

fn options() -> MergeOptions {
    MergeOptions {
        order_by: vec![SortColumn {
            name: "__timestamp".to_owned(),
            descending: false,
            nulls_first: false,
        }],
        compression: Compression::Snappy,
        column_compression: std::collections::BTreeMap::new(),
        bloom_filter_columns: Vec::new(),
        dedup: None,
        row_group_rows: 122_880,
        memory_budget_bytes: 256 << 20,
        thread_count: 2,
        bounds_of: vec!["__timestamp".to_owned()],
    }
}

pub(crate) fn with_budget(mib: u64) -> MergeOptions {
    MergeOptions {
        memory_budget_bytes: mib << 20,
        ..options()
    }
}

/// The cases whose names hold `filter`, each with its inputs.
pub(crate) fn all<'a>(folder: &'a Path, filter: &'a str) -> impl Iterator<Item = Case> + 'a {
    ordering()
        .into_iter()
        .chain(encoding())
        .chain(whole())
        .filter(move |(name, ..)| name.contains(filter))
        .map(move |(name, shape, options)| make(folder, name, &shape, options))
}

fn make(folder: &Path, name: &'static str, shape: &Shape, options: MergeOptions) -> Case {
    let folder = folder.join(name.replace([' ', '/'], "-"));
    std::fs::create_dir(&folder).expect("a folder of the case");
    let span: u64 = 1_000_000_000;
    let input = |(seed, file): (u64, usize)| {
        let first = if shape.overlaps {
            0
        } else {
            i64::try_from(seed * span).expect("few files")
        };
        let path = folder.join(format!("in-{file}"));
        let rows = batch(seed, shape.rows, (first, span), shape.order, shape.columns);
        write(&path, &rows, shape.order, shape.row_group_rows);
        path
    };
    Case {
        name,
        rows: shape.files * shape.rows,
        inputs: (0..).zip(0..shape.files).map(input).collect(),
        folder,
        options,
        only_footers: name.starts_with("footers"),
    }
}

fn by(names: &[&str]) -> Vec<SortColumn> {
    let column = |name: &&str| SortColumn {
        name: (*name).to_owned(),
        descending: false,
        nulls_first: false,
    };
    names.iter().map(column).collect()
}

type Spec = (&'static str, Shape, MergeOptions);

fn one_thread() -> MergeOptions {
    MergeOptions {
        thread_count: 1,
        ..options()
    }
}

/// Merging and sorting: keys and little else.
fn ordering() -> Vec<Spec> {
    let by_host = MergeOptions {
        order_by: by(&["host", "__timestamp"]),
        ..one_thread()
    };
    let tags = SHAPE.of(Columns::Tags);
    vec![
        (
            "loser tree: 2 sorted runs",
            SHAPE.files(2, 200_000),
            one_thread(),
        ),
        ("loser tree: 8 sorted runs", SHAPE, one_thread()),
        (
            "loser tree: 32 sorted runs",
            SHAPE.files(32, 12_500),
            one_thread(),
        ),
        ("loser tree: 8 runs, keys of text and time", tags, by_host),
        (
            "sort: unsorted rows",
            SHAPE.lying(Order::Unsorted),
            one_thread(),
        ),
        (
            "sort: rows as they arrive",
            SHAPE.lying(Order::Arriving),
            one_thread(),
        ),
        (
            "gather: 8 runs of tags, floats, counters",
            SHAPE.of(Columns::Usual),
            one_thread(),
        ),
    ]
}

/// One sorted file, so that its rows are only decoded and encoded.
fn encoding() -> Vec<Spec> {
    let file = Shape {
        row_group_rows: 122_880,
        ..SHAPE.files(1, 400_000)
    };
    let zstd = MergeOptions {
        compression: Compression::Zstd(1),
        ..one_thread()
    };
    let with_filter = MergeOptions {
        bloom_filter_columns: vec!["host".to_owned()],
        ..one_thread()
    };
    vec![
        ("encode: keys", file, one_thread()),
        ("encode: tags", file.of(Columns::Tags), one_thread()),
        (
            "encode: tags with a bloom filter",
            file.of(Columns::Tags),
            with_filter,
        ),
        ("encode: floats", file.of(Columns::Floats), one_thread()),
        ("encode: counters", file.of(Columns::Counters), one_thread()),
        ("encode: messages", file.of(Columns::Messages), one_thread()),
        ("encode: messages, zstd", file.of(Columns::Messages), zstd),
    ]
}

/// Whole merges, as the daemon does them.
fn whole() -> Vec<Spec> {
    let usual = SHAPE.of(Columns::Usual);
    let small = usual.files(200, 500).lying(Order::Unsorted);
    let little_memory = MergeOptions {
        memory_budget_bytes: 8 << 20,
        ..options()
    };
    let following = Shape {
        overlaps: false,
        ..usual
    };
    let copying = MergeOptions {
        row_group_rows: following.row_group_rows,
        ..options()
    };
    let unique = MergeOptions {
        dedup: Some(Dedup {
            by: vec!["__timestamp".to_owned(), "host".to_owned()],
            keep: Keep::Last,
        }),
        ..options()
    };
    vec![
        ("footers of 200 small files", small, options()),
        ("merge: 200 small files", small, options()),
        ("merge: 8 overlapping files", usual, options()),
        (
            "merge: 8 overlapping files, 8 MiB of memory",
            usual,
            little_memory,
        ),
        ("merge: 8 files that follow one another", following, copying),
        ("merge: 8 overlapping files, unique rows", usual, unique),
    ]
}
