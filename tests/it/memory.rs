//! The memory budget holds for the whole process.

use std::{fs, time::Duration};

use std::{path::Path, process::Stdio, sync::Arc};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};

use crate::support::{
    lake::{HOUR_START_NS, Lake, next, write_file},
    program::{Program, command, config_file},
};

/// What the process needs beside the budget: code, thread stacks, catalog, what the allocator has not given back.
const BESIDE_THE_BUDGET_BYTES: u64 = 96 << 20;
/// Of this, what each further merge at a time adds: buffers of libraries, one for each column, and the
/// allocator's own.
const BESIDE_EACH_MERGE_BYTES: u64 = 64 << 20;

#[test]
fn a_merge_many_times_larger_than_the_budget_stays_within_it() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    // About 500 MiB once decoded, in unsorted files that all overlap.
    for seed in 0..24 {
        lake.drop_file("cpu", seed * 60, 400_000);
    }
    let budget_bytes: u64 = 96 << 20;
    let text = format!(
        "data_dir = {:?}\n[merge]\nlevels = [{{ iteration = 1, timeout = \"1s\", max_size = \"4 GiB\" }}]\n\
         [worker]\nconcurrency = 1\nmemory_budget = \"96 MiB\"\n",
        lake.root
    );
    std::thread::sleep(Duration::from_secs(2));
    let mut program = Program::start(&["once", "--config", &config_file(folder.path(), &text)]);
    let mut peak_bytes = 0;
    while let Some(bytes) = peak_of(program.process_id()) {
        peak_bytes = bytes.max(peak_bytes);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        program.wait_for_exit(Duration::from_secs(60)).code(),
        Some(0),
        "{}",
        program.log()
    );
    assert!(program.log().contains("rows=9600000"), "{}", program.log());
    assert!(
        peak_bytes > budget_bytes / 4,
        "the peak was not seen: {peak_bytes}"
    );
    let limit_bytes = budget_bytes + BESIDE_THE_BUDGET_BYTES;
    assert!(
        peak_bytes <= limit_bytes,
        "peak {peak_bytes} is over {limit_bytes}\n{}",
        program.log()
    );
}

/// Rows of one file of a shape.
struct Shape {
    name: &'static str,
    files: u64,
    rows: u64,
    columns: u64,
    text_bytes: usize,
    is_sorted: bool,
    /// Every file has rows of the whole hour; else one file follows the other.
    overlaps: bool,
}

/// The shapes of the side-by-side bench, smaller.
const SHAPES: [Shape; 7] = [
    shape("many unsorted", 40, 10_000, 4, 12, false, true),
    shape("very many small", 500, 500, 4, 12, false, true),
    shape("sorted, all overlapping", 6, 150_000, 4, 12, true, true),
    shape("sorted, one after another", 6, 150_000, 4, 12, true, false),
    shape("columns come and go", 20, 20_000, 8, 12, false, true),
    shape("very wide", 8, 10_000, 200, 12, false, true),
    shape("long texts", 6, 30_000, 4, 1_000, false, true),
];

const fn shape(
    name: &'static str,
    files: u64,
    rows: u64,
    columns: u64,
    text_bytes: usize,
    is_sorted: bool,
    overlaps: bool,
) -> Shape {
    Shape {
        name,
        files,
        rows,
        columns,
        text_bytes,
        is_sorted,
        overlaps,
    }
}

fn write_shape(shape: &Shape, folder: &Path) -> Vec<String> {
    const HOUR_NS: u64 = 3_600_000_000_000;
    let write = |file: u64| {
        let mut state = file + 17;
        let mut times: Vec<i64> = (0..shape.rows)
            .map(|row| {
                let within = if shape.is_sorted {
                    row * (HOUR_NS / shape.rows)
                } else {
                    next(&mut state) * 1000 % HOUR_NS
                };
                let at = if shape.overlaps {
                    within
                } else {
                    (within + file * HOUR_NS) / shape.files
                };
                HOUR_START_NS + i64::try_from(at).unwrap()
            })
            .collect();
        if shape.is_sorted {
            times.sort_unstable();
        }
        let mut columns: Vec<(String, ArrayRef)> = vec![
            ("__timestamp".to_owned(), Arc::new(Int64Array::from(times))),
            (
                "text".to_owned(),
                Arc::new(StringArray::from_iter_values((0..shape.rows).map(|_| {
                    let number = next(&mut state).to_string();
                    number.repeat(shape.text_bytes / number.len() + 1)[..shape.text_bytes]
                        .to_owned()
                }))),
            ),
        ];
        for column in 2..shape.columns {
            // Some files lack some of the columns.
            if shape.columns == 8 && (column + file).is_multiple_of(3) {
                continue;
            }
            let values = (0..shape.rows).map(|_| next(&mut state) as f64 / 7.0);
            let values: ArrayRef = Arc::new(values.map(Some).collect::<Float64Array>());
            columns.push((format!("c{column}"), values));
        }
        let path = folder.join(format!("{file}.parquet"));
        write_file(&path, &RecordBatch::try_from_iter(columns).unwrap());
        path.display().to_string()
    };
    (0..shape.files).map(write).collect()
}

/// Peak resident bytes of one merge.
fn peak_of_merge(files: &[String], out: &Path, memory: &str) -> u64 {
    let mut child = command()
        .args(["merge-files", "--memory", memory, "--out"])
        .arg(out)
        .args(files)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak_bytes = 0;
    while child.try_wait().unwrap().is_none() {
        peak_bytes = peak_of(child.id()).unwrap_or(0).max(peak_bytes);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    fs::remove_file(out).unwrap();
    peak_bytes
}

#[test]
fn every_shape_stays_within_its_budget_and_a_stated_rest() {
    let mut over = Vec::new();
    for shape in &SHAPES {
        let folder = tempfile::tempdir().unwrap();
        let files = write_shape(shape, folder.path());
        for (memory, budget_bytes) in [("64 MiB", 64 << 20), ("128 MiB", 128_u64 << 20)] {
            let peak_bytes = peak_of_merge(&files, &folder.path().join("out"), memory);
            let limit_bytes = budget_bytes + BESIDE_THE_BUDGET_BYTES;
            let line = format!(
                "{}: {memory} budget, peak {} MiB",
                shape.name,
                peak_bytes >> 20
            );
            eprintln!("{line}");
            if peak_bytes > limit_bytes || peak_bytes < 4 << 20 {
                over.push(line);
            }
        }
    }
    assert!(over.is_empty(), "{over:?}");
}

#[test]
fn merges_at_the_same_time_stay_within_one_budget_together() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for (table, shape) in [
        ("wide", &SHAPES[5]),
        ("wider", &SHAPES[5]),
        ("long", &SHAPES[6]),
    ] {
        let aside = folder.path().join(table);
        fs::create_dir_all(lake.partition(table)).unwrap();
        fs::create_dir(&aside).unwrap();
        for (place, file) in write_shape(shape, &aside).into_iter().enumerate() {
            fs::rename(
                file,
                lake.partition(table).join(format!("{place}.1.parquet")),
            )
            .unwrap();
        }
    }
    let text = format!(
        "data_dir = {:?}\n[merge]\nlevels = [{{ iteration = 1, timeout = \"1s\", max_size = \"4 GiB\" }}]\n\
         [worker]\nconcurrency = 3\nmemory_budget = \"224 MiB\"\n",
        lake.root
    );
    std::thread::sleep(Duration::from_millis(2100));
    let config = config_file(folder.path(), &text);
    let mut program = Program::start(&["once", "--log-level", "debug", "--config", &config]);
    let mut peak_bytes = 0;
    while let Some(bytes) = peak_of(program.process_id()) {
        peak_bytes = bytes.max(peak_bytes);
        std::thread::sleep(Duration::from_millis(5));
    }
    let log = {
        program.wait_for_exit(Duration::from_secs(60));
        program.log()
    };
    assert_eq!(log.matches(" merged ").count(), 3, "{log}");
    let granted: Vec<u64> = log
        .split("granted_bytes=")
        .skip(1)
        .map(|text| text.split_whitespace().next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(granted.len(), 3, "{log}");
    assert!(
        granted.iter().all(|bytes| *bytes >= 64 << 20),
        "{granted:?}"
    );
    eprintln!(
        "three at a time: 224 MiB budget, peak {} MiB, granted {granted:?}",
        peak_bytes >> 20
    );
    let limit_bytes = (224 << 20)
        + (BESIDE_THE_BUDGET_BYTES - BESIDE_EACH_MERGE_BYTES)
        + 3 * BESIDE_EACH_MERGE_BYTES;
    assert!(
        peak_bytes <= limit_bytes,
        "peak {peak_bytes} is over {limit_bytes}"
    );
}

/// Peak resident bytes of a process; `None` once it has ended.
fn peak_of(process_id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process_id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}
