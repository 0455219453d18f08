//! Inputs that overlap more than memory holds: sorted together with their neighbours in time,
//! written to scratch and merged from there. Compared with a stable sort of all rows.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray},
    datatypes::Int64Type,
};
use gigamerge::merge::{Dedup, Keep, MergeControl, MergeError, MergeOptions, merge_files};
use parquet::file::properties::WriterProperties;

use crate::{
    merge_files::{Lab, options},
    support::lake::next,
};

/// Time, and the place among all rows.
type Row = (i64, i64);

struct Inputs {
    lab: Lab,
    /// In the order of the inputs.
    rows: Vec<Row>,
}

/// Files of `row_counts` rows. Each has its time, somewhere in the first `spread`, and there are
/// fewer times than rows. Row groups have 1,500 rows.
fn inputs(row_counts: &[usize], spread: u64, width: u64, with_statistics: bool) -> Inputs {
    let mut lab = Lab::new();
    let mut rows: Vec<Row> = Vec::new();
    let mut state = 7;
    for (file, row_count) in row_counts.iter().enumerate() {
        let start = next(&mut state) % spread;
        let first = rows.len();
        for _ in 0..*row_count {
            let time = i64::try_from(start + next(&mut state) % width).unwrap();
            rows.push((time, i64::try_from(rows.len()).unwrap()));
        }
        lab.add(&batch(&rows[first..], file), properties(with_statistics));
    }
    Inputs { lab, rows }
}

fn properties(with_statistics: bool) -> WriterProperties {
    use parquet::file::properties::EnabledStatistics::{Chunk, None};
    WriterProperties::builder()
        .set_max_row_group_row_count(Some(1_500))
        .set_statistics_enabled(if with_statistics { Chunk } else { None })
        .build()
}

fn text_of(serial: i64) -> Option<String> {
    (serial % 7 > 0).then(|| format!("{serial:x}-{}", "text".repeat(8)))
}

fn host_of(serial: i64) -> String {
    format!("host-{}", serial % 13)
}

fn batch(rows: &[Row], file: usize) -> RecordBatch {
    let times = Int64Array::from_iter_values(rows.iter().map(|row| row.0));
    let serials = Int64Array::from_iter_values(rows.iter().map(|row| row.1));
    let texts: StringArray = rows.iter().map(|row| text_of(row.1)).collect();
    let hosts = StringArray::from_iter_values(rows.iter().map(|row| host_of(row.1)));
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("__timestamp", Arc::new(times)),
        ("serial", Arc::new(serials)),
        ("text", Arc::new(texts)),
        ("host", Arc::new(hosts)),
    ];
    // Columns stand where they like.
    let count = columns.len();
    columns.rotate_left(file % count);
    RecordBatch::try_from_iter_with_nullable(
        columns
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    )
    .unwrap()
}

/// Rows as they were read, after a look at the columns that depend on them.
fn rows_of(batches: &[RecordBatch]) -> Vec<Row> {
    let mut rows = Vec::new();
    for batch in batches {
        let numbers = |name| batch[name].as_primitive::<Int64Type>().values().to_vec();
        let (texts, hosts) = (batch["text"].as_string::<i32>(), &batch["host"]);
        let hosts = arrow::compute::cast(hosts, &arrow::datatypes::DataType::Utf8).unwrap();
        let hosts = hosts.as_string::<i32>();
        let both = numbers("__timestamp").into_iter().zip(numbers("serial"));
        for (index, row) in both.enumerate() {
            let text = texts.is_valid(index).then(|| texts.value(index).to_owned());
            assert_eq!(text, text_of(row.1));
            assert_eq!(hosts.value(index), host_of(row.1));
            rows.push(row);
        }
    }
    rows
}

fn with_budget(mib: u64) -> MergeOptions {
    MergeOptions {
        memory_budget_bytes: mib << 20,
        ..options()
    }
}

/// Merges and compares; gives the number of runs in scratch.
fn check(inputs: &Inputs, options: &MergeOptions) -> u64 {
    let report = inputs.lab.merge(options).unwrap();
    let mut expected = inputs.rows.clone();
    expected.sort_by_key(|row| row.0);
    assert!(rows_of(&inputs.lab.read()) == expected, "other rows");
    assert!(inputs.lab.scratch_is_empty());
    std::fs::remove_file(inputs.lab.output()).unwrap();
    report.spilled_run_count
}

#[test]
fn many_overlapping_inputs_come_out_as_a_stable_sort_would_put_them() {
    // Small ones that are sorted together, and large ones that are split.
    let row_counts: Vec<usize> = (0..90)
        .map(|file| if file % 9 == 0 { 40_000 } else { 4_000 })
        .collect();
    let inputs = inputs(&row_counts, 100_000, 20_000, true);
    for thread_count in [1, 2] {
        let options = MergeOptions {
            thread_count,
            ..with_budget(16)
        };
        let spilled = check(&inputs, &options);
        assert!(spilled > 3, "{spilled} runs went through scratch");
    }
    assert_eq!(check(&inputs, &with_budget(1 << 10)), 0);
}

#[test]
fn inputs_whose_range_is_unknown_come_out_as_a_stable_sort_would_put_them() {
    let inputs = inputs(&[9_000; 60], 2_000, 2_000, false);
    let spilled = check(&inputs, &with_budget(12));
    assert!(spilled > 3, "{spilled} runs went through scratch");
}

#[test]
fn more_runs_in_scratch_than_can_be_read_together_are_merged_before() {
    // About fifteen times what the piles of the first pass hold, all at the same time.
    let inputs = inputs(&[25_000; 50], 1, 5_000, true);
    let one_pass = check(&inputs, &with_budget(64));
    let spilled = check(&inputs, &with_budget(8));
    assert!(
        spilled > 30 && one_pass > 3,
        "{spilled} and {one_pass} runs"
    );
}

#[test]
fn rows_with_the_same_key_become_one_on_their_way_from_scratch() {
    for keep in [Keep::First, Keep::Last] {
        let inputs = inputs(&[8_000; 60], 10_000, 9_000, true);
        let options = MergeOptions {
            dedup: Some(Dedup {
                by: vec!["__timestamp".into()],
                keep: keep.clone(),
            }),
            ..with_budget(12)
        };
        let report = inputs.lab.merge(&options).unwrap();
        let mut expected = BTreeMap::new();
        for (time, serial) in &inputs.rows {
            match keep {
                Keep::First => drop(expected.entry(*time).or_insert(*serial)),
                _ => drop(expected.insert(*time, *serial)),
            }
        }
        assert!(report.spilled_run_count > 3);
        assert!(rows_of(&inputs.lab.read()) == expected.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn a_stop_while_scratch_is_written_or_read_leaves_nothing_behind() {
    let inputs = inputs(&[25_000; 24], 1, 5_000, true);
    let options = with_budget(8);
    let request = inputs.lab.request(&options);
    let mut cancelled_count = 0;
    for wait_ms in (0..400).step_by(25) {
        let control = MergeControl::default();
        let result = std::thread::scope(|scope| {
            let merge = scope.spawn(|| merge_files(&request, &control));
            std::thread::sleep(std::time::Duration::from_millis(wait_ms));
            control.cancel();
            merge.join().unwrap()
        });
        match result {
            Err(MergeError::Cancelled) => cancelled_count += 1,
            Ok(_) => std::fs::remove_file(inputs.lab.output()).unwrap(),
            Err(other) => panic!("{other}"),
        }
        assert!(!inputs.lab.output().exists() && inputs.lab.scratch_is_empty());
    }
    assert!(cancelled_count > 0);
    check(&inputs, &options);
}

#[test]
fn an_input_that_breaks_off_is_named_wherever_it_is_sorted() {
    let inputs = inputs(&[25_000; 24], 1, 5_000, true);
    let request = inputs.lab.request(&with_budget(8));
    let broken = request.inputs[17].clone();
    let mut bytes = std::fs::read(&broken).unwrap();
    // Pages of the middle, not the footer.
    let half = bytes.len() / 2;
    bytes[half..half + 4_000].fill(0xff);
    std::fs::write(&broken, bytes).unwrap();
    match merge_files(&request, &MergeControl::default()) {
        Err(MergeError::BadInputs(bad)) => {
            assert_eq!(bad.iter().map(|bad| bad.index).collect::<Vec<_>>(), [17]);
        }
        other => panic!("{other:?}"),
    }
    assert!(!inputs.lab.output().exists() && inputs.lab.scratch_is_empty());
}
