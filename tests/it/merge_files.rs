//! Writes, merges and reads Parquet files for the tests of the merge.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use arrow::array::RecordBatch;
use gigamerge::merge::{
    Compression, MergeControl, MergeError, MergeOptions, MergeReport, MergeRequest, SortColumn,
    merge_files,
};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    file::properties::WriterProperties,
};
use tempfile::TempDir;

/// A folder with inputs, an output and scratch.
pub(crate) struct Lab {
    pub(crate) folder: TempDir,
    pub(crate) inputs: Vec<PathBuf>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("scratch")).expect("a scratch folder");
        Self {
            folder,
            inputs: Vec::new(),
        }
    }

    /// Adds an input.
    pub(crate) fn add(&mut self, batch: &RecordBatch, properties: WriterProperties) -> PathBuf {
        let path = self
            .folder
            .path()
            .join(format!("in-{}.parquet", self.inputs.len()));
        write(&path, batch, properties);
        self.inputs.push(path.clone());
        path
    }

    /// Adds an input of these bytes.
    pub(crate) fn add_bytes(&mut self, bytes: &[u8]) -> PathBuf {
        let path = self
            .folder
            .path()
            .join(format!("in-{}.parquet", self.inputs.len()));
        std::fs::write(&path, bytes).expect("the input is written");
        self.inputs.push(path.clone());
        path
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.folder.path().join("out.parquet")
    }

    pub(crate) fn scratch(&self) -> PathBuf {
        self.folder.path().join("scratch")
    }

    pub(crate) fn request(&self, options: &MergeOptions) -> MergeRequest {
        MergeRequest {
            inputs: self.inputs.clone(),
            output: self.output(),
            scratch: self.scratch(),
            options: options.clone(),
        }
    }

    pub(crate) fn merge(&self, options: &MergeOptions) -> Result<MergeReport, MergeError> {
        let result = merge_files(&self.request(options), &MergeControl::default());
        assert!(self.scratch_is_empty(), "scratch was left behind");
        assert_eq!(
            result.is_ok(),
            self.output().exists(),
            "an output without success"
        );
        result
    }

    pub(crate) fn scratch_is_empty(&self) -> bool {
        std::fs::read_dir(self.scratch())
            .expect("scratch")
            .next()
            .is_none()
    }

    /// The output's rows.
    pub(crate) fn read(&self) -> Vec<RecordBatch> {
        read(&self.output())
    }
}

pub(crate) fn write(path: &Path, batch: &RecordBatch, properties: WriterProperties) {
    let file = File::create(path).expect("the input is created");
    let mut writer =
        ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("a writer");
    writer.write(batch).expect("rows are written");
    writer.close().expect("the file is ended");
}

pub(crate) fn read(path: &Path) -> Vec<RecordBatch> {
    let file = File::open(path).expect("the file is there");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("a footer");
    reader
        .build()
        .expect("a reader")
        .map(|batch| batch.expect("rows"))
        .collect()
}

pub(crate) fn ascending(name: &str) -> SortColumn {
    SortColumn {
        name: name.to_owned(),
        descending: false,
        nulls_first: false,
    }
}

pub(crate) fn options() -> MergeOptions {
    MergeOptions {
        order_by: vec![ascending("__timestamp")],
        compression: Compression::Zstd(1),
        column_compression: Default::default(),
        bloom_filter_columns: Vec::new(),
        dedup: None,
        row_group_rows: 122_880,
        memory_budget_bytes: 64 << 20,
        thread_count: 2,
        bounds_of: vec!["__timestamp".to_owned()],
    }
}
