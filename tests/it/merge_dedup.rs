//! Rows with the same key become one, whatever the order of the table and wherever the rows lie:
//! compared with a model that looks at all rows at once.

use std::{cmp::Ordering, fs, sync::Arc, time::Duration};

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use gigamerge::merge::{Dedup, Keep, MergeError, MergeOptions, SortColumn, summarize};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use proptest::prelude::*;

use crate::{
    merge_files::{Lab, ascending, options},
    support::{
        lake::{HOUR_START_NS, Lake, write_file},
        program::{config_file, run},
    },
};

#[derive(Debug, Clone)]
struct Row {
    time: Option<i64>,
    host: Option<u8>,
    load: Option<f64>,
    id: i64,
}

#[derive(Debug, Clone)]
struct FileSpec {
    rows: Vec<(Option<i64>, Option<u8>, Option<f64>)>,
    /// Tables drift: some files know no hosts.
    has_host: bool,
    is_sorted: bool,
}

fn file_spec(rows: std::ops::Range<usize>) -> impl Strategy<Value = FileSpec> {
    let load = prop_oneof![
        Just(None),
        Just(Some(f64::NAN)),
        Just(Some(0.0)),
        Just(Some(-0.0)),
        (-2..3_i8).prop_map(|load| Some(f64::from(load))),
    ];
    let row = (
        prop::option::weighted(0.9, 0..12_i64),
        prop::option::weighted(0.8, 0..3_u8),
        load,
    );
    (
        prop::collection::vec(row, rows),
        prop::bool::weighted(0.8),
        any::<bool>(),
    )
        .prop_map(|(rows, has_host, is_sorted)| FileSpec {
            rows,
            has_host,
            is_sorted,
        })
}

/// The rows of a file, as the model sees them and as they are written.
fn rows_of(spec: &FileSpec, file: usize) -> Vec<Row> {
    let mut rows = spec.rows.clone();
    if spec.is_sorted {
        rows.sort_by_key(|row| row.0.unwrap_or(i64::MAX));
    }
    let first_id = i64::try_from(file).unwrap() * 1_000_000;
    let row = |((time, host, load), id)| Row {
        time,
        host: if spec.has_host { host } else { None },
        load,
        id,
    };
    rows.into_iter().zip(first_id..).map(row).collect()
}

fn batch(rows: &[Row], has_host: bool, padding: usize) -> RecordBatch {
    let times: Int64Array = rows.iter().map(|row| row.time).collect();
    let loads: Float64Array = rows.iter().map(|row| row.load).collect();
    let ids = Int64Array::from_iter_values(rows.iter().map(|row| row.id));
    let hosts: StringArray = rows
        .iter()
        .map(|row| row.host.map(|host| format!("host-{host}")))
        .collect();
    let texts = StringArray::from_iter_values(
        rows.iter()
            .map(|row| format!("{}{}", row.id, "x".repeat(padding))),
    );
    let mut columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("id", Arc::new(ids), true),
        ("__timestamp", Arc::new(times), true),
        ("load", Arc::new(loads), true),
        ("text", Arc::new(texts), true),
    ];
    if has_host {
        columns.push(("host", Arc::new(hosts), true));
    }
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

/// NaN is equal to itself and above all numbers, -0 is 0.
fn float_order(left: f64, right: f64) -> Ordering {
    match (left.is_nan(), right.is_nan()) {
        (false, false) => left.partial_cmp(&right).unwrap(),
        (left, right) => left.cmp(&right),
    }
}

fn compare(left: &Row, right: &Row, column: &SortColumn) -> Ordering {
    fn nulls<T: Copy>(
        (left, right): (Option<T>, Option<T>),
        column: &SortColumn,
        order: impl Fn(T, T) -> Ordering,
    ) -> Ordering {
        match (left, right) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) if column.nulls_first => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) if column.nulls_first => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(left), Some(right)) if column.descending => order(right, left),
            (Some(left), Some(right)) => order(left, right),
        }
    }
    match column.name.as_str() {
        "__timestamp" => nulls((left.time, right.time), column, |a, b| a.cmp(&b)),
        "host" => nulls((left.host, right.host), column, |a, b| a.cmp(&b)),
        "load" => nulls((left.load, right.load), column, float_order),
        // No file has it.
        _ => Ordering::Equal,
    }
}

/// The ids that stay, in order.
fn model(rows: &[Row], order_by: &[SortColumn], dedup: &Dedup) -> Vec<i64> {
    let mut order = order_by.to_vec();
    let others = dedup
        .by
        .iter()
        .filter(|name| !order_by.iter().any(|sort| sort.name == **name));
    order.extend(others.map(|name| ascending(name)));
    let key_order = |left: &Row, right: &Row| {
        let columns = order.iter().map(|column| compare(left, right, column));
        columns.fold(Ordering::Equal, Ordering::then)
    };
    let mut stays: Vec<Row> = Vec::new();
    for row in rows {
        let same = stays
            .iter()
            .position(|other| key_order(other, row) == Ordering::Equal);
        let Some(place) = same else {
            stays.push(row.clone());
            continue;
        };
        let largest = SortColumn {
            nulls_first: true,
            ..ascending("load")
        };
        let replaces = match &dedup.keep {
            Keep::First => false,
            Keep::Max(column) if column == "load" => {
                compare(&stays[place], row, &largest) != Ordering::Greater
            }
            Keep::Last | Keep::Max(_) => true,
        };
        if replaces {
            stays[place] = row.clone();
        }
    }
    stays.sort_by(key_order);
    stays.iter().map(|row| row.id).collect()
}

fn ids(batches: &[RecordBatch]) -> Vec<i64> {
    let of = |batch: &RecordBatch| batch["id"].as_primitive::<Int64Type>().values().to_vec();
    batches.iter().flat_map(of).collect()
}

fn check(specs: &[FileSpec], options: &MergeOptions, padding: usize) -> Result<u64, TestCaseError> {
    let mut lab = Lab::new();
    let mut all = Vec::new();
    for (file, spec) in specs.iter().enumerate() {
        let rows = rows_of(spec, file);
        // The sort columns must be there.
        let sorts_by_host = options.order_by.iter().any(|sort| sort.name == "host");
        let batch = batch(&rows, spec.has_host || sorts_by_host, padding);
        lab.add(&batch, WriterProperties::default());
        all.extend(rows);
    }
    let report = lab
        .merge(options)
        .map_err(|e| TestCaseError::fail(e.to_string()))?;
    let dedup = options.dedup.as_ref().unwrap();
    let expected = model(&all, &options.order_by, dedup);
    prop_assert_eq!(ids(&lab.read()), &expected[..]);
    prop_assert_eq!(report.row_count, expected.len() as u64);
    prop_assert_eq!(
        report.collapsed_row_count,
        (all.len() - expected.len()) as u64
    );
    prop_assert_eq!(report.copied_row_group_count, 0);
    // Once unique, the file needs no merge (of several row groups that cannot always be seen);
    // and merging it again changes nothing.
    if report.row_group_count == 1 {
        prop_assert!(summarize(&lab.output(), options).unwrap().is_sorted);
    }
    let mut again = Lab::new();
    again.add_bytes(&fs::read(lab.output()).unwrap());
    let second = again.merge(options).unwrap();
    prop_assert_eq!(second.collapsed_row_count, 0);
    prop_assert_eq!(ids(&again.read()), expected);
    Ok(report.spilled_run_count)
}

fn settings() -> impl Strategy<Value = (Vec<SortColumn>, Dedup)> {
    let column = |name: &str, descending, nulls_first| SortColumn {
        name: name.to_owned(),
        descending,
        nulls_first,
    };
    let order_by = prop_oneof![
        3 => Just(vec![ascending("__timestamp")]),
        1 => Just(vec![column("__timestamp", true, true)]),
        1 => Just(vec![column("host", true, false), ascending("__timestamp")]),
        1 => Just(vec![column("load", false, true)]),
    ];
    let more = prop::sample::subsequence(vec!["host", "load", "long gone"], 0..3);
    let keep = prop_oneof![
        Just(Keep::First),
        Just(Keep::Last),
        Just(Keep::Max("load".to_owned())),
        Just(Keep::Max("long gone".to_owned())),
    ];
    (order_by, more, keep).prop_map(|(order_by, more, keep)| {
        let mut by: Vec<String> = more.into_iter().map(str::to_owned).collect();
        for sort in &order_by {
            if !by.contains(&sort.name) {
                by.push(sort.name.clone());
            }
        }
        (order_by, Dedup { by, keep })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_row_of_each_key_stays_in_any_order_of_the_table(
        specs in prop::collection::vec(file_spec(0..60), 1..5),
        (order_by, dedup) in settings(),
    ) {
        check(&specs, &MergeOptions { order_by, dedup: Some(dedup), ..options() }, 0)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_row_of_each_key_stays_when_memory_holds_few_of_them(
        specs in prop::collection::vec(file_spec(150..200), 4..6),
        (order_by, dedup) in settings(),
    ) {
        let options = MergeOptions {
            order_by,
            dedup: Some(dedup),
            memory_budget_bytes: 8 << 20,
            ..options()
        };
        prop_assert!(check(&specs, &options, 20_000)? > 0);
    }
}

fn keeping(by: &[&str], keep: Keep) -> MergeOptions {
    let by = by.iter().map(|name| (*name).to_owned()).collect();
    MergeOptions {
        dedup: Some(Dedup { by, keep }),
        ..options()
    }
}

fn rows(times: &[i64]) -> Vec<Row> {
    let row = |(&time, id)| Row {
        time: Some(time),
        host: Some(0),
        load: Some(0.0),
        id,
    };
    times.iter().zip(0..).map(row).collect()
}

#[test]
fn a_key_without_a_sort_column_is_refused_and_names_it() {
    let mut lab = Lab::new();
    lab.add(&batch(&rows(&[1, 2]), true, 0), WriterProperties::default());
    match lab.merge(&keeping(&["host"], Keep::Last)) {
        Err(error @ MergeError::DedupKey { .. }) => {
            assert!(error.to_string().contains("\"__timestamp\""), "{error}");
        }
        other => panic!("{other:?}"),
    }
    match lab.merge(&keeping(&["__timestamp"], Keep::Max("list".into()))) {
        Ok(report) => assert_eq!(report.row_count, 2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_that_span_batches_and_row_groups_become_one_row() {
    let mut lab = Lab::new();
    let times: Vec<i64> = (0..30_000).map(|row| row / 10_000).collect();
    for _ in 0..2 {
        lab.add(&batch(&rows(&times), true, 0), WriterProperties::default());
    }
    for (keep, expected) in [
        (Keep::First, [0, 10_000, 20_000]),
        (Keep::Last, [9999, 19_999, 29_999]),
    ] {
        let report = lab.merge(&keeping(&["__timestamp"], keep)).unwrap();
        assert_eq!((report.row_count, report.collapsed_row_count), (3, 59_997));
        assert_eq!(ids(&lab.read()), expected);
        fs::remove_file(lab.output()).unwrap();
    }
}

#[test]
fn only_our_own_note_of_the_same_key_says_that_rows_are_unique() {
    let mut lab = Lab::new();
    lab.add(
        &batch(&rows(&[1, 1, 2]), true, 0),
        WriterProperties::default(),
    );
    let plain = options();
    let last = keeping(&["host", "__timestamp"], Keep::Last);
    lab.merge(&plain).unwrap();
    let is_sorted = |options: &MergeOptions| summarize(&lab.output(), options).unwrap().is_sorted;
    assert!(is_sorted(&plain) && !is_sorted(&last));
    fs::remove_file(lab.output()).unwrap();
    lab.merge(&last).unwrap();
    assert!(is_sorted(&last) && is_sorted(&plain));
    assert!(is_sorted(&keeping(&["__timestamp", "host"], Keep::Last)));
    assert!(!is_sorted(&keeping(&["__timestamp", "host"], Keep::First)));
    assert!(!is_sorted(&keeping(&["__timestamp"], Keep::Last)));

    // A foreign program that copies notes may have added rows.
    let foreign = lab.folder.path().join("foreign.parquet");
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(
        fs::File::open(lab.output()).unwrap(),
    )
    .unwrap();
    let file = reader.metadata().file_metadata().clone();
    let sorting = reader.metadata().row_group(0).sorting_columns().cloned();
    let properties = WriterProperties::builder()
        .set_key_value_metadata(file.key_value_metadata().cloned())
        .set_sorting_columns(sorting)
        .build();
    let rows = &lab.read()[0];
    let sink = fs::File::create(&foreign).unwrap();
    let mut writer = ArrowWriter::try_new(sink, rows.schema(), Some(properties)).unwrap();
    writer.write(rows).unwrap();
    writer.close().unwrap();
    assert!(summarize(&foreign, &plain).unwrap().is_sorted);
    assert!(!summarize(&foreign, &last).unwrap().is_sorted);
}

#[test]
fn the_daemon_and_the_command_count_what_collapsed() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    let partition = lake.partition("cpu");
    fs::create_dir_all(&partition).unwrap();
    let mut names = Vec::new();
    for file in 0..2 {
        let times: Vec<i64> = (0..50).map(|row| HOUR_START_NS + row / 2 + file).collect();
        let path = partition.join(format!("{file}.1.parquet"));
        write_file(&path, &batch(&rows(&times), true, 0));
        names.push(path.display().to_string());
    }
    let out = folder.path().join("out.parquet");
    let mut arguments = vec!["merge-files", "--out", out.to_str().unwrap(), "--dedup-by"];
    arguments.extend(["host,__timestamp", "--keep", "max(id)"]);
    arguments.extend(names.iter().map(String::as_str));
    let (code, stdout, stderr) = run(&arguments);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("rows: 26, 74 others"), "{stdout}");

    let config = format!(
        "data_dir = {:?}\n[tables]\ndedup = {{ by = [\"host\", \"__timestamp\"] }}\n\
         [merge]\nlevels = [{{ iteration = 1, timeout = \"1s\", max_size = \"1 MiB\" }}]\n",
        lake.root
    );
    let config = config_file(folder.path(), &config);
    std::thread::sleep(Duration::from_millis(2100));
    let (code, _, log) = run(&["once", "--config", &config]);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("rows=26 rows_collapsed=74"), "{log}");
    let metadata = fs::read(partition.join("metadata.json")).unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&metadata).unwrap();
    assert_eq!(metadata["row_count"], 26);
    let (code, stdout, log) = run(&["verify", "--deep", "--config", &config]);
    assert_eq!(code, 0, "{stdout}{log}");
}
