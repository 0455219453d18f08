//! The record of what was imported into one table of one layer: `<root>/<db>/<table>/imports/`.
//!
//! An imported file is merged away soon, and then neither index nor disk knows its name any
//! more. Without this record a second run would import its rows a second time.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{ImportError, decide::Recorded, io_at};
use crate::model::DataPath;

/// A file outside of the lake as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SourceStamp {
    pub(super) file: PathBuf,
    pub(super) size_bytes: u64,
    pub(super) modified_ns: u128,
}

#[derive(Debug)]
pub(super) struct Ledger {
    folder: PathBuf,
    /// `None` for a look.
    file: Option<File>,
    /// Keeps a second import of this table away.
    _lock: Option<File>,
    states: HashMap<String, Recorded>,
    contents: HashMap<SourceStamp, Uuid>,
}

impl Ledger {
    /// Reads what is recorded in `folder`; to work also makes and locks it.
    pub(super) fn open(folder: PathBuf, to_work: bool) -> Result<Self, ImportError> {
        let path = folder.join("ledger.jsonl");
        let mut lock = None;
        let mut file = None;
        if to_work {
            fs::create_dir_all(&folder).map_err(io_at(&folder))?;
            lock = Some(lock_file(&folder.join("lock"))?);
            file = Some(
                File::options()
                    .create(true)
                    .append(true)
                    .mode(0o640)
                    .open(&path)
                    .map_err(io_at(&path))?,
            );
            sync_folder(&folder)?;
            folder.parent().map(sync_folder).transpose()?;
        }
        let mut text = Vec::new();
        match File::open(&path).and_then(|mut file| file.read_to_end(&mut text)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => drop(result.map_err(io_at(&path))?),
        }
        let mut ledger = Self {
            folder,
            file,
            _lock: lock,
            states: HashMap::new(),
            contents: HashMap::new(),
        };
        for line in text.split(|byte| *byte == b'\n') {
            // A line that a crash cut off stands for a step that was not taken.
            if let Ok(record) = serde_json::from_slice::<Value>(line) {
                ledger.learn(&record);
            }
        }
        if text.last().is_some_and(|byte| *byte != b'\n') {
            ledger.append("\n")?;
        }
        Ok(ledger)
    }

    fn learn(&mut self, record: &Value) {
        let text = |key: &str| record[key].as_str();
        let (Some(path), Some(state)) = (text("path"), text("state")) else {
            return;
        };
        let state = match state {
            "begun" => Recorded::Begun,
            "registered" => Recorded::Registered,
            _ => return,
        };
        self.states.insert(path.to_owned(), state);
        if let Some(((file, size_bytes), (modified, content))) = text("from")
            .zip(record["size_bytes"].as_u64())
            .zip(text("modified_ns").zip(text("content")))
            && let (Ok(modified_ns), Ok(content)) = (modified.parse(), content.parse())
        {
            let stamp = SourceStamp {
                file: PathBuf::from(file),
                size_bytes,
                modified_ns,
            };
            self.contents.insert(stamp, content);
        }
    }

    pub(super) fn state(&self, path: &DataPath) -> Option<Recorded> {
        self.states.get(path.as_str()).copied()
    }

    /// The content of a file that was read by an earlier run and is unchanged since.
    pub(super) fn content(&self, stamp: &SourceStamp) -> Option<Uuid> {
        self.contents.get(stamp).copied()
    }

    /// Where the copy waits that will become `path`.
    pub(super) fn staged(&self, path: &DataPath) -> PathBuf {
        let name = Uuid::new_v5(&Uuid::NAMESPACE_OID, path.as_str().as_bytes());
        self.folder.join(format!("{}.parquet", name.simple()))
    }

    /// Copies are complete and durable, and about to be published.
    pub(super) fn begin(&mut self, paths: &[&DataPath]) -> Result<(), ImportError> {
        sync_folder(&self.folder)?;
        let lines = paths
            .iter()
            .map(|path| json!({"state": "begun", "path": path.as_str()}));
        self.record(&lines.collect::<Vec<_>>())
    }

    /// The index names these files.
    pub(super) fn finish(
        &mut self,
        files: &[(&DataPath, Option<(SourceStamp, Uuid)>)],
    ) -> Result<(), ImportError> {
        let lines = files.iter().map(|(path, source)| {
            let mut line = json!({"state": "registered", "path": path.as_str()});
            // A name that is not text is only read again.
            if let Some((stamp, content)) = source
                && let Some(file) = stamp.file.to_str()
            {
                line["from"] = json!(file);
                line["size_bytes"] = json!(stamp.size_bytes);
                line["modified_ns"] = json!(stamp.modified_ns.to_string());
                line["content"] = json!(content.to_string());
            }
            line
        });
        self.record(&lines.collect::<Vec<_>>())
    }

    fn record(&mut self, records: &[Value]) -> Result<(), ImportError> {
        let mut text = String::new();
        for record in records {
            text.push_str(&record.to_string());
            text.push('\n');
        }
        self.append(&text)?;
        for record in records {
            self.learn(record);
        }
        Ok(())
    }

    fn append(&mut self, text: &str) -> Result<(), ImportError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_data())
            .map_err(io_at(&self.folder.join("ledger.jsonl")))
    }
}

fn sync_folder(folder: &Path) -> Result<(), ImportError> {
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(io_at(folder))
}

fn lock_file(path: &Path) -> Result<File, ImportError> {
    let mut options = File::options();
    options.create(true).truncate(false).write(true).mode(0o640);
    let file = options.open(path).map_err(io_at(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(ImportError::Busy {
            path: path.to_owned(),
        }),
        Err(fs::TryLockError::Error(error)) => Err(io_at(path)(error)),
    }
}

/// Tells file contents from one another: a chain of SHA-1 hashes over pieces of a mebibyte.
#[derive(Debug)]
pub(super) struct ContentHash(Uuid);

impl ContentHash {
    pub(super) const PIECE_BYTES: usize = 1 << 20;

    pub(super) fn new() -> Self {
        Self(Uuid::NAMESPACE_OID)
    }

    /// Every piece but the last is `PIECE_BYTES` long.
    fn update(&mut self, piece: &[u8]) {
        self.0 = Uuid::new_v5(&self.0, piece);
    }

    /// Reads `file` to its end, gives every piece to `write`, and says what its content is.
    pub(super) fn of(
        mut file: &File,
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<Uuid> {
        let mut hash = Self::new();
        let mut piece = Vec::with_capacity(Self::PIECE_BYTES);
        loop {
            piece.clear();
            let limit = Self::PIECE_BYTES as u64;
            if Read::by_ref(&mut file)
                .take(limit)
                .read_to_end(&mut piece)?
                == 0
            {
                return Ok(hash.0);
            }
            write(&piece)?;
            hash.update(&piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_known_again_even_after_a_line_that_was_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let imports = folder.path().join("imports");
        let paths = ["a/x.1.parquet", "a/y.1.parquet", "a/z.1.parquet"]
            .map(|path| DataPath::parse(path).unwrap());
        let stamp = SourceStamp {
            file: PathBuf::from("/in/x"),
            size_bytes: 7,
            modified_ns: u128::from(u64::MAX) + 5,
        };
        let mut ledger = Ledger::open(imports.clone(), true).unwrap();
        ledger.begin(&[&paths[0], &paths[1]]).unwrap();
        let source = Some((stamp.clone(), Uuid::NAMESPACE_DNS));
        ledger.finish(&[(&paths[0], source)]).unwrap();
        assert!(matches!(
            Ledger::open(imports.clone(), true),
            Err(ImportError::Busy { .. })
        ));
        drop(ledger);
        let file = imports.join("ledger.jsonl");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{text}{{\"state\":\"beg")).unwrap();
        let mut ledger = Ledger::open(imports.clone(), true).unwrap();
        ledger.begin(&[&paths[2]]).unwrap();
        drop(ledger);
        let ledger = Ledger::open(imports, false).unwrap();
        assert_eq!(ledger.state(&paths[0]), Some(Recorded::Registered));
        assert_eq!(ledger.state(&paths[1]), Some(Recorded::Begun));
        assert_eq!(ledger.state(&paths[2]), Some(Recorded::Begun));
        assert_eq!(ledger.content(&stamp), Some(Uuid::NAMESPACE_DNS));
    }

    #[test]
    fn contents_that_differ_anywhere_have_different_hashes() {
        let folder = tempfile::tempdir().unwrap();
        let hash = |bytes: &[u8]| {
            let path = folder.path().join("f");
            fs::write(&path, bytes).unwrap();
            ContentHash::of(&File::open(path).unwrap(), |_| Ok(())).unwrap()
        };
        let mut bytes = vec![7; ContentHash::PIECE_BYTES + 10];
        let first = hash(&bytes);
        assert_eq!(hash(&bytes), first);
        bytes[3] = 8;
        assert_ne!(hash(&bytes), first);
        bytes[3] = 7;
        bytes.push(7);
        assert_ne!(hash(&bytes), first);
    }
}
