//! Inputs at the edge of what a merge takes, and beyond.

use std::{
    fs::File,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, FixedSizeBinaryArray, Float64Array, Int64Array, RecordBatch,
        StringArray, TimestampMicrosecondArray, UInt64Array,
    },
    datatypes::{DataType, Field, Int64Type, Schema},
};
use gigamerge::merge::{
    MergeControl, MergeError, MergeOptions, SortColumn, merge_files, summarize,
};
use parquet::{
    arrow::arrow_reader::ParquetRecordBatchReaderBuilder,
    basic::{LogicalType, Type as PhysicalType},
    data_type::{FixedLenByteArray, FixedLenByteArrayType, Int64Type as ParquetInt64},
    file::{
        metadata::{
            KeyValue, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData,
            SortingColumn,
        },
        properties::{EnabledStatistics, WriterProperties},
        writer::SerializedFileWriter,
    },
    schema::types::Type,
};
use serde_json::json;

use crate::merge_files::{Lab, options, write};

fn plain() -> WriterProperties {
    WriterProperties::builder().build()
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    )
    .expect("a batch")
}

fn times(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn rows(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    batch(vec![("__timestamp", times(values))])
}

fn footer(path: &Path) -> ParquetMetaData {
    let file = File::open(path).expect("the output");
    ParquetMetaDataReader::new()
        .with_page_index_policy(PageIndexPolicy::Required)
        .parse_and_finish(&file)
        .expect("a footer with page indexes")
}

fn timestamps(batches: &[RecordBatch]) -> Vec<i64> {
    batches
        .iter()
        .flat_map(|batch| {
            let column = batch
                .column_by_name("__timestamp")
                .expect("the sort column")
                .clone();
            column.as_primitive::<Int64Type>().values().to_vec()
        })
        .collect()
}

#[test]
fn one_input_is_sorted() {
    let mut lab = Lab::new();
    lab.add(&rows([3, 1, 2]), plain());
    let report = lab.merge(&options()).expect("a merge");
    assert_eq!(timestamps(&lab.read()), [1, 2, 3]);
    assert_eq!(report.row_count, 3);
    assert_eq!(report.bounds.len(), 1);
    assert_eq!(
        (&report.bounds[0].min, &report.bounds[0].max),
        (&json!(1), &json!(3))
    );
    assert_eq!(
        report.output_bytes,
        lab.output().metadata().expect("output").len()
    );
}

#[test]
fn inputs_without_rows_need_no_sort_column_and_add_their_columns() {
    let mut lab = Lab::new();
    lab.add(
        &batch(vec![("other", Arc::new(StringArray::new_null(0)))]),
        plain(),
    );
    lab.add(&rows([2, 1]), plain());
    let report = lab.merge(&options()).expect("a merge");
    assert_eq!(report.row_count, 2);
    let output = lab.read();
    assert_eq!(output[0].schema().field(0).name(), "other");
    assert_eq!(output[0].column(0).null_count(), 2);
}

#[test]
fn nothing_but_inputs_without_rows_gives_an_output_without_rows() {
    let mut lab = Lab::new();
    lab.add(&rows([]), plain());
    lab.add(&rows([]), plain());
    let report = lab.merge(&options()).expect("a merge");
    assert_eq!(report.row_count, 0);
    assert!(report.bounds.is_empty());
    assert_eq!(footer(&lab.output()).file_metadata().num_rows(), 0);
}

#[test]
fn no_inputs_at_all_are_refused() {
    let lab = Lab::new();
    let error = lab.merge(&options()).expect_err("nothing to merge");
    assert!(error.to_string().contains("no inputs"), "{error}");
}

#[test]
fn two_thousand_inputs_are_merged_with_few_files_open() {
    let mut lab = Lab::new();
    for file in 0..2000_i64 {
        lab.add(
            &rows((0..50).map(|i| (i * 7919 + file * 104_729) % 100_000)),
            plain(),
        );
    }
    let folder = lab.folder.path().canonicalize().expect("a folder");
    let (is_done, most_open) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let open = std::fs::read_dir("/proc/self/fd")
                    .expect("open files")
                    .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
                    .filter(|target| target.starts_with(&folder))
                    .count();
                most_open.fetch_max(open, Ordering::Relaxed);
            }
        });
        // Too little memory to keep the files' bytes.
        let options = MergeOptions {
            memory_budget_bytes: 8 << 20,
            ..options()
        };
        let result = lab.merge(&options);
        is_done.store(true, Ordering::Relaxed);
        assert_eq!(result.expect("a merge").row_count, 100_000);
    });
    assert!(
        most_open.load(Ordering::Relaxed) <= 64,
        "{most_open:?} files were open"
    );
    let merged = timestamps(&lab.read());
    assert!(merged.is_sorted());
}

#[test]
fn types_that_no_type_holds_are_refused_by_name() {
    let mut lab = Lab::new();
    let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let number: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let one = lab.add(
        &batch(vec![("__timestamp", times([1])), ("host", text)]),
        plain(),
    );
    let two = lab.add(
        &batch(vec![("__timestamp", times([1])), ("host", number)]),
        plain(),
    );
    let error = lab.merge(&options()).expect_err("a conflict");
    assert_eq!(
        error.to_string(),
        format!(
            "column \"host\" is Utf8 in {} and Int64 in {}; no type holds both without changing values",
            one.display(),
            two.display()
        )
    );
}

#[test]
fn an_integer_that_a_float_cannot_hold_is_refused_by_name() {
    let mut lab = Lab::new();
    let exact = 1_i64 << 53;
    let float: ArrayRef = Arc::new(Float64Array::from(vec![0.5]));
    let integer = |value| -> ArrayRef { Arc::new(Int64Array::from(vec![value])) };
    let one = lab.add(
        &batch(vec![("__timestamp", times([1])), ("v", float)]),
        plain(),
    );
    lab.add(
        &batch(vec![("__timestamp", times([2])), ("v", integer(-exact))]),
        plain(),
    );
    lab.merge(&options()).expect("2^53 is exact");
    let output = lab.read();
    assert_eq!(output[0].column(1).data_type(), &DataType::Float64);

    std::fs::remove_file(lab.output()).expect("the first output");
    // Without statistics the values themselves are looked at.
    for statistics in [EnabledStatistics::Page, EnabledStatistics::None] {
        let properties = WriterProperties::builder()
            .set_statistics_enabled(statistics)
            .build();
        let three = lab.add(
            &batch(vec![("__timestamp", times([3])), ("v", integer(exact + 1))]),
            properties,
        );
        let error = lab.merge(&options()).expect_err("2^53 + 1 is not exact");
        assert_eq!(
            error.to_string(),
            format!(
                "column \"v\" is Int64 in {} and Float64 in {}; 9007199254740993 may not be exact as Float64",
                three.display(),
                one.display()
            )
        );
        lab.inputs.pop();
    }
}

#[test]
fn signed_and_unsigned_integers_take_the_type_that_holds_all() {
    let mut lab = Lab::new();
    let signed = |value| -> ArrayRef { Arc::new(Int64Array::from(vec![value])) };
    let unsigned: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX]));
    lab.add(
        &batch(vec![("__timestamp", times([1])), ("v", signed(5))]),
        plain(),
    );
    lab.add(
        &batch(vec![("__timestamp", times([2])), ("v", unsigned)]),
        plain(),
    );
    lab.merge(&options()).expect("no value is negative");
    assert_eq!(lab.read()[0].column(1).data_type(), &DataType::UInt64);
    std::fs::remove_file(lab.output()).expect("the first output");
    lab.add(
        &batch(vec![("__timestamp", times([3])), ("v", signed(-5))]),
        plain(),
    );
    let error = lab.merge(&options()).expect_err("neither type holds all");
    assert!(
        error
            .to_string()
            .contains("18446744073709551615 does not fit Int64 and -5 does not fit UInt64"),
        "{error}"
    );
}

#[test]
fn a_missing_sort_column_is_refused_by_file() {
    let mut lab = Lab::new();
    lab.add(&rows([1]), plain());
    let lacking = lab.add(&batch(vec![("time", times([1]))]), plain());
    let error = lab.merge(&options()).expect_err("no sort column");
    assert_eq!(
        error.to_string(),
        format!(
            "sort column \"__timestamp\" is missing in {}",
            lacking.display()
        )
    );
}

#[test]
fn a_sort_column_without_an_order_is_refused() {
    let mut lab = Lab::new();
    let inner: ArrayRef = times([1]);
    let nested = arrow::array::StructArray::from(vec![(
        Arc::new(Field::new("x", DataType::Int64, true)),
        inner,
    )]);
    lab.add(&batch(vec![("__timestamp", Arc::new(nested))]), plain());
    let error = lab.merge(&options()).expect_err("a struct has no order");
    assert!(matches!(error, MergeError::SortColumn { .. }), "{error}");
}

#[test]
fn every_bad_input_is_named_at_once() {
    let mut lab = Lab::new();
    let good = lab.add(&rows([1, 2, 3]), plain());
    let bytes = std::fs::read(&good).expect("the good file");
    lab.add_bytes(b"");
    lab.add_bytes(b"PAR1");
    lab.add_bytes(&bytes[..bytes.len() - 1]);
    lab.add_bytes(&bytes[..bytes.len() / 2]);
    lab.add_bytes(&[7; 5000]);
    lab.inputs.push(lab.folder.path().join("absent.parquet"));
    lab.inputs.push(lab.folder.path().to_owned());
    let error = lab.merge(&options()).expect_err("bad inputs");
    let MergeError::BadInputs(bad) = error else {
        panic!("{error}")
    };
    assert_eq!(
        bad.iter().map(|bad| bad.index).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6, 7]
    );
    assert!(
        bad.iter()
            .all(|bad| lab.inputs[bad.index] == bad.path && !bad.reason.is_empty())
    );
    assert_eq!(bad[0].reason, "it is empty (0 bytes)");
    assert_eq!(bad[6].reason, "it is not a regular file");
}

#[test]
fn damage_in_the_middle_of_a_file_is_that_files_fault() {
    let mut lab = Lab::new();
    let values = |seed: i64| rows((0..20_000).map(move |i| (i * 48_271 + seed) % 1_000_003));
    lab.add(&values(1), plain());
    let good = lab.add(&values(2), plain());
    let mut bytes = std::fs::read(&good).expect("the good file");
    bytes[4..40].fill(0xff);
    std::fs::write(&good, bytes).expect("the damaged file");
    let error = lab.merge(&options()).expect_err("damaged pages");
    let MergeError::BadInputs(bad) = error else {
        panic!("{error}")
    };
    assert_eq!(bad.iter().map(|bad| bad.index).collect::<Vec<_>>(), [1]);
}

#[test]
fn flipped_and_cut_bytes_never_panic_and_leave_nothing_behind() {
    let mut lab = Lab::new();
    let text: ArrayRef = Arc::new(StringArray::from_iter_values(
        (0..200).map(|i| format!("host-{}", i % 7)),
    ));
    let floats: ArrayRef = Arc::new(Float64Array::from_iter_values((0..200).map(f64::from)));
    let sound = batch(vec![
        ("__timestamp", times((0..200).rev())),
        ("host", text),
        ("v", floats),
    ]);
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(70))
        .set_compression(parquet::basic::Compression::SNAPPY)
        .build();
    let good = lab.add(&sound, properties);
    let bytes = std::fs::read(&good).expect("the good file");
    let victim = lab.add_bytes(&bytes);
    let mut random = fastrand::Rng::with_seed(7);
    let (mut refused, mut merged) = (0, 0);
    for round in 0..800 {
        let mut damaged = bytes.clone();
        match round % 4 {
            0 => damaged.truncate(random.usize(..bytes.len())),
            1 => {
                let (from, to) = (random.usize(..bytes.len()), random.usize(..bytes.len()));
                let length = random.usize(1..64).min(bytes.len() - from.max(to));
                damaged.copy_within(from..from + length, to);
            }
            // The footer is a small part of a file and the most fragile one.
            2 => damaged[bytes.len() - 1 - random.usize(..900)] ^= 1 << random.u8(..8),
            _ => damaged[random.usize(..bytes.len())] ^= 1 << random.u8(..8),
        }
        std::fs::write(&victim, &damaged).expect("the damaged file");
        let _ = std::fs::remove_file(lab.output());
        match lab.merge(&options()) {
            Ok(report) => {
                merged += 1;
                let rows: usize = lab.read().iter().map(RecordBatch::num_rows).sum();
                assert_eq!(report.row_count, rows as u64);
            }
            Err(MergeError::BadInputs(bad)) => {
                refused += 1;
                assert_eq!(
                    bad.iter().map(|bad| bad.index).collect::<Vec<_>>(),
                    [1],
                    "round {round}"
                );
            }
            // A damaged footer can still be a footer, of another schema.
            Err(MergeError::TypeConflict { .. } | MergeError::SortColumn { .. }) => refused += 1,
            Err(other) => panic!("round {round}: {other}"),
        }
    }
    assert!(
        refused > 200 && merged > 50,
        "{refused} refused, {merged} merged"
    );
}

#[test]
fn a_stop_comes_soon_and_leaves_nothing_behind() {
    let mut lab = Lab::new();
    for file in 0..8_i64 {
        lab.add(
            &rows((0..400_000).map(|i| (i * 48_271 + file) % 1_000_003)),
            plain(),
        );
    }
    // So little memory that runs are in scratch when the stop comes.
    let options = MergeOptions {
        memory_budget_bytes: 16 << 20,
        ..options()
    };
    for wait_ms in [0, 100, 400] {
        let control = MergeControl::default();
        let request = lab.request(&options);
        let (result, took) = std::thread::scope(|scope| {
            let merge = scope.spawn(|| merge_files(&request, &control));
            std::thread::sleep(Duration::from_millis(wait_ms));
            control.cancel();
            let asked = Instant::now();
            (merge.join().expect("no panic"), asked.elapsed())
        });
        match result {
            Err(MergeError::Cancelled) => assert!(!lab.output().exists()),
            Ok(_) => std::fs::remove_file(lab.output()).expect("it was faster than the stop"),
            Err(other) => panic!("{other}"),
        }
        assert!(took < Duration::from_secs(1), "stopping took {took:?}");
        assert!(lab.scratch_is_empty());
    }
}

#[test]
fn what_does_not_fit_into_memory_goes_through_scratch() {
    let mut lab = Lab::new();
    for file in 0..6_i64 {
        lab.add(
            &rows((0..200_000).map(|i| (i * 48_271 + file) % 1_000_003)),
            plain(),
        );
    }
    let report = lab
        .merge(&MergeOptions {
            memory_budget_bytes: 8 << 20,
            ..options()
        })
        .expect("a merge");
    assert!(
        report.spilled_run_count > 6,
        "{} runs were spilled",
        report.spilled_run_count
    );
    let merged = timestamps(&lab.read());
    assert_eq!(merged.len(), 1_200_000);
    assert!(merged.is_sorted());
    std::fs::remove_file(lab.output()).expect("the first output");
    let report = lab
        .merge(&MergeOptions {
            memory_budget_bytes: 1 << 30,
            ..options()
        })
        .expect("a merge");
    assert_eq!(report.spilled_run_count, 0);
    assert_eq!(timestamps(&lab.read()), merged);
}

#[test]
fn a_budget_that_is_too_small_is_refused() {
    let mut lab = Lab::new();
    lab.add(&rows([1]), plain());
    let error = lab
        .merge(&MergeOptions {
            memory_budget_bytes: 1 << 20,
            ..options()
        })
        .expect_err("too small");
    assert_eq!(
        error.to_string(),
        "the memory budget of 1048576 bytes is too small: a merge needs at least 8388608 bytes; raise worker.memory_budget"
    );
}

#[test]
fn an_output_that_exists_is_not_touched() {
    let mut lab = Lab::new();
    lab.add(&rows([1]), plain());
    std::fs::write(lab.output(), "precious").expect("a file in the way");
    let error =
        merge_files(&lab.request(&options()), &MergeControl::default()).expect_err("it exists");
    assert!(matches!(error, MergeError::Io { .. }), "{error}");
    assert_eq!(
        std::fs::read_to_string(lab.output()).expect("the file"),
        "precious"
    );
}

#[test]
fn the_output_says_how_it_is_sorted_and_who_made_it() {
    let mut lab = Lab::new();
    let note = |key: &str, value: &str| KeyValue::new(key.to_owned(), value.to_owned());
    for file in 0..2 {
        let notes = vec![note("owner", "us"), note("file", &file.to_string())];
        let properties = WriterProperties::builder()
            .set_key_value_metadata(Some(notes))
            .build();
        let host: ArrayRef = Arc::new(StringArray::from_iter_values(
            (0..3000).map(|i| format!("h{}", i % 5)),
        ));
        lab.add(
            &batch(vec![
                ("host", host),
                ("__timestamp", times((0..3000).rev())),
            ]),
            properties,
        );
    }
    let order_by = vec![SortColumn {
        name: "__timestamp".into(),
        descending: true,
        nulls_first: true,
    }];
    lab.merge(&MergeOptions {
        order_by,
        row_group_rows: 2500,
        ..options()
    })
    .expect("a merge");
    let footer = footer(&lab.output());
    let groups: Vec<i64> = footer
        .row_groups()
        .iter()
        .map(RowGroupMetaData::num_rows)
        .collect();
    assert_eq!(groups, [2500, 2500, 1000]);
    for group in footer.row_groups() {
        let declared = SortingColumn {
            column_idx: 1,
            descending: true,
            nulls_first: true,
        };
        assert_eq!(group.sorting_columns(), Some(&vec![declared]));
        assert!(
            group
                .columns()
                .iter()
                .all(|column| column.statistics().is_some())
        );
        assert!(
            group
                .columns()
                .iter()
                .all(|column| column.column_index_offset().is_some())
        );
        assert!(
            group
                .columns()
                .iter()
                .all(|column| column.offset_index_offset().is_some())
        );
        assert!(group.column(0).dictionary_page_offset().is_some());
    }
    let metadata = footer.file_metadata();
    assert!(
        metadata
            .created_by()
            .is_some_and(|by| by.starts_with("gigamerge version "))
    );
    let notes = metadata.key_value_metadata().expect("notes");
    assert!(notes.contains(&note("gigamerge.version", env!("CARGO_PKG_VERSION"))));
    assert!(notes.contains(&note("owner", "us")));
    assert!(notes.iter().all(|pair| pair.key != "file"));
}

#[test]
fn a_merged_file_is_known_as_sorted_from_its_footer() {
    let mut lab = Lab::new();
    let raw = lab.add(&rows((0..1000).rev()), plain());
    lab.merge(&MergeOptions {
        row_group_rows: 100,
        ..options()
    })
    .expect("a merge");
    let summary = summarize(&lab.output(), &options()).expect("a summary");
    assert!(summary.is_sorted);
    assert_eq!(summary.row_count, 1000);
    assert_eq!(
        summary.size_bytes,
        lab.output().metadata().expect("output").len()
    );
    assert_eq!(
        (&summary.bounds[0].min, &summary.bounds[0].max),
        (&json!(0), &json!(999))
    );
    assert!(!summarize(&raw, &options()).expect("a summary").is_sorted);
    let other = MergeOptions {
        order_by: vec![SortColumn {
            name: "__timestamp".into(),
            descending: true,
            nulls_first: false,
        }],
        ..options()
    };
    assert!(
        !summarize(&lab.output(), &other)
            .expect("a summary")
            .is_sorted
    );
}

#[test]
fn a_summary_reads_the_column_when_statistics_are_missing() {
    let mut lab = Lab::new();
    let properties = WriterProperties::builder()
        .set_statistics_enabled(EnabledStatistics::None)
        .build();
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![2.5, f64::NAN, -1.0]));
    let micros: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![3, 1, 2]));
    let path = lab.add(
        &batch(vec![
            ("__timestamp", times([7, 5, 6])),
            ("v", floats),
            ("t", micros),
        ]),
        properties,
    );
    let bounds_of = ["__timestamp", "v", "t", "absent"]
        .map(str::to_owned)
        .to_vec();
    let summary = summarize(
        &path,
        &MergeOptions {
            bounds_of,
            ..options()
        },
    )
    .expect("a summary");
    let found: Vec<_> = summary
        .bounds
        .iter()
        .map(|b| (b.column.as_str(), b.min.clone(), b.max.clone()))
        .collect();
    assert_eq!(
        found,
        [
            ("__timestamp", json!(5), json!(7)),
            ("v", json!(-1.0), json!(2.5)),
            ("t", json!(1000), json!(3000)),
        ]
    );
}

#[test]
fn a_file_whose_order_is_a_lie_is_sorted_all_the_same() {
    let mut lab = Lab::new();
    let declared = SortingColumn {
        column_idx: 0,
        descending: false,
        nulls_first: false,
    };
    let properties = || {
        WriterProperties::builder()
            .set_sorting_columns(Some(vec![declared.clone()]))
            .build()
    };
    // Large enough to be streamed; the disorder shows late, when rows were written already.
    let liar =
        |seed: i64| rows((0..40_000).map(move |i| if i == 39_990 { seed } else { i * 2 + seed }));
    for seed in 0..6 {
        lab.add(&liar(seed), properties());
    }
    lab.add(&rows((0..40_000).map(|i| i * 2)), properties());
    let report = lab.merge(&options()).expect("a merge");
    assert_eq!(report.row_count, 280_000);
    assert!(timestamps(&lab.read()).is_sorted());
}

#[test]
fn types_that_only_parquet_knows_pass_through() {
    let mut lab = Lab::new();
    let column = |name, physical, logical, length| {
        let builder = Type::primitive_type_builder(name, physical)
            .with_logical_type(logical)
            .with_length(length);
        Arc::new(
            builder
                .with_repetition(parquet::basic::Repetition::REQUIRED)
                .build()
                .expect("a type"),
        )
    };
    let fields = vec![
        column("__timestamp", PhysicalType::INT64, None, -1),
        column(
            "id",
            PhysicalType::FIXED_LEN_BYTE_ARRAY,
            Some(LogicalType::Uuid),
            16,
        ),
    ];
    let schema = Arc::new(
        Type::group_type_builder("schema")
            .with_fields(fields)
            .build()
            .expect("a schema"),
    );
    for file in 0..2_i64 {
        let path = lab.add_bytes(b"");
        let mut writer = SerializedFileWriter::new(
            File::create(path).expect("a file"),
            Arc::clone(&schema),
            Arc::new(plain()),
        )
        .expect("a writer");
        let mut group = writer.next_row_group().expect("a row group");
        let mut ts = group
            .next_column()
            .expect("a column")
            .expect("the first column");
        ts.typed::<ParquetInt64>()
            .write_batch(&[5 - file], None, None)
            .expect("a value");
        ts.close().expect("the column is ended");
        let mut id = group
            .next_column()
            .expect("a column")
            .expect("the second column");
        let value = FixedLenByteArray::from(vec![u8::try_from(file).expect("small"); 16]);
        id.typed::<FixedLenByteArrayType>()
            .write_batch(&[value], None, None)
            .expect("a value");
        id.close().expect("the column is ended");
        group.close().expect("the row group is ended");
        writer.close().expect("the file is ended");
    }
    lab.merge(&options()).expect("a merge");
    let footer = footer(&lab.output());
    let id = footer.file_metadata().schema_descr().column(1);
    assert_eq!(id.logical_type_ref(), Some(&LogicalType::Uuid));
    let output = lab.read();
    let ids = output[0]
        .column(1)
        .as_any()
        .downcast_ref::<FixedSizeBinaryArray>()
        .expect("fixed bytes")
        .clone();
    assert_eq!((ids.value(0), ids.value(1)), (&[1; 16][..], &[0; 16][..]));
    assert!(!output[0].schema().field(0).is_nullable());
}

#[test]
fn an_embedded_arrow_schema_is_kept_when_all_agree() {
    let mut lab = Lab::new();
    let seconds: ArrayRef = Arc::new(arrow::array::DurationSecondArray::from(vec![1, 2]));
    let views: ArrayRef = Arc::new(arrow::array::StringViewArray::from(vec!["a", "b"]));
    let fields = vec![
        Field::new("__timestamp", DataType::Int64, false),
        Field::new("d", seconds.data_type().clone(), true),
        Field::new("s", views.data_type().clone(), true),
    ];
    let schema = Arc::new(
        Schema::new(fields).with_metadata(std::collections::HashMap::from([(
            "origin".to_owned(),
            "here".to_owned(),
        )])),
    );
    let sound = RecordBatch::try_new(schema, vec![times([2, 1]), seconds, views]).expect("a batch");
    lab.add(&sound, plain());
    lab.add(&sound, plain());
    lab.merge(&options()).expect("a merge");
    let merged = lab.read()[0].schema();
    assert_eq!(
        merged.field(1).data_type(),
        sound.schema().field(1).data_type()
    );
    assert_eq!(
        merged.field(2).data_type(),
        sound.schema().field(2).data_type()
    );
    let file = File::open(lab.output()).expect("the output");
    let whole = ParquetRecordBatchReaderBuilder::try_new(file).expect("a footer");
    assert_eq!(
        whole.schema().metadata().get("origin").map(String::as_str),
        Some("here")
    );
}

#[test]
fn a_footer_that_does_not_belong_to_its_pages_is_refused() {
    let mut lab = Lab::new();
    let path = lab.add(&rows(0..10), plain());
    write(&path, &rows(0..10), plain());
    let bytes = std::fs::read(&path).expect("the file");
    // A footer that promises more rows than the pages hold.
    let longer = lab.folder.path().join("longer.parquet");
    write(&longer, &rows(0..11), plain());
    let other = std::fs::read(&longer).expect("the longer file");
    let footer_start = |bytes: &[u8]| {
        let tail: [u8; 4] = bytes[bytes.len() - 8..bytes.len() - 4]
            .try_into()
            .expect("four bytes");
        bytes.len() - 8 - u32::from_le_bytes(tail) as usize
    };
    let mut spliced = bytes[..footer_start(&bytes)].to_vec();
    spliced.extend_from_slice(&other[footer_start(&other)..]);
    std::fs::write(&path, spliced).expect("the spliced file");
    let error = lab.merge(&options()).expect_err("rows are missing");
    assert!(
        matches!(&error, MergeError::BadInputs(bad) if bad.len() == 1),
        "{error}"
    );
}
