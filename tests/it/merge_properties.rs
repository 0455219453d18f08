//! Any files in, the same rows out, in order: compared with a model that sorts rows one by one.

// Test data is made from small numbers.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::manual_is_multiple_of
)]

use std::{cmp::Ordering, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array,
        ListArray, RecordBatch, StringArray, UInt32Array, UInt64Array,
    },
    compute::cast,
    datatypes::{
        DataType, Field, Float32Type, Float64Type, Int32Type, Int64Type, Schema, UInt32Type,
        UInt64Type,
    },
};
use gigamerge::merge::{Compression, MergeOptions, SortColumn};
use parquet::{
    basic::Compression as Codec,
    file::properties::{WriterProperties, WriterVersion},
};
use proptest::prelude::*;

use crate::merge_files::{Lab, ascending, options};

/// A value as the model sees it.
#[derive(Debug, Clone)]
enum Cell {
    Null,
    Number(f64),
    Integer(i128),
    Text(String),
    Flag(bool),
    List(Vec<Option<i64>>),
}

impl Cell {
    fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (Self::Flag(a), Self::Flag(b)) => a.cmp(b),
            (Self::Number(a), Self::Number(b)) => match (a.is_nan(), b.is_nan()) {
                (true, true) => Ordering::Equal,
                (true, false) => Ordering::Greater,
                (false, true) => Ordering::Less,
                (false, false) => a.partial_cmp(b).expect("numbers"),
            },
            _ => Ordering::Equal,
        }
    }
}

impl PartialEq for Cell {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Number(a), Self::Number(b)) => a.to_bits() == b.to_bits(),
            (Self::Integer(a), Self::Integer(b)) => a == b,
            (Self::Integer(a), Self::Number(b)) | (Self::Number(b), Self::Integer(a)) => {
                *a as f64 == *b
            }
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Flag(a), Self::Flag(b)) => a == b,
            (Self::List(a), Self::List(b)) => a == b,
            _ => false,
        }
    }
}

/// The columns that a file may have besides its row number.
const COLUMNS: [&str; 7] = [
    "__timestamp",
    "whole",
    "mixed",
    "real",
    "text",
    "flag",
    "list",
];

#[derive(Debug, Clone)]
struct FileSpec {
    /// Whether each of `COLUMNS` is there; the sort columns always are.
    columns: Vec<bool>,
    /// Which type each column has.
    kinds: Vec<u8>,
    /// A few numbers for each row, from which its values are made.
    rows: Vec<(i8, u8, u8)>,
    row_group_rows: usize,
    codec: u8,
    dictionary: bool,
    version_2: bool,
    presorted: bool,
    padding: usize,
}

fn file_spec(padding: impl Strategy<Value = usize>) -> impl Strategy<Value = FileSpec> {
    (
        prop::collection::vec(any::<bool>(), COLUMNS.len()),
        prop::collection::vec(any::<u8>(), COLUMNS.len()),
        prop::collection::vec((any::<i8>(), any::<u8>(), any::<u8>()), 0..120),
        1..60_usize,
        any::<u8>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        padding,
    )
        .prop_map(
            |(
                columns,
                kinds,
                rows,
                row_group_rows,
                codec,
                dictionary,
                version_2,
                presorted,
                padding,
            )| FileSpec {
                columns,
                kinds,
                rows,
                row_group_rows,
                codec,
                dictionary,
                version_2,
                presorted,
                padding,
            },
        )
}

fn column(name: &str, kind: u8, rows: &[(i8, u8, u8)], file: usize, padding: usize) -> ArrayRef {
    let each = |null_share: u8| rows.iter().map(move |row| (row.2 % 16 >= null_share, *row));
    match name {
        "__timestamp" => Arc::new(
            each(u8::from(kind % 2 == 0))
                .map(|(valid, row)| valid.then(|| i64::from(row.0) * 1_000_000_007))
                .collect::<Int64Array>(),
        ),
        "whole" => {
            let values = each(2).map(|(valid, row)| valid.then_some(u32::from(row.1)));
            match kind % 4 {
                0 => Arc::new(
                    values
                        .map(|v| v.map(|v| v as i32 - 100))
                        .collect::<Int32Array>(),
                ),
                1 => Arc::new(values.map(|v| v.map(i64::from)).collect::<Int64Array>()),
                2 => Arc::new(values.collect::<UInt32Array>()),
                _ => Arc::new(values.map(|v| v.map(u64::from)).collect::<UInt64Array>()),
            }
        }
        "mixed" => {
            let values = each(3).map(|(valid, row)| valid.then_some(i64::from(row.0) << 40));
            match kind % 3 {
                0 => Arc::new(values.collect::<Int64Array>()),
                1 => Arc::new(
                    values
                        .map(|v| v.map(|v| v as f64))
                        .collect::<Float64Array>(),
                ),
                _ => Arc::new(
                    values
                        .map(|v| v.map(|v| v as f32))
                        .collect::<Float32Array>(),
                ),
            }
        }
        "real" => {
            let values = each(1).map(|(valid, row)| {
                valid.then_some(match row.1 % 8 {
                    0 => f64::NAN,
                    1 => -0.0,
                    2 => 0.0,
                    3 => f64::INFINITY,
                    4 => f64::NEG_INFINITY,
                    _ => f64::from(row.0) / 4.0,
                })
            });
            if kind % 2 == 0 {
                Arc::new(values.collect::<Float64Array>())
            } else {
                Arc::new(
                    values
                        .map(|v| v.map(|v| v as f32))
                        .collect::<Float32Array>(),
                )
            }
        }
        "text" => {
            let values = each(1).map(|(valid, row)| {
                valid.then(|| {
                    format!(
                        "{}{}",
                        char::from(b'a' + row.1 % 5),
                        "ü".repeat(usize::from(row.1 % 3)) + &"x".repeat(padding)
                    )
                })
            });
            let plain: ArrayRef = Arc::new(values.collect::<StringArray>());
            let wanted = match kind % 4 {
                0 => DataType::Utf8,
                1 => DataType::LargeUtf8,
                2 => DataType::Utf8View,
                _ => DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
            };
            cast(&plain, &wanted).expect("a cast")
        }
        "flag" => Arc::new(
            each(4)
                .map(|(valid, row)| valid.then_some(row.1 % 2 == 0))
                .collect::<BooleanArray>(),
        ),
        "list" => Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(
            each(4).map(|(valid, row)| {
                valid.then(|| {
                    (0..row.1 % 4)
                        .map(|i| (i != 2).then(|| i64::from(row.0) + i64::from(i)))
                        .collect::<Vec<_>>()
                })
            }),
        )),
        _ => Arc::new(
            (0..rows.len())
                .map(|row| Some((file * 1_000_000 + row) as i64))
                .collect::<Int64Array>(),
        ),
    }
}

fn batch(spec: &FileSpec, file: usize, order: &[SortColumn]) -> RecordBatch {
    let mut names: Vec<&str> = COLUMNS
        .into_iter()
        .zip(&spec.columns)
        .filter(|(name, present)| **present || order.iter().any(|column| column.name == *name))
        .map(|(name, _)| name)
        .collect();
    let shift = file % names.len().max(1);
    names.rotate_left(shift);
    names.push("id");
    let mut rows = spec.rows.clone();
    if spec.presorted {
        rows.sort_by_key(|row| row.0);
    }
    let arrays: Vec<ArrayRef> = names
        .iter()
        .map(|name| {
            let kind = COLUMNS
                .iter()
                .position(|column| column == name)
                .map_or(0, |i| spec.kinds[i]);
            column(name, kind, &rows, file, spec.padding)
        })
        .collect();
    let fields: Vec<Field> = names
        .iter()
        .zip(&arrays)
        .map(|(name, array)| {
            Field::new(
                *name,
                array.data_type().clone(),
                array.null_count() > 0 || file % 2 == 0,
            )
        })
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("a batch")
}

fn properties(spec: &FileSpec) -> WriterProperties {
    let codec = match spec.codec % 5 {
        0 => Codec::UNCOMPRESSED,
        1 => Codec::SNAPPY,
        2 => Codec::ZSTD(parquet::basic::ZstdLevel::default()),
        3 => Codec::LZ4_RAW,
        _ => Codec::GZIP(parquet::basic::GzipLevel::default()),
    };
    WriterProperties::builder()
        .set_max_row_group_row_count(Some(spec.row_group_rows))
        .set_write_batch_size(16)
        .set_data_page_row_count_limit(23)
        .set_compression(codec)
        .set_dictionary_enabled(spec.dictionary)
        .set_writer_version(if spec.version_2 {
            WriterVersion::PARQUET_2_0
        } else {
            WriterVersion::PARQUET_1_0
        })
        .build()
}

fn cells(batches: &[RecordBatch], names: &[String]) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<Option<ArrayRef>> = names
            .iter()
            .map(|name| {
                let column = batch.column_by_name(name)?;
                let flat = match column.data_type() {
                    DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(_, _) => {
                        DataType::Utf8
                    }
                    other => other.clone(),
                };
                Some(cast(column, &flat).expect("a cast"))
            })
            .collect();
        for row in 0..batch.num_rows() {
            rows.push(
                columns
                    .iter()
                    .map(|column| column.as_ref().map_or(Cell::Null, |c| cell(c, row)))
                    .collect(),
            );
        }
    }
    rows
}

fn cell(column: &ArrayRef, row: usize) -> Cell {
    if column.is_null(row) {
        return Cell::Null;
    }
    match column.data_type() {
        DataType::Int32 => Cell::Integer(column.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => Cell::Integer(column.as_primitive::<Int64Type>().value(row).into()),
        DataType::UInt32 => Cell::Integer(column.as_primitive::<UInt32Type>().value(row).into()),
        DataType::UInt64 => Cell::Integer(column.as_primitive::<UInt64Type>().value(row).into()),
        DataType::Float32 => Cell::Number(column.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => Cell::Number(column.as_primitive::<Float64Type>().value(row)),
        DataType::Boolean => Cell::Flag(column.as_boolean().value(row)),
        DataType::Utf8 => Cell::Text(column.as_string::<i32>().value(row).to_owned()),
        DataType::List(_) => Cell::List(
            column
                .as_list::<i32>()
                .value(row)
                .as_primitive::<Int64Type>()
                .iter()
                .collect(),
        ),
        other => panic!("a column of type {other} came out"),
    }
}

fn compare(left: &[Cell], right: &[Cell], order: &[(usize, &SortColumn)]) -> Ordering {
    for (index, column) in order {
        let found = match (&left[*index], &right[*index]) {
            (Cell::Null, Cell::Null) => Ordering::Equal,
            (Cell::Null, _) if column.nulls_first => Ordering::Less,
            (Cell::Null, _) => Ordering::Greater,
            (_, Cell::Null) if column.nulls_first => Ordering::Greater,
            (_, Cell::Null) => Ordering::Less,
            (a, b) if column.descending => b.order(a),
            (a, b) => a.order(b),
        };
        if found != Ordering::Equal {
            return found;
        }
    }
    Ordering::Equal
}

fn check(specs: &[FileSpec], options: &MergeOptions) -> Result<u64, TestCaseError> {
    let mut lab = Lab::new();
    let batches: Vec<RecordBatch> = specs
        .iter()
        .enumerate()
        .map(|(file, spec)| batch(spec, file, &options.order_by))
        .collect();
    let mut names: Vec<String> = Vec::new();
    for (batch, spec) in batches.iter().zip(specs) {
        lab.add(batch, properties(spec));
        for field in batch.schema().fields() {
            if !names.contains(field.name()) {
                names.push(field.name().clone());
            }
        }
    }
    let report = lab
        .merge(options)
        .map_err(|e| TestCaseError::fail(e.to_string()))?;

    let mut expected: Vec<Vec<Cell>> = cells(&batches, &names);
    let order: Vec<_> = options
        .order_by
        .iter()
        .filter_map(|column| Some((names.iter().position(|name| *name == column.name)?, column)))
        .collect();
    expected.sort_by(|left, right| compare(left, right, &order));
    let output = lab.read();
    let found = cells(&output, &names);
    prop_assert_eq!(report.row_count, expected.len() as u64);
    prop_assert_eq!(found.len(), expected.len());
    for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
        prop_assert_eq!(found, expected, "row {}", row);
    }
    if let Some(first) = output.first() {
        let schema = first.schema();
        let columns: Vec<_> = schema
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .collect();
        prop_assert_eq!(columns, names);
    }
    Ok(report.spilled_run_count)
}

fn orders() -> impl Strategy<Value = Vec<SortColumn>> {
    let column = |name: &str, descending, nulls_first| SortColumn {
        name: name.to_owned(),
        descending,
        nulls_first,
    };
    prop_oneof![
        4 => Just(vec![ascending("__timestamp")]),
        1 => Just(vec![column("__timestamp", true, true)]),
        1 => Just(vec![column("__timestamp", true, false)]),
        1 => Just(vec![column("__timestamp", false, true)]),
        1 => Just(vec![column("real", false, false)]),
        1 => Just(vec![column("real", true, false)]),
        1 => Just(vec![column("text", false, false), column("__timestamp", true, true)]),
        1 => Just(vec![column("flag", true, true), column("real", false, true), column("whole", true, false)]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_rows_come_out_sorted_and_ties_keep_their_order(
        specs in prop::collection::vec(file_spec(Just(0)), 1..8),
        order_by in orders(),
        row_group_rows in 1..300_usize,
        codec in 0..4_u8,
    ) {
        let compression = [Compression::None, Compression::Snappy, Compression::Lz4, Compression::Zstd(3)][usize::from(codec)];
        check(&specs, &MergeOptions { order_by, row_group_rows, compression, ..options() })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_rows_come_out_when_memory_holds_few_of_them(
        mut specs in prop::collection::vec(file_spec(10_000..30_000_usize), 5..9),
        order_by in orders(),
    ) {
        let options = MergeOptions { order_by, memory_budget_bytes: 8 << 20, ..options() };
        let text = COLUMNS.iter().position(|name| *name == "text").expect("a column of texts");
        let mut text_bytes = 0;
        for spec in &mut specs {
            spec.columns[text] = true;
            text_bytes += spec.rows.iter().filter(|row| row.2 % 16 > 0).count() * spec.padding;
        }
        let spilled_run_count = check(&specs, &options)?;
        prop_assert!(spilled_run_count > 0 || text_bytes < 8 << 20, "{} bytes stayed in memory", text_bytes);
    }
}
