//! Finds partitions and files that nobody registered.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    catalog::CatalogError,
    model::{DataPath, PartitionDir, TableRef},
};

use super::metadata_file;

/// Partition folders may be nested this deep below `data`.
const DEPTH_MAX: usize = 8;

/// A folder of a table's `data` that may hold files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundPartition {
    pub(super) table: TableRef,
    pub(super) dir: PartitionDir,
    pub(super) folder: PathBuf,
    pub(super) modified: Option<SystemTime>,
}

/// One thing in a partition folder that is not `metadata.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FoundFile {
    /// Named as the contract says.
    Data(DataPath),
    /// Left alone, with the reason.
    Other(PathBuf, String),
}

/// Every folder below `<root>/<db>/<table>/data`, without following links. Folders that
/// cannot be read or named are passed over: they come up again when they can.
pub(super) fn partitions(root: &Path) -> Result<Vec<FoundPartition>, CatalogError> {
    let mut found = Vec::new();
    let databases = fs::read_dir(root).map_err(|source| CatalogError::Io {
        path: root.to_owned(),
        source,
    })?;
    for database in databases.flatten().filter(is_folder) {
        for table in fs::read_dir(database.path())
            .into_iter()
            .flatten()
            .flatten()
            .filter(is_folder)
        {
            let names = (database.file_name(), table.file_name());
            let (Some(database), Some(name)) = (names.0.to_str(), names.1.to_str()) else {
                continue;
            };
            let data = table.path().join("data");
            if fs::symlink_metadata(&data).is_ok_and(|meta| meta.is_dir())
                && let Ok(table) = TableRef::new(database, name)
            {
                walk(&table, &data, "", DEPTH_MAX, &mut found);
            }
        }
    }
    found.sort_by(|a, b| (&a.table, &a.dir).cmp(&(&b.table, &b.dir)));
    Ok(found)
}

/// The folders at and below a first folder of a table, without following links.
pub(super) fn partitions_below(
    table: &TableRef,
    data: &Path,
    first_folder: &str,
) -> Vec<FoundPartition> {
    let mut found = Vec::new();
    let folder = data.join(first_folder);
    let meta = fs::symlink_metadata(&folder);
    if let (Ok(dir), Ok(meta)) = (PartitionDir::parse(first_folder), meta)
        && meta.is_dir()
    {
        walk(table, &folder, first_folder, DEPTH_MAX - 1, &mut found);
        found.push(FoundPartition {
            table: table.clone(),
            dir,
            folder,
            modified: meta.modified().ok(),
        });
    }
    found
}

fn walk(table: &TableRef, folder: &Path, dir: &str, depth: usize, found: &mut Vec<FoundPartition>) {
    for entry in fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(is_folder)
    {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let dir = if dir.is_empty() {
            name.to_owned()
        } else {
            format!("{dir}/{name}")
        };
        let Ok(partition) = PartitionDir::parse(&dir) else {
            continue;
        };
        if depth > 1 {
            walk(table, &entry.path(), &dir, depth - 1, found);
        }
        found.push(FoundPartition {
            table: table.clone(),
            dir: partition,
            folder: entry.path(),
            modified: entry.metadata().and_then(|meta| meta.modified()).ok(),
        });
    }
}

fn is_folder(entry: &fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
        && !entry.file_name().to_string_lossy().starts_with('.')
}

/// What lies in one partition folder, sorted by name. Hidden files and `metadata.json` do not count.
pub(super) fn files(partition: &FoundPartition) -> Result<Vec<FoundFile>, CatalogError> {
    let io = |source| CatalogError::Io {
        path: partition.folder.clone(),
        source,
    };
    let mut found = Vec::new();
    let mut entries = fs::read_dir(&partition.folder)
        .map_err(io)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(io)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let kind = entry.file_type().map_err(io)?;
        let other = |reason: &str| FoundFile::Other(entry.path(), reason.to_owned());
        match name.to_str() {
            _ if kind.is_dir() => {}
            Some(name) if name == metadata_file::FILE_NAME || name.starts_with('.') => {}
            _ if !kind.is_file() => found.push(other("it is not a plain file")),
            None => found.push(other("its name is not UTF-8")),
            Some(name) => found.push(
                match DataPath::parse(&format!("{}/{name}", partition.dir)) {
                    Ok(path) => FoundFile::Data(path),
                    Err(_) => other("its name is not <name>.<iteration>.parquet"),
                },
            ),
        }
    }
    Ok(found)
}
