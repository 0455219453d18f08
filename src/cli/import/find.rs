//! Which files there are below the folders that were named, and where each belongs.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

use super::{ImportError, io_at};
use crate::{
    model::{DataPath, LayerName, PartitionDir, TableRef},
    storage::{Layer, Layers},
};

/// Folders may be nested this deep.
const DEPTH_MAX: usize = 32;
/// More files are not one import.
const FILES_MAX: usize = 10_000_000;

/// A file that may be imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Absolute, links resolved.
    pub(super) file: PathBuf,
    pub(super) layer: LayerName,
    pub(super) place: Place,
}

/// Where a file lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// In the layer's folder of the table: it stays where it is.
    Inside(DataPath),
    /// Elsewhere: it is copied. Its own `key=value` folders, if it has any.
    Outside(Option<PartitionDir>),
}

pub(super) fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "parquet")
}

/// Every wanted file below `roots`, each once, in order; files that are named themselves count too.
/// Links below are not followed; hidden files and folders do not count.
pub(super) fn files(
    roots: &[PathBuf],
    skip: &[PathBuf],
    is_wanted: impl Fn(&Path) -> bool,
) -> Result<BTreeSet<PathBuf>, ImportError> {
    let mut files = BTreeSet::new();
    let mut folders = Vec::new();
    for root in roots {
        let real = fs::canonicalize(root).map_err(io_at(root))?;
        if real.is_dir() {
            folders.push((real, 0));
        } else {
            files.insert(real);
        }
    }
    while let Some((folder, depth)) = folders.pop() {
        if skip.contains(&folder) {
            continue;
        }
        if depth > DEPTH_MAX || files.len() > FILES_MAX {
            return Err(ImportError::TooMuch { folder });
        }
        for entry in fs::read_dir(&folder).map_err(io_at(&folder))? {
            let entry = entry.map_err(io_at(&folder))?;
            let kind = entry.file_type().map_err(io_at(&entry.path()))?;
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
            } else if kind.is_dir() {
                folders.push((path, depth + 1));
            } else if kind.is_file() && is_wanted(&path) {
                files.insert(path);
            }
        }
    }
    Ok(files)
}

/// Folders of the table whose files are not finished, or are ours.
pub(super) fn unfinished(layers: &Layers, table: &TableRef) -> Vec<PathBuf> {
    layers
        .iter()
        .filter_map(|layer| fs::canonicalize(layer.imports_folder(table).parent()?).ok())
        .flat_map(|folder| ["tmp", "imports"].map(|name| folder.join(name)))
        .collect()
}

/// Where a file belongs, or why it cannot be imported.
pub(super) fn place(
    file: PathBuf,
    layers: &Layers,
    wanted: Option<&Layer>,
    table: &TableRef,
) -> Result<Found, (PathBuf, String)> {
    for layer in layers.iter() {
        let Ok(root) = fs::canonicalize(layer.root()) else {
            continue;
        };
        if !file.starts_with(&root) {
            continue;
        }
        let data = root.join(table.database()).join(table.table()).join("data");
        let Some(path) = file.strip_prefix(&data).ok().and_then(Path::to_str) else {
            let reason = format!(
                "it lies in layer {:?}, but not in the folder of {table}; copy it out of the lake first",
                layer.name().as_str()
            );
            return Err((file, reason));
        };
        if let Some(wanted) = wanted
            && wanted.name() != layer.name()
        {
            let reason = format!(
                "it lies in layer {:?}; import it with --layer {}",
                layer.name().as_str(),
                layer.name()
            );
            return Err((file, reason));
        }
        return match DataPath::parse(path) {
            Ok(path) => Ok(Found {
                file,
                layer: layer.name().clone(),
                place: Place::Inside(path),
            }),
            Err(error) => Err((file, error.to_string())),
        };
    }
    let Some(layer) = wanted.or_else(|| layers.iter().next()) else {
        return Err((file, "no layer is configured".to_owned()));
    };
    // What a merge replaced may still lie there, and only its catalog knows.
    if file.with_file_name("metadata.json").exists() {
        let reason = "it lies in a lake with a catalog of its own (metadata.json); name that lake's root folder and add --from-catalog".to_owned();
        return Err((file, reason));
    }
    let dir = own_partition(&file);
    Ok(Found {
        layer: layer.name().clone(),
        place: Place::Outside(dir),
        file,
    })
}

/// The `key=value` folders right above a file.
fn own_partition(file: &Path) -> Option<PartitionDir> {
    let parents: Vec<_> = file.parent()?.components().collect();
    let is_pair = |part: &&str| {
        part.split_once('=')
            .is_some_and(|(key, value)| !key.is_empty() && !value.is_empty())
    };
    let mut parts: Vec<&str> = parents
        .iter()
        .rev()
        .map_while(|component| match component {
            Component::Normal(part) => part.to_str().filter(is_pair),
            _ => None,
        })
        .collect();
    parts.reverse();
    PartitionDir::parse(&parts.join("/")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_own_folders_are_kept_when_they_are_pairs() {
        for (file, dir) in [
            (
                "/in/date=2024-01-15/hour=14/x.parquet",
                Some("date=2024-01-15/hour=14"),
            ),
            ("/in/a=1/other/b=2/x.parquet", Some("b=2")),
            ("/in/a=/x.parquet", None),
            ("/in/x.parquet", None),
        ] {
            let found = own_partition(Path::new(file));
            assert_eq!(found.as_ref().map(PartitionDir::as_str), dir, "{file}");
        }
    }

    #[test]
    fn links_hidden_files_and_other_kinds_are_passed_over_and_overlapping_folders_count_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("in");
        fs::create_dir_all(root.join("a=1")).unwrap();
        fs::create_dir_all(root.join("tmp")).unwrap();
        for name in ["a=1/x.parquet", "a=1/.y.parquet", "z.csv", "tmp/t.parquet"] {
            fs::write(root.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink(&root, root.join("loop")).unwrap();
        std::os::unix::fs::symlink(root.join("z.csv"), root.join("l.parquet")).unwrap();
        let real = fs::canonicalize(&root).unwrap();
        let found = files(
            &[root.clone(), root.join("a=1")],
            &[real.join("tmp")],
            is_parquet,
        )
        .unwrap();
        assert_eq!(found, BTreeSet::from([real.join("a=1/x.parquet")]));
    }
}
