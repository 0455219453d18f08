//! Thousands of damaged files, merged by a process of its own that has little memory: each merge
//! ends well or says which file is bad, and no file changes.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use arrow::{
    array::{
        ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch,
        StringArray, StructArray,
    },
    datatypes::{DataType, Field, Int32Type},
};
use gigamerge::merge::{
    Compression, MergeControl, MergeError, MergeOptions, merge_files, summarize,
};
use parquet::{
    basic::{Compression as Codec, Encoding, GzipLevel, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties, WriterVersion},
    schema::types::ColumnPath,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    absurd_files,
    merge_files::{Lab, options, write},
    support::lake::python,
};

/// Set for the process that merges.
const CHILD: &str = "BAD_FILES_CHILD";
const ROUNDS: usize = 3000;
/// Address space of that process: what a bomb would take is not there.
const ADDRESS_BYTES: u64 = 2 << 30;
/// Memory that it may really use.
const RESIDENT_BYTES: u64 = 256 << 20;

/// Files of other writers.
const FOREIGN: &str = r#"
import sys, pyarrow as pa, pyarrow.parquet as pq, duckdb
folder, n = sys.argv[1], 300
table = pa.table({
    "__timestamp": pa.array(range(n), pa.int64()),
    "host": [f"host-{i % 7}" for i in range(n)],
    "long": [f"{'p' * (i % 50)}-{i}" for i in range(n)],
    "lists": [[i, None] if i % 3 else None for i in range(n)],
    "value": pa.array([i / 3 for i in range(n)]),
})
delta = {"__timestamp": "DELTA_BINARY_PACKED", "host": "DELTA_BYTE_ARRAY", "long": "DELTA_LENGTH_BYTE_ARRAY", "value": "BYTE_STREAM_SPLIT"}
pq.write_table(table, f"{folder}/a.parquet", row_group_size=100, write_page_index=True, write_page_checksum=True, data_page_size=512)
pq.write_table(table, f"{folder}/b.parquet", compression="zstd", data_page_version="2.0", use_dictionary=False, column_encoding=delta, write_page_index=True)
pq.write_table(table, f"{folder}/c.parquet", compression="brotli", data_page_version="2.0", column_encoding=None)
duckdb.sql(f"copy (select i as __timestamp, 'host-' || i % 7 as host, [i, i + 1] as lists, {{'a': i, 'b': null}} as s from range(300) t(i)) to '{folder}/d.parquet' (format parquet, row_group_size 100)")
duckdb.sql(f"copy (select i as __timestamp, 'host-' || i % 7 as host from range(300) t(i)) to '{folder}/e.parquet' (format parquet, parquet_version v2, compression zstd)")
"#;

#[test]
fn damaged_and_absurd_files_are_refused_by_name_in_bounded_memory() {
    if let Some(folder) = std::env::var_os(CHILD) {
        merge_them_all(Path::new(&folder));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let foreign = python()
        .args(["-c", FOREIGN])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(
        foreign.status.success(),
        "{}",
        String::from_utf8_lossy(&foreign.stderr)
    );
    let name = "bad_files::damaged_and_absurd_files_are_refused_by_name_in_bounded_memory";
    let child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, folder.path())
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stderr).into_owned();
    let panics = text.matches("panicked at").count();
    let end: Vec<&str> = text.lines().rev().take(12).collect();
    assert!(child.status.success(), "{}: {end:#?}", child.status);
    let out = String::from_utf8_lossy(&child.stdout);
    assert!(out.contains("1 passed"), "{out}");
    // What was caught is told by the errors alone.
    assert_eq!(panics, 0, "{end:#?}");
}

#[test]
fn a_full_table_of_open_files_is_no_files_fault() {
    if std::env::var_os(CHILD).is_some() {
        merge_with_a_full_table();
        return;
    }
    // Limits are those of a whole process.
    let name = "bad_files::a_full_table_of_open_files_is_no_files_fault";
    let child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "")
        .output()
        .unwrap();
    let (out, text) = (
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr),
    );
    assert!(child.status.success() && out.contains("1 passed"), "{text}");
}

fn merge_with_a_full_table() {
    let mut lab = Lab::new();
    let no_foreign = tempfile::tempdir().unwrap();
    let base = &bases(no_foreign.path())[0];
    let files = [lab.add_bytes(base), lab.add_bytes(base)];
    let broken = lab.add_bytes(&base[..base.len() - 9]);
    let limit = |count| Rlimit {
        current: Some(count),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let before = getrlimit(Resource::Nofile).current.unwrap();
    let request = lab.request(&options());
    let control = MergeControl::default();
    // Not even one more can be opened.
    setrlimit(Resource::Nofile, limit(1)).unwrap();
    let (merged, summary) = (
        merge_files(&request, &control),
        summarize(&files[0], &options()),
    );
    setrlimit(Resource::Nofile, limit(before)).unwrap();
    for (error, count) in [(merged.unwrap_err(), 3), (summary.unwrap_err(), 1)] {
        let MergeError::BadInputs(bad) = error else {
            panic!("{error}");
        };
        assert_eq!(bad.len(), count);
        for bad in bad {
            assert!(
                bad.is_lack && bad.reason.contains("Too many open files"),
                "{bad:?}"
            );
        }
    }
    // One that is really bad is so still.
    let Err(MergeError::BadInputs(bad)) = lab.merge(&options()) else {
        panic!("a file without an end was merged");
    };
    assert_eq!(bad.len(), 1);
    assert!(bad[0].path == broken && !bad[0].is_lack, "{bad:?}");
}

fn merge_them_all(foreign: &Path) {
    gigamerge::merge::silence_caught_panics();
    let limit = Rlimit {
        current: Some(ADDRESS_BYTES),
        maximum: Some(ADDRESS_BYTES),
    };
    setrlimit(Resource::As, limit).unwrap();
    absurd_files::absurd_files_are_refused();
    absurd_files::long_texts_of_a_dictionary_are_read_few_at_a_time();
    let bases = bases(foreign);
    assert!(bases.len() > 15);
    let (mut refused, mut merged, mut panicked) = (0, 0, 0);
    let mut random = fastrand::Rng::with_seed(20);
    let mut lab = Lab::new();
    let victim = lab.add_bytes(&bases[0]);
    let sound = lab.add_bytes(&bases[0]);
    for round in 0..ROUNDS {
        let base = &bases[round % bases.len()];
        let damaged = damage(base, &bases, &mut random);
        std::fs::write(&victim, &damaged).unwrap();
        std::fs::write(&sound, base).unwrap();
        let _ = std::fs::remove_file(lab.output());
        match lab.merge(&merge_options(round)) {
            Ok(_) => merged += 1,
            Err(MergeError::BadInputs(bad)) => {
                refused += 1;
                let places: Vec<usize> = bad.iter().map(|bad| bad.index).collect();
                assert_eq!(places, [0], "round {round}: {bad:?}");
                assert!(!bad[0].reason.is_empty());
                panicked += usize::from(bad[0].reason.contains("confuse the decoder"));
            }
            // A damaged footer can still be a footer, of another schema.
            Err(MergeError::TypeConflict(_) | MergeError::SortColumn { .. }) => refused += 1,
            Err(other) => panic!("round {round}: {other}"),
        }
        assert!(std::fs::read(&victim).unwrap() == damaged, "round {round}");
    }
    assert!(
        refused > ROUNDS / 3 && merged > ROUNDS / 10,
        "{refused} refused, {merged} merged"
    );
    assert!(panicked > 0, "no damage made the decoder panic");
    let peak_bytes = peak_bytes();
    assert!(peak_bytes < RESIDENT_BYTES, "peak {peak_bytes}");
}

fn merge_options(round: usize) -> MergeOptions {
    MergeOptions {
        // Some row groups are copied: those have the compression and at least half of the rows.
        row_group_rows: 100,
        compression: if round.is_multiple_of(2) {
            Compression::Snappy
        } else {
            Compression::Zstd(1)
        },
        ..options()
    }
}

/// What this process had in memory at most.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib << 10
}

/// Flips, cuts, splices; footers and page headers more often than the rest.
fn damage(base: &[u8], bases: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = base.to_vec();
    let length = bytes.len();
    let footer_bytes = u32::from_le_bytes(bytes[length - 8..length - 4].try_into().unwrap());
    let footer_start = length - 8 - footer_bytes as usize;
    for _ in 0..random.usize(1..4) {
        let length = bytes.len();
        let at = match random.u8(..4) {
            0 if footer_start < length => random.usize(footer_start..length),
            1 => random.usize(..length.min(64)),
            _ => random.usize(..length),
        };
        match random.u8(..8) {
            0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.usize(..5)],
            1 => bytes.truncate(at.max(1)),
            2 => drop(bytes.drain(at..(at + random.usize(1..40)).min(length))),
            3 => {
                // A large number where a small one was.
                let number = [0xff, 0xff, 0xff, 0xff, [0x07, 0x0f][random.usize(..2)]];
                bytes.splice(at..(at + 1).min(length), number);
            }
            4 => {
                let other = &bases[random.usize(..bases.len())];
                let from = random.usize(..other.len());
                let part = &other[from..(from + random.usize(1..200)).min(other.len())];
                let end = (at + part.len()).min(length);
                bytes.splice(at..end, part.iter().copied());
            }
            _ => bytes[at] ^= 1 << random.u8(..8),
        }
        if bytes.is_empty() {
            return bytes;
        }
    }
    bytes
}

/// Sound files of many kinds.
fn bases(foreign: &Path) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(foreign)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let codecs = [
        Codec::UNCOMPRESSED,
        Codec::SNAPPY,
        Codec::LZ4_RAW,
        Codec::ZSTD(ZstdLevel::try_new(1).unwrap()),
        Codec::GZIP(GzipLevel::default()),
        Codec::BROTLI(parquet::basic::BrotliLevel::default()),
    ];
    for (number, codec) in codecs.into_iter().enumerate() {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let properties = WriterProperties::builder()
                .set_writer_version(version)
                .set_compression(codec)
                .set_max_row_group_row_count(Some(100))
                .set_data_page_row_count_limit(40)
                .set_write_batch_size(20)
                .set_statistics_enabled(EnabledStatistics::Page)
                .set_bloom_filter_enabled(number % 2 == 0)
                .set_column_dictionary_enabled(ColumnPath::from("delta"), false)
                .set_column_encoding(
                    ColumnPath::from("delta"),
                    [
                        Encoding::DELTA_BYTE_ARRAY,
                        Encoding::DELTA_LENGTH_BYTE_ARRAY,
                    ][number % 2],
                )
                .build();
            let path = folder.path().join(format!("{}.parquet", paths.len()));
            write(&path, &rows(), properties);
            paths.push(path);
        }
    }
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

fn rows() -> RecordBatch {
    const ROWS: i32 = 300;
    let text = |prefix: &'static str, kinds: i32| {
        let texts =
            (0..ROWS).map(|row| (row % 11 != 0).then(|| format!("{prefix}{}", row % kinds)));
        Arc::new(texts.collect::<StringArray>()) as ArrayRef
    };
    let numbers = (0..ROWS).map(|row| (row % 4 != 0).then_some(row));
    let numbers = Arc::new(numbers.collect::<Int32Array>());
    let flags = (0..ROWS).map(|row| Some(row % 2 == 0));
    let flags = Arc::new(flags.collect::<BooleanArray>());
    let inside = StructArray::from(vec![
        (
            Arc::new(Field::new("a", DataType::Int32, true)),
            numbers as ArrayRef,
        ),
        (
            Arc::new(Field::new("b", DataType::Boolean, true)),
            flags as ArrayRef,
        ),
    ]);
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(
        (0..ROWS).map(|row| (row % 5 != 0).then(|| (0..row % 4).map(Some).collect::<Vec<_>>())),
    );
    RecordBatch::try_from_iter([
        (
            "__timestamp",
            Arc::new(Int64Array::from_iter_values((0..ROWS).map(i64::from))) as ArrayRef,
        ),
        ("host", text("host-", 7)),
        ("delta", text("a common beginning of all ", 200)),
        (
            "value",
            Arc::new(Float64Array::from_iter_values((0..ROWS).map(f64::from))),
        ),
        ("inside", Arc::new(inside)),
        ("lists", Arc::new(lists)),
    ])
    .unwrap()
}
