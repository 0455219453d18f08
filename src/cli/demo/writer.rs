//! A small writer of realistic files: several a second, rows out of order, a column that appears later.
//! It knows nothing of gigamerge: it writes aside and renames, as any program may.

use std::{
    error::Error,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};

use super::{DemoError, rows::RowTally};

pub(super) const FILES_PER_SECOND: u32 = 4;
const ROWS_PER_FILE_MAX: usize = 6_000;
/// What arrow-go writers use.
const ROW_GROUP_ROWS: usize = 8_124;
pub(super) const DATABASE: &str = "demo";
pub(super) const TABLES: [&str; 2] = ["cpu", "requests"];

/// What was written.
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) tally: RowTally,
}

/// The running writer.
pub(super) struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Written, DemoError>>,
}

impl Writer {
    /// Writes below `root` until it is stopped; the new column appears after `column_after`.
    pub(super) fn start(root: PathBuf, column_after: Duration) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("demo-writer".to_owned())
            .spawn(move || write_until(&root, column_after, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Stops after the current file and says what was written.
    pub(super) fn finish(self) -> Result<Written, DemoError> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|_| Err(DemoError::Broken("the demo's writer panicked".to_owned())))
    }
}

fn write_until(
    root: &Path,
    column_after: Duration,
    stop: &AtomicBool,
) -> Result<Written, DemoError> {
    let started = Instant::now();
    let mut written = Written::default();
    let pause = Duration::from_secs(1) / FILES_PER_SECOND;
    let mut next_at = started;
    while !stop.load(Ordering::Relaxed) {
        let table = TABLES[usize::try_from(written.files).unwrap_or(0) % TABLES.len()];
        let folder = root.join(DATABASE).join(table);
        let (batch, bytes) = write_file(&folder, table, started.elapsed() >= column_after)
            .map_err(DemoError::file(&folder))?;
        written.files += 1;
        written.bytes += bytes;
        written
            .tally
            .add(&batch)
            .map_err(DemoError::file(&folder))?;
        next_at += pause;
        std::thread::sleep(next_at.saturating_duration_since(Instant::now()));
    }
    Ok(written)
}

fn now_ns() -> i64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

/// A few seconds of measurements, in random order.
fn rows(table: &str, with_new_column: bool) -> Result<RecordBatch, Box<dyn Error>> {
    let count = fastrand::usize(ROWS_PER_FILE_MAX / 3..ROWS_PER_FILE_MAX);
    let now = now_ns();
    let times: Vec<i64> = (0..count)
        .map(|_| now - fastrand::i64(0..8_000_000) * 1_000)
        .collect();
    let hosts = StringArray::from_iter_values(
        (0..count).map(|_| format!("host-{:02}.example.net", fastrand::u8(0..24))),
    );
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("__timestamp", Arc::new(Int64Array::from(times))),
        ("host", Arc::new(hosts)),
    ];
    if table == "cpu" {
        let usage = (0..count)
            .map(|_| (fastrand::u8(..) > 12).then(|| fastrand::f64() * 100.0))
            .collect::<Float64Array>();
        columns.push(("usage", Arc::new(usage)));
        if with_new_column {
            let degrees = (0..count).map(|_| f64::from(fastrand::u16(300..900)) / 10.0);
            columns.push((
                "temperature",
                Arc::new(Float64Array::from_iter_values(degrees)),
            ));
        }
    } else {
        let paths = ["/", "/login", "/cart", "/search", "/api/v1/items"];
        let path = StringArray::from_iter_values(
            (0..count).map(|_| paths[fastrand::usize(..paths.len())]),
        );
        let bytes = Int64Array::from_iter_values((0..count).map(|_| fastrand::i64(200..2_000_000)));
        columns.push(("path", Arc::new(path)));
        columns.push(("bytes", Arc::new(bytes)));
        if with_new_column {
            let regions = ["eu-west-1", "us-east-1"];
            let region = (0..count).map(|_| regions[fastrand::usize(..regions.len())]);
            columns.push(("region", Arc::new(StringArray::from_iter_values(region))));
        }
    }
    Ok(RecordBatch::try_from_iter(columns)?)
}

/// Writes one file into the partition of the current hour; returns its rows and its size.
fn write_file(
    folder: &Path,
    table: &str,
    with_new_column: bool,
) -> Result<(RecordBatch, u64), Box<dyn Error>> {
    let batch = rows(table, with_new_column)?;
    let hour = chrono::Utc::now()
        .format("date=%Y-%m-%d/hour=%H")
        .to_string();
    let partition = folder.join("data").join(hour);
    let aside = folder.join("tmp");
    fs::create_dir_all(&partition)?;
    fs::create_dir_all(&aside)?;
    let name = format!("{}.1.parquet", uuid::Uuid::new_v4());
    let half = aside.join(&name);
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .build();
    let mut writer = ArrowWriter::try_new(File::create(&half)?, batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    let bytes = fs::metadata(&half)?.len();
    fs::rename(half, partition.join(&name))?;
    Ok((batch, bytes))
}
