//! Inputs whose rows stand near their places, which are sorted row group by row group.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray},
    datatypes::Int64Type,
};
use gigamerge::merge::{MergeOptions, SortColumn};
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;

use crate::merge_files::{Lab, options};

const GROUP_ROWS: usize = 2048;

fn batch(keys: &[i64], first_id: i64) -> RecordBatch {
    let ids = (first_id..).take(keys.len());
    let texts = (0..keys.len()).map(|row| format!("message {} of {first_id}", row * 7919 % 1000));
    RecordBatch::try_from_iter([
        (
            "__timestamp",
            Arc::new(Int64Array::from(keys.to_vec())) as ArrayRef,
        ),
        ("id", Arc::new(Int64Array::from_iter_values(ids))),
        ("message", Arc::new(StringArray::from_iter_values(texts))),
    ])
    .unwrap()
}

/// Without compression and dictionaries, files of as many rows have the same layout.
fn properties() -> WriterProperties {
    WriterProperties::builder()
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_dictionary_enabled(false)
        .build()
}

fn rows(lab: &Lab) -> Vec<(i64, i64)> {
    let batches = lab.read();
    let rows = batches.iter().flat_map(|batch| {
        let keys = batch["__timestamp"].as_primitive::<Int64Type>().values();
        let ids = batch["id"].as_primitive::<Int64Type>().values();
        keys.iter().copied().zip(ids.iter().copied())
    });
    rows.collect()
}

/// Keys that grow, each up to `jitter` rows away from its place.
fn keys(start: i64, row_count: usize, step: i64, jitter: i64, seed: i64) -> Vec<i64> {
    let count = i64::try_from(row_count).unwrap();
    let near = |row: i64| row + (row * 7_919 + seed * 104_729) % (jitter + 1);
    (0..count).map(|row| start + near(row) / step).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_rows_come_in_order_and_equal_ones_in_the_order_of_inputs(
        files in proptest::collection::vec((0..30_000_i64, 4..12_usize, 0..9_000_i64, 1..20_i64), 1..5),
        descending: bool,
        threads in 1..3_usize,
        small_budget: bool,
    ) {
        let mut lab = Lab::new();
        let mut all = Vec::new();
        for (file, (start, groups, jitter, step)) in files.iter().enumerate() {
            let seed = i64::try_from(file).unwrap();
            let mut keys = keys(*start, groups * GROUP_ROWS + 100, *step, *jitter, seed);
            if descending { for key in &mut keys { *key = -*key; } }
            let first_id = seed * 1_000_000;
            all.extend(keys.iter().copied().zip(first_id..));
            lab.add(&batch(&keys, first_id), properties());
        }
        let wanted = MergeOptions {
            order_by: vec![SortColumn { name: "__timestamp".into(), descending, nulls_first: false }],
            thread_count: threads,
            memory_budget_bytes: if small_budget { 8 << 20 } else { 64 << 20 },
            ..options()
        };
        all.sort_by_key(|(key, _)| if descending { -*key } else { *key });
        let report = lab.merge(&wanted).unwrap();
        prop_assert_eq!(report.row_count, all.len() as u64);
        prop_assert!(rows(&lab) == all);
    }
}

#[test]
fn few_row_groups_are_open_together() {
    let mut lab = Lab::new();
    let keys = keys(0, 20 * GROUP_ROWS, 1, 3_000, 1);
    lab.add(&batch(&keys, 0), properties());
    let report = lab.merge(&options()).unwrap();
    // Neighbours in time are sorted together, the file as a whole would be one run.
    assert!(report.sorted_run_count >= 3, "{report:?}");
    assert!(rows(&lab).is_sorted_by_key(|(key, _)| *key));
}

#[test]
fn a_row_before_what_its_row_group_promises_comes_in_order_all_the_same() {
    let mut lab = Lab::new();
    let honest = keys(0, 16 * GROUP_ROWS, 1, 3_000, 1);
    let mut lying = honest.clone();
    // Of the tenth row group; the rows before it were written when it is seen.
    lying[10 * GROUP_ROWS + 5] = 17;
    let promising = lab.add(&batch(&honest, 0), properties());
    let path = lab.add(&batch(&lying, 0), properties());
    let (promises, mut bytes) = (
        std::fs::read(&promising).unwrap(),
        std::fs::read(&path).unwrap(),
    );
    assert_eq!(promises.len(), bytes.len());
    let footer_bytes = u32::from_le_bytes(promises[promises.len() - 8..][..4].try_into().unwrap());
    let footer = promises.len() - 8 - footer_bytes as usize;
    bytes[footer..].copy_from_slice(&promises[footer..]);
    std::fs::write(&path, bytes).unwrap();
    let report = lab.merge(&options()).unwrap();
    assert_eq!(report.row_count, 32 * GROUP_ROWS as u64);
    let mut all: Vec<(i64, i64)> = honest.into_iter().zip(0..).collect();
    all.extend(lying.into_iter().zip(0..));
    all.sort_by_key(|(key, _)| *key);
    assert_eq!(rows(&lab), all);
}
