//! Files of every writer, alone and together, go through the merge unharmed: two readers that
//! share no code with it compare what came out.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use gigamerge::merge::{MergeControl, MergeError, MergeOptions, MergeRequest, merge_files};
use parquet::{
    data_type::{Int64Type, Int96, Int96Type},
    file::writer::SerializedFileWriter,
    schema::parser::parse_message_type,
};
use serde::Deserialize;

use crate::merge_files::{Lab, options};

#[derive(Deserialize)]
struct Case {
    name: String,
    inputs: Vec<PathBuf>,
}

/// Runs a script of `tests/writers` and gives what it said when it found something.
fn python(script: &str, folder: &Path) -> Result<(), String> {
    let python = std::env::var_os("GIGAMERGE_TEST_PYTHON").expect(
        "GIGAMERGE_TEST_PYTHON is not set: run the tests through tests/run, which makes a Python with all writers",
    );
    let scripts = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/writers");
    let output = Command::new(python)
        .arg(scripts.join(script))
        .arg(folder)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("the script runs");
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr))
}

#[test]
fn files_of_every_writer_keep_their_rows_and_types_alone_and_together() {
    let folder = tempfile::tempdir().unwrap();
    python("make.py", folder.path()).unwrap();
    let cases = std::fs::read(folder.path().join("cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&cases).unwrap();
    assert!(cases.len() > 10);
    let mut copied = Vec::new();
    for case in cases {
        let request = MergeRequest {
            inputs: case.inputs,
            output: folder.path().join(format!("{}.out.parquet", case.name)),
            scratch: folder.path().to_owned(),
            // The last file of each writer has row groups of a size that is copied undecoded.
            options: MergeOptions {
                row_group_rows: 400,
                ..options()
            },
        };
        let report = merge_files(&request, &MergeControl::default())
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        if report.copied_row_group_count > 0 {
            copied.push(case.name);
        }
    }
    for writer in ["pyarrow_nested", "polars"] {
        assert!(copied.iter().any(|name| name == writer), "{copied:?}");
    }
    if let Err(found) = python("compare.py", folder.path()) {
        panic!("{found}");
    }
}

/// A file with one INT96 timestamp: nanoseconds of a Julian day.
fn int96_file(nanoseconds: u32, day: u32) -> Vec<u8> {
    let schema = "message m { required int64 __timestamp; required int96 seen; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<Int64Type>()
        .write_batch(&[1], None, None)
        .unwrap();
    column.close().unwrap();
    let mut value = Int96::new();
    value.set_data(nanoseconds, 0, day);
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<Int96Type>()
        .write_batch(&[value], None, None)
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn a_timestamp_that_no_type_holds_is_refused_and_not_changed() {
    const YEAR_9999: u32 = 5_373_484;
    let mut lab = Lab::new();
    lab.add_bytes(&int96_file(1000, YEAR_9999));
    lab.merge(&options()).unwrap();
    std::fs::remove_file(lab.output()).unwrap();
    let path = lab.add_bytes(&int96_file(1001, YEAR_9999));
    match lab.merge(&options()) {
        Err(MergeError::BadInputs(bad)) => {
            assert_eq!((bad.len(), &bad[0].path), (1, &path));
            assert!(bad[0].reason.contains("\"seen\""), "{}", bad[0].reason);
        }
        other => panic!("{other:?}"),
    }
}
