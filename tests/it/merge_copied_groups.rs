//! Row groups that are copied undecoded, alone and beside decoded ones.

use std::{fs::File, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray},
    datatypes::Int64Type,
};
use gigamerge::merge::{Compression, MergeError, MergeOptions, SortColumn};
use parquet::{
    basic::Compression as Codec,
    file::{
        metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader},
        properties::{EnabledStatistics, WriterProperties},
    },
};
use proptest::prelude::*;

use crate::merge_files::{Lab, options};

fn batch(keys: &[Option<i64>], first_id: i64) -> RecordBatch {
    let ids = (first_id..).take(keys.len());
    let tags: StringArray = keys
        .iter()
        .enumerate()
        .map(|(row, _)| (row % 5 != 4).then(|| format!("tag-{}", row % 3)))
        .collect();
    RecordBatch::try_from_iter_with_nullable([
        (
            "__timestamp",
            Arc::new(keys.iter().copied().collect::<Int64Array>()) as ArrayRef,
            true,
        ),
        ("id", Arc::new(Int64Array::from_iter_values(ids)), true),
        ("tag", Arc::new(tags), true),
    ])
    .unwrap()
}

fn properties(row_group_rows: usize) -> WriterProperties {
    WriterProperties::builder()
        .set_max_row_group_row_count(Some(row_group_rows))
        .set_compression(Codec::SNAPPY)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_bloom_filter_enabled(true)
        .build()
}

fn wanted(row_group_rows: usize) -> MergeOptions {
    MergeOptions {
        row_group_rows,
        compression: Compression::Snappy,
        ..options()
    }
}

fn range(keys: std::ops::Range<i64>) -> Vec<Option<i64>> {
    keys.map(Some).collect()
}

/// Keys and ids of the output.
fn rows(lab: &Lab) -> Vec<(Option<i64>, i64)> {
    lab.read()
        .iter()
        .flat_map(|batch| {
            let keys = batch["__timestamp"].as_primitive::<Int64Type>().clone();
            let ids = batch["id"].as_primitive::<Int64Type>().clone();
            (0..batch.num_rows())
                .map(move |row| (keys.is_valid(row).then(|| keys.value(row)), ids.value(row)))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn footer(lab: &Lab) -> ParquetMetaData {
    ParquetMetaDataReader::new()
        .with_page_index_policy(PageIndexPolicy::Required)
        .parse_and_finish(&File::open(lab.output()).unwrap())
        .unwrap()
}

#[test]
fn files_that_follow_one_another_are_copied_with_page_indexes_and_bloom_filters() {
    let mut lab = Lab::new();
    lab.add(&batch(&range(200..300), 0), properties(50));
    lab.add(&batch(&range(0..100), 100), properties(50));
    let report = lab.merge(&wanted(50)).unwrap();
    assert_eq!(report.copied_row_group_count, 4);
    assert_eq!(report.row_count, 200);
    assert_eq!(
        (report.bounds[0].min.as_i64(), report.bounds[0].max.as_i64()),
        (Some(0), Some(299))
    );
    let expected: Vec<_> = (0..100)
        .map(|i| (Some(i), 100 + i))
        .chain((200..300).map(|i| (Some(i), i - 200)))
        .collect();
    assert_eq!(rows(&lab), expected);
    let footer = footer(&lab);
    for (index, group) in footer.row_groups().iter().enumerate() {
        assert_eq!(group.num_rows(), 50);
        assert!(group.sorting_columns().is_some());
        let pages = footer.page_index_for_row_group(index);
        for column in 0..3 {
            assert!(group.column(column).bloom_filter_offset().is_some());
            assert!(pages.column_index(column).is_some());
            let first = pages.offset_index(column).unwrap().page_locations()[0].offset;
            assert_eq!(first, group.column(column).data_page_offset());
        }
    }
}

#[test]
fn what_was_copied_is_copied_again() {
    let mut lab = Lab::new();
    lab.add(&batch(&range(0..100), 0), properties(50));
    lab.merge(&wanted(50)).unwrap();
    let mut again = Lab::new();
    again.add_bytes(&std::fs::read(lab.output()).unwrap());
    let report = again.merge(&wanted(50)).unwrap();
    assert_eq!(report.copied_row_group_count, 2);
    assert_eq!(rows(&again), rows(&lab));
}

#[test]
fn a_row_group_whose_rows_are_out_of_order_is_decoded() {
    let mut keys = range(0..50);
    keys.swap(20, 30);
    let mut lab = Lab::new();
    lab.add(&batch(&keys, 0), properties(50));
    lab.add(&batch(&range(100..150), 50), properties(50));
    let report = lab.merge(&wanted(50)).unwrap();
    assert_eq!(report.copied_row_group_count, 1);
    assert!(rows(&lab).is_sorted_by_key(|(key, _)| *key));
}

#[test]
fn rows_of_equal_keys_around_a_copied_row_group_keep_the_order_of_inputs() {
    let mut lab = Lab::new();
    lab.add(&batch(&range(50..100), 0), properties(50));
    lab.add(&batch(&range(0..51), 1000), properties(51));
    lab.add(&batch(&range(99..140), 2000), properties(50));
    lab.merge(&wanted(51)).unwrap();
    let mut expected: Vec<_> = (0..50)
        .map(|i| (Some(50 + i), i))
        .chain((0..51).map(|i| (Some(i), 1000 + i)))
        .chain((0..41).map(|i| (Some(99 + i), 2000 + i)))
        .collect();
    expected.sort_by_key(|(key, _)| *key);
    assert_eq!(rows(&lab), expected);
}

#[test]
fn small_row_groups_are_encoded_together_instead_of_copied() {
    let mut lab = Lab::new();
    for file in 0..10 {
        lab.add(
            &batch(&range(file * 100..file * 100 + 40), file * 40),
            properties(8),
        );
    }
    let report = lab.merge(&wanted(100)).unwrap();
    assert_eq!(report.copied_row_group_count, 0);
    let footer = footer(&lab);
    let sizes: Vec<i64> = footer
        .row_groups()
        .iter()
        .map(parquet::file::metadata::RowGroupMetaData::num_rows)
        .collect();
    assert_eq!(sizes, [100, 100, 100, 100]);
}

#[test]
fn another_compression_or_another_column_is_never_copied() {
    let mut lab = Lab::new();
    lab.add(&batch(&range(0..50), 0), properties(50));
    let zstd = MergeOptions {
        compression: Compression::Zstd(1),
        ..wanted(50)
    };
    assert_eq!(lab.merge(&zstd).unwrap().copied_row_group_count, 0);
    std::fs::remove_file(lab.output()).unwrap();
    let more = RecordBatch::try_from_iter([
        (
            "__timestamp",
            Arc::new(Int64Array::from(vec![70])) as ArrayRef,
        ),
        ("more", Arc::new(Int64Array::from(vec![1]))),
    ]);
    lab.add(&more.unwrap(), properties(50));
    assert_eq!(lab.merge(&wanted(50)).unwrap().copied_row_group_count, 0);
}

#[test]
fn a_row_group_with_a_damaged_page_header_is_never_published() {
    let mut lab = Lab::new();
    let path = lab.add(&batch(&range(0..50), 0), properties(50));
    let metadata = ParquetMetaDataReader::new()
        .parse_and_finish(&File::open(&path).unwrap())
        .unwrap();
    let id_page = usize::try_from(metadata.row_group(0).column(1).data_page_offset()).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[id_page..id_page + 8].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    lab.add(&batch(&range(100..150), 50), properties(50));
    match lab.merge(&wanted(50)) {
        Err(MergeError::BadInputs(bad)) => assert_eq!(bad[0].path, path),
        other => panic!("{other:?}"),
    }
}

/// One file: first key, steps between keys, row group size, rows swapped, a null key.
type Spec = (i64, Vec<u8>, usize, bool, bool);

fn spec() -> impl Strategy<Value = Spec> {
    (
        0..40_i64,
        proptest::collection::vec(0..3_u8, 1..60),
        1..30_usize,
        proptest::bool::weighted(0.1),
        proptest::bool::weighted(0.1),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn copied_and_decoded_rows_together_are_all_rows_in_order(
        specs in proptest::collection::vec(spec(), 1..6),
        row_group_rows in 1..40_usize,
        descending: bool,
        nulls_first: bool,
        spread in 1..6_i64,
        threads in 1..3_usize,
    ) {
        let mut lab = Lab::new();
        let mut all = Vec::new();
        for (file, (start, steps, group_rows, is_swapped, has_null)) in specs.iter().enumerate() {
            let mut key = start * spread * 10;
            let mut keys: Vec<Option<i64>> = steps.iter().map(|step| { key += i64::from(*step); Some(key) }).collect();
            if descending { keys.reverse(); }
            if *is_swapped { let last = keys.len() - 1; keys.swap(0, last); }
            if *has_null { let middle = keys.len() / 2; keys[middle] = None; }
            let first_id = i64::try_from(file).unwrap() * 1000;
            all.extend(keys.iter().copied().zip(first_id..));
            lab.add(&batch(&keys, first_id), properties(*group_rows));
        }
        let wanted = MergeOptions {
            order_by: vec![SortColumn { name: "__timestamp".into(), descending, nulls_first }],
            thread_count: threads,
            ..wanted(row_group_rows)
        };
        all.sort_by(|(a, _), (b, _)| match (a, b) {
            (Some(a), Some(b)) if descending => b.cmp(a),
            (Some(a), Some(b)) => a.cmp(b),
            (None, None) => std::cmp::Ordering::Equal,
            (a, _) => if a.is_none() == nulls_first { std::cmp::Ordering::Less } else { std::cmp::Ordering::Greater },
        });
        let report = lab.merge(&wanted).unwrap();
        prop_assert_eq!(report.row_count, all.len() as u64);
        prop_assert_eq!(&rows(&lab), &all);
        let keys = || all.iter().filter_map(|(key, _)| *key);
        prop_assert_eq!(report.bounds.first().map(|bounds| (bounds.min.as_i64(), bounds.max.as_i64())), keys().min().map(|_| (keys().min(), keys().max())));
        // Copying leaves small row groups only while the mean is half of the wanted size.
        let footer = footer(&lab);
        let groups = footer.row_groups().len();
        prop_assert!(groups < 3 || all.len() * 2 + 2 * row_group_rows >= groups * row_group_rows, "{} rows in {} groups of {}", all.len(), groups, row_group_rows);
        prop_assert!(footer.row_groups().iter().all(|group| group.num_rows() <= i64::try_from(row_group_rows).unwrap()));
    }
}

/// The bytes of a page of column `id`, which copying does not decode.
fn damage_page(lab: &Lab, input: usize, damage: impl FnOnce(&mut [u8])) {
    let path = &lab.inputs[input];
    let footer = ParquetMetaDataReader::new()
        .with_page_index_policy(PageIndexPolicy::Required)
        .parse_and_finish(&File::open(path).unwrap())
        .unwrap();
    let page = footer.page_index_for_row_group(0);
    let page = &page.offset_index(1).unwrap().page_locations()[0];
    let end =
        usize::try_from(page.offset).unwrap() + usize::try_from(page.compressed_page_size).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    // The end of the page is its body.
    damage(&mut bytes[end - 30..end]);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_page_is_not_carried_along() {
    for thread_count in [1, 2] {
        let mut lab = Lab::new();
        // Without a dictionary the page is more than literals, which could be anything.
        let plain = || {
            let plain = properties(50).into_builder();
            plain.set_dictionary_enabled(false).build()
        };
        lab.add(&batch(&range(0..100), 0), plain());
        lab.add(&batch(&range(200..300), 100), plain());
        let options = MergeOptions {
            thread_count,
            ..wanted(50)
        };
        assert_eq!(lab.merge(&options).unwrap().copied_row_group_count, 4);
        std::fs::remove_file(lab.output()).unwrap();
        damage_page(&lab, 1, |body| body.fill(0xff));
        let MergeError::BadInputs(bad) = lab.merge(&options).unwrap_err() else {
            panic!("not refused")
        };
        assert_eq!(bad[0].index, 1);
        assert!(bad[0].reason.contains("\"id\""), "{}", bad[0].reason);
    }
}
