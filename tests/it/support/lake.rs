//! Files as writers make them, and an independent reader (DuckDB in Python) that counts them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};

/// 2024-01-15T14:00:00Z in nanoseconds.
pub const HOUR_START_NS: i64 = 1_705_327_200_000_000_000;
pub const PARTITION: &str = "date=2024-01-15/hour=14";

/// The Python of `tests/run`'s venv, which has DuckDB and the guide's client libraries.
pub fn python() -> Command {
    let python = std::env::var("GIGAMERGE_TEST_PYTHON")
        .expect("GIGAMERGE_TEST_PYTHON is not set: run the tests with tests/run, which installs what they need");
    Command::new(python)
}

/// A data folder with the contract's layout.
pub struct Lake {
    pub root: PathBuf,
}

impl Lake {
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    pub fn partition(&self, table: &str) -> PathBuf {
        self.root
            .join("db")
            .join(table)
            .join("data")
            .join(PARTITION)
    }

    /// Writes one level-1 file of `rows` unsorted rows within `minute` of the hour, aside first, then
    /// renamed; returns its name. Every third file has one more column.
    pub fn drop_file(&self, table: &str, seed: u64, rows: usize) -> String {
        let name = format!("{}.1.parquet", uuid_of(seed));
        let partition = self.partition(table);
        fs::create_dir_all(&partition).unwrap();
        let aside = self.root.join("db").join(table).join("tmp");
        fs::create_dir_all(&aside).unwrap();
        write_file(&aside.join(&name), &batch(seed, rows));
        fs::rename(aside.join(&name), partition.join(&name)).unwrap();
        name
    }

    /// Data files of a table, by name.
    pub fn files(&self, table: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.partition(table))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".parquet"))
            .collect();
        names.sort_unstable();
        names
    }

    /// What lies in `tmp` of a table.
    pub fn leftovers(&self, table: &str) -> Vec<PathBuf> {
        let tmp = self.root.join("db").join(table).join("tmp");
        fs::read_dir(tmp)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect()
    }

    /// Keeps a copy of the inputs, so that what becomes of them can be compared later.
    pub fn keep_copy(&self, table: &str, to: &Path) -> Vec<PathBuf> {
        fs::create_dir_all(to).unwrap();
        let copy = |name: String| {
            fs::copy(self.partition(table).join(&name), to.join(&name)).unwrap();
            to.join(name)
        };
        self.files(table).into_iter().map(copy).collect()
    }
}

/// Asserts with the independent reader that each output is sorted and that together they hold exactly
/// the rows of the inputs.
pub fn assert_same_rows(outputs: &[PathBuf], inputs: &[PathBuf]) {
    let list = |paths: &[PathBuf]| {
        paths
            .iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
    };
    let request = serde_json::json!({ "outputs": list(outputs), "inputs": list(inputs) });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("request.json");
    fs::write(&file, request.to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/duckdb/same_rows.py");
    let answer = python().arg(script).arg(file).output().unwrap();
    assert!(
        answer.status.success(),
        "{}{}",
        String::from_utf8_lossy(&answer.stdout),
        String::from_utf8_lossy(&answer.stderr)
    );
}

fn uuid_of(seed: u64) -> String {
    format!("00000000-0000-4000-8000-{seed:012}")
}

/// A small generator: the tests need the same rows each time, not good randomness.
pub fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

pub fn batch(seed: u64, rows: usize) -> RecordBatch {
    let mut state = seed.wrapping_add(99);
    let times = (0..rows).map(|_| {
        let offset = (seed % 60) * 60_000_000_000 + next(&mut state) % 90_000_000 * 1_000;
        HOUR_START_NS + i64::try_from(offset).unwrap().min(3_599_999_999_999)
    });
    let times: ArrayRef = Arc::new(Int64Array::from_iter_values(times));
    let hosts = (0..rows).map(|_| format!("host-{}", next(&mut state) % 20));
    let hosts: ArrayRef = Arc::new(StringArray::from_iter_values(hosts));
    let values = (0..rows)
        .map(|_| (!next(&mut state).is_multiple_of(10)).then(|| next(&mut state) as f64 / 7.0));
    let values: ArrayRef = Arc::new(values.collect::<Float64Array>());
    let mut columns = vec![("host", hosts), ("__timestamp", times), ("value", values)];
    if seed.is_multiple_of(3) {
        let more = (0..rows).map(|_| i64::try_from(next(&mut state)).unwrap());
        columns.push((
            "late_column",
            Arc::new(Int64Array::from_iter_values(more)) as ArrayRef,
        ));
    }
    RecordBatch::try_from_iter(columns).unwrap()
}

pub fn write_file(path: &Path, batch: &RecordBatch) {
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(8124))
        .build();
    let mut writer = ArrowWriter::try_new(
        File::create(path).unwrap(),
        batch.schema(),
        Some(properties),
    )
    .unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}
