//! Settings of a table that the output shows: compression and bloom filters of columns, bounds of
//! further columns; and row groups that are copied undecoded agree with them.

use std::{fs::File, sync::Arc};

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray,
};
use arrow::datatypes::Int64Type;
use gigamerge::merge::{Compression, MergeOptions};
use parquet::{
    basic::Compression as Codec,
    bloom_filter::Sbbf,
    file::{
        metadata::{ParquetMetaData, ParquetMetaDataReader},
        properties::WriterProperties,
    },
};
use serde_json::json;

use crate::merge_files::{Lab, options};

const ROWS: i64 = 100;

fn batch(first_key: i64) -> RecordBatch {
    let keys = first_key..first_key + ROWS;
    let texts = |text: fn(i64) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(keys.clone().map(text)))
    };
    let lists = keys.clone().map(|i| Some(vec![Some(i)]));
    RecordBatch::try_from_iter([
        (
            "__timestamp",
            Arc::new(Int64Array::from_iter_values(keys.clone())) as ArrayRef,
        ),
        ("host", texts(|i| format!("host-{}", i % 7))),
        ("trace", texts(|i| format!("trace-{i:08}"))),
        ("message", texts(|i| format!("{}{i:08}", "m".repeat(100)))),
        (
            "flag",
            Arc::new(
                keys.clone()
                    .map(|i| Some(i % 2 == 0))
                    .collect::<BooleanArray>(),
            ),
        ),
        (
            "load",
            Arc::new(Float64Array::from_iter_values(
                keys.clone().map(|i| i as f64),
            )),
        ),
        (
            "list",
            Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists)),
        ),
    ])
    .unwrap()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn wanted() -> MergeOptions {
    let own = [
        ("message", Compression::Zstd(9)),
        ("list", Compression::None),
        ("trace", Compression::Lz4),
        ("long gone", Compression::None),
    ];
    MergeOptions {
        row_group_rows: 100,
        compression: Compression::Snappy,
        column_compression: own.map(|(name, own)| (name.to_owned(), own)).into(),
        bloom_filter_columns: names(&["host", "trace", "flag", "list", "long gone"]),
        ..options()
    }
}

fn footer(lab: &Lab) -> ParquetMetaData {
    ParquetMetaDataReader::new()
        .parse_and_finish(&File::open(lab.output()).unwrap())
        .unwrap()
}

/// Codec, bloom filter and name of each leaf column, the same in each row group.
fn columns(lab: &Lab) -> Vec<(String, Codec, bool)> {
    let footer = footer(lab);
    let groups = footer.row_groups().iter().map(|group| {
        let columns = group.columns().iter();
        let column = columns.map(|chunk| {
            let name = chunk.column_path().parts()[0].clone();
            let has_filter = chunk.bloom_filter_offset().is_some();
            (name, chunk.compression(), has_filter)
        });
        column.collect::<Vec<_>>()
    });
    let mut groups: Vec<_> = groups.collect();
    groups.dedup();
    assert_eq!(groups.len(), 1, "{groups:?}");
    groups.remove(0)
}

fn has(lab: &Lab, column: usize, value: &str) -> bool {
    let file = File::open(lab.output()).unwrap();
    footer(lab).row_groups().iter().any(|group| {
        let filter = Sbbf::read_from_column_chunk(group.column(column), &file).unwrap();
        filter.unwrap().check(value)
    })
}

#[test]
fn columns_are_compressed_and_filtered_as_their_settings_say_when_copied_too() {
    let mut lab = Lab::new();
    for first_key in [100, 0] {
        lab.add(&batch(first_key), WriterProperties::default());
    }
    let zstd = Codec::ZSTD(Default::default());
    let expected = [
        // Small steps, which compression would not make smaller: they are stored as they are.
        ("__timestamp", Codec::UNCOMPRESSED, false),
        ("host", Codec::SNAPPY, true),
        ("trace", Codec::LZ4_RAW, true),
        ("message", zstd, false),
        ("flag", Codec::SNAPPY, false),
        ("load", Codec::SNAPPY, false),
        ("list", Codec::UNCOMPRESSED, false),
    ];
    let expected = expected.map(|(name, codec, filter)| (name.to_owned(), codec, filter));
    let report = lab.merge(&wanted()).unwrap();
    assert_eq!(report.copied_row_group_count, 0);
    let found = columns(&lab);
    assert_eq!(found, expected);
    assert!(has(&lab, 1, "host-3") && has(&lab, 2, "trace-00000199"));
    assert!(!has(&lab, 1, "host-9") && !has(&lab, 2, "trace-00000200"));

    let bytes = std::fs::read(lab.output()).unwrap();
    let mut next = Lab::new();
    next.add_bytes(&bytes);
    assert_eq!(next.merge(&wanted()).unwrap().copied_row_group_count, 2);
    assert_eq!(columns(&next), expected);
    assert!(has(&next, 2, "trace-00000199") && !has(&next, 2, "trace-00000200"));

    let more_filters = MergeOptions {
        bloom_filter_columns: names(&["host", "message"]),
        ..wanted()
    };
    let fewer_filters = MergeOptions {
        bloom_filter_columns: names(&["host"]),
        ..wanted()
    };
    let other_codec = MergeOptions {
        column_compression: [("trace".to_owned(), Compression::Lz4)].into(),
        ..wanted()
    };
    for (options, copied) in [(more_filters, 0), (fewer_filters, 2), (other_codec, 0)] {
        std::fs::remove_file(next.output()).unwrap();
        let report = next.merge(&options).unwrap();
        assert_eq!(report.copied_row_group_count, copied);
        columns(&next);
    }
}

#[test]
fn bounds_of_further_columns_are_exact_when_copied_too() {
    let mut lab = Lab::new();
    for first_key in [100, 0] {
        lab.add(&batch(first_key), WriterProperties::default());
    }
    let wanting = |columns: &[&str]| MergeOptions {
        row_group_rows: 100,
        bounds_of: names(columns),
        ..options()
    };
    lab.merge(&wanting(&[])).unwrap();
    let bytes = std::fs::read(lab.output()).unwrap();
    let mut next = Lab::new();
    next.add_bytes(&bytes);
    let long = |number: &str| json!("m".repeat(100) + number);
    // Texts longer than statistics keep, and numbers among which NaN may be, are read.
    for (column, copied, min, max) in [
        ("host", 2, json!("host-0"), json!("host-6")),
        ("trace", 2, json!("trace-00000000"), json!("trace-00000199")),
        ("flag", 2, json!(false), json!(true)),
        ("message", 0, long("00000000"), long("00000199")),
        ("load", 0, json!(0.0), json!(199.0)),
    ] {
        let columns = ["__timestamp", column, "list", "long gone"];
        let report = next.merge(&wanting(&columns)).unwrap();
        std::fs::remove_file(next.output()).unwrap();
        assert_eq!(report.copied_row_group_count, copied, "{column}");
        assert_eq!(report.bounds.len(), 2, "{column}");
        let bounds = report.bounds.iter().find(|bounds| bounds.column == column);
        let bounds = bounds.unwrap();
        assert_eq!((&bounds.min, &bounds.max), (&min, &max));
    }
}
