//! Outputs are compared with their inputs by `DuckDB`, which shares no code with the merge.

use std::{path::PathBuf, process::Command, sync::Arc};

use arrow::array::{
    ArrayRef, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use gigamerge::merge::{MergeOptions, SortColumn};
use parquet::file::properties::WriterProperties;

use crate::merge_files::{Lab, ascending, options};

fn compare(lab: &Lab, order: &[&str]) {
    let python = std::env::var_os("GIGAMERGE_TEST_PYTHON")
        .expect("GIGAMERGE_TEST_PYTHON is not set: run the tests through tests/run, which makes a Python with DuckDB");
    let list = lab.folder.path().join("inputs.txt");
    let lines: Vec<String> = lab
        .inputs
        .iter()
        .map(|path| format!("{}\n", path.display()))
        .collect();
    std::fs::write(&list, lines.concat()).expect("the list of inputs");
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/duckdb/check.py");
    let mut command = Command::new(python);
    command.arg(script).arg("--inputs-from").arg(list);
    for column in order {
        command.arg("--order").arg(column);
    }
    let output = command
        .arg(lab.output())
        .output()
        .expect("the checker runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    )
    .expect("a batch")
}

fn plain() -> WriterProperties {
    WriterProperties::builder()
        .set_max_row_group_row_count(Some(8124))
        .build()
}

fn times(count: i64, seed: i64) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(
        (0..count).map(|i| (i * 48_271 + seed * 7919) % 10_007),
    ))
}

#[test]
fn duckdb_finds_the_same_rows_after_overlapping_unsorted_files() {
    let mut lab = Lab::new();
    for file in 0..10 {
        let host: ArrayRef = Arc::new(
            (0..20_000)
                .map(|i| (i % 11 > 0).then(|| format!("h{}", i % 64)))
                .collect::<StringArray>(),
        );
        let value: ArrayRef = Arc::new(
            (0..20_000)
                .map(|i| (i % 7 > 0).then(|| f64::from(i * (file + 1)) / 8.0))
                .collect::<Float64Array>(),
        );
        lab.add(
            &batch(vec![
                ("host", host),
                ("__timestamp", times(20_000, file.into())),
                ("v", value),
            ]),
            plain(),
        );
    }
    lab.merge(&options()).expect("a merge");
    compare(&lab, &["__timestamp"]);
}

#[test]
fn duckdb_finds_the_same_rows_after_columns_came_and_went_and_widened() {
    let mut lab = Lab::new();
    for file in 0..9_i64 {
        let rows = 500;
        let mut columns = vec![("__timestamp", times(rows, file))];
        let integers = || (0..rows).map(|i| (i % 5 > 0).then_some(i * file));
        columns.push(match file % 3 {
            0 => (
                "mixed",
                Arc::new(integers().collect::<Int64Array>()) as ArrayRef,
            ),
            1 => (
                "mixed",
                Arc::new(
                    integers()
                        .map(|v| v.map(|v| v as f64 + 0.5))
                        .collect::<Float64Array>(),
                ),
            ),
            _ => (
                "mixed",
                Arc::new(
                    integers()
                        .map(|v| v.map(|v| v as f32 + 0.25))
                        .collect::<Float32Array>(),
                ),
            ),
        });
        if file % 2 == 0 {
            columns.push((
                "small",
                Arc::new(Int32Array::from_iter_values((0..500).map(|i| i - 250))),
            ));
        } else {
            columns.push((
                "small",
                Arc::new(Int64Array::from_iter_values((0..rows).map(|i| i << 33))),
            ));
            columns.push((
                "only_odd",
                Arc::new(StringArray::from_iter_values(
                    (0..rows).map(|i| format!("t{i}")),
                )),
            ));
        }
        columns.rotate_left(usize::try_from(file % 3).expect("small"));
        lab.add(&batch(columns), plain());
    }
    lab.add(&batch(vec![("__timestamp", times(0, 0))]), plain());
    lab.merge(&options()).expect("a merge");
    compare(&lab, &["__timestamp"]);
}

#[test]
fn duckdb_agrees_on_the_order_of_nulls_and_nan() {
    for (descending, nulls_first) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut lab = Lab::new();
        for file in 0..3 {
            let odd = |i: i32| match (i + file) % 7 {
                0 => None,
                1 => Some(f64::NAN),
                2 => Some(-0.0),
                3 => Some(0.0),
                4 => Some(f64::INFINITY),
                _ => Some(f64::from(i - 50) / 4.0),
            };
            let value: ArrayRef = Arc::new((0..100).map(odd).collect::<Float64Array>());
            lab.add(
                &batch(vec![("v", value), ("__timestamp", times(100, file.into()))]),
                plain(),
            );
        }
        let first = SortColumn {
            name: "v".into(),
            descending,
            nulls_first,
        };
        for (order_by, second) in [
            (vec![first.clone()], None),
            (vec![first, ascending("__timestamp")], Some("__timestamp")),
        ] {
            let _ = std::fs::remove_file(lab.output());
            lab.merge(&MergeOptions {
                order_by,
                ..options()
            })
            .expect("a merge");
            let flags = format!(
                "v{}{}",
                if descending { ":desc" } else { "" },
                if nulls_first { ":nulls_first" } else { "" }
            );
            compare(
                &lab,
                &[Some(flags.as_str()), second]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>(),
            );
        }
    }
}

#[test]
fn duckdb_finds_the_same_rows_after_one_and_after_two_thousand_files() {
    for (file_count, rows) in [(1, 30_000), (2000, 40)] {
        let mut lab = Lab::new();
        for file in 0..file_count {
            let value: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
            lab.add(
                &batch(vec![("__timestamp", times(rows, file)), ("v", value)]),
                plain(),
            );
        }
        lab.merge(&MergeOptions {
            memory_budget_bytes: 8 << 20,
            ..options()
        })
        .expect("a merge");
        compare(&lab, &["__timestamp"]);
    }
}

#[test]
fn duckdb_finds_the_same_rows_after_merged_files_are_merged_again() {
    let rows = 60_000;
    let mut second = Lab::new();
    // Two that overlap, with equal keys in both, and one that follows.
    for (part, shift) in [0, 0, 20_000].into_iter().enumerate() {
        let mut first = Lab::new();
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
        let keys = (0..rows).map(|i| (i * 48_271) % 10_007 + shift);
        let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(keys));
        first.add(&batch(vec![("__timestamp", keys), ("v", values)]), plain());
        first
            .merge(&MergeOptions {
                row_group_rows: 10_000,
                ..options()
            })
            .expect("a merge");
        let bytes = std::fs::read(first.output()).expect("the output");
        assert_eq!(second.add_bytes(&bytes), second.inputs[part]);
    }
    for memory_budget_bytes in [8 << 20, 256 << 20] {
        let _ = std::fs::remove_file(second.output());
        second
            .merge(&MergeOptions {
                memory_budget_bytes,
                ..options()
            })
            .expect("a merge");
        compare(&second, &["__timestamp"]);
    }
}
