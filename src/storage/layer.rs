//! One `fs` layer.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, ErrorKind},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, RenameFlags, fsync, linkat, renameat_with, unlinkat},
    io::Errno,
};

use super::{StorageError, Workspace, create_new};
use crate::{
    model::{DataPath, LayerName, TableRef},
    no_links,
};

/// A root folder with the contract's layout below it.
#[derive(Debug, Clone)]
pub struct Layer {
    name: LayerName,
    root: PathBuf,
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::Io { path, source }
}

impl Layer {
    pub(super) fn new(name: LayerName, root: PathBuf) -> Self {
        Self { name, root }
    }

    /// Its name.
    pub fn name(&self) -> &LayerName {
        &self.name
    }

    /// Its root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a table's folders lie.
    pub fn table_folder(&self, table: &TableRef) -> PathBuf {
        self.root.join(table.database()).join(table.table())
    }

    /// Where a file lies, whether or not it is there.
    pub fn data_file(&self, table: &TableRef, path: &DataPath) -> PathBuf {
        self.table_folder(table).join("data").join(path.as_str())
    }

    /// Where a file lies, after a look that no link below its table's folder leads to it. Links
    /// above are followed in the path that is returned. A file that is not there is fine.
    pub fn checked_file(&self, table: &TableRef, path: &DataPath) -> Result<PathBuf, StorageError> {
        let named = self.data_file(table, path);
        let outside = || StorageError::Outside {
            path: named.clone(),
        };
        let table_folder = match fs::canonicalize(self.table_folder(table)) {
            Ok(folder) => folder,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(named),
            Err(source) => return Err(io_at(&named)(source)),
        };
        let file = table_folder.join("data").join(path.as_str());
        let folder = file.parent().unwrap_or(&table_folder);
        match fs::canonicalize(folder) {
            Ok(real) if real != folder => return Err(outside()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(io_at(&file)(source)),
        }
        match fs::symlink_metadata(&file) {
            Ok(meta) if !meta.is_file() => Err(outside()),
            Ok(_) => Ok(file),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(file),
            Err(source) => Err(io_at(&file)(source)),
        }
    }

    /// Where copies of imported files wait for their name, and what was imported is recorded.
    pub fn imports_folder(&self, table: &TableRef) -> PathBuf {
        self.table_folder(table).join("imports")
    }

    /// A private folder for one piece of work, in the table's `tmp`.
    pub fn workspace(&self, table: &TableRef) -> Result<Workspace, StorageError> {
        let tmp = self.table_folder(table).join("tmp");
        if fs::symlink_metadata(&tmp).is_ok_and(|meta| meta.is_symlink()) {
            return Err(StorageError::Outside { path: tmp });
        }
        Workspace::create(&tmp)
    }

    /// Gives finished bytes their name: fsync, rename without overwriting, fsync the folder.
    /// Afterwards the file survives a power cut.
    pub fn publish(
        &self,
        staged: &Path,
        table: &TableRef,
        path: &DataPath,
    ) -> Result<(), StorageError> {
        sync(staged)?;
        rename_new(staged, &self.prepare_target(table, path)?)
    }

    /// Gives a published file a second name, without copying its bytes where the file system can.
    pub fn publish_link(
        &self,
        source: &Path,
        table: &TableRef,
        path: &DataPath,
    ) -> Result<(), StorageError> {
        let mut bytes = no_links::open(source).map_err(failed_at(source))?;
        // Its writer may never have asked for its bytes to be durable.
        bytes.sync_all().map_err(io_at(source))?;
        let target = self.prepare_target(table, path)?;
        // The file that is open, whatever its name leads to by now.
        let opened = format!("/proc/self/fd/{}", bytes.as_raw_fd());
        match target.link(Path::new(&opened), AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => target.sync_name(),
            Err(StorageError::Exists { path }) => Err(StorageError::Exists { path }),
            Err(_) => {
                let workspace = self.workspace(table)?;
                let copy = workspace.dir().join("copy");
                let mut out = create_new(&copy).map_err(io_at(&copy))?;
                io::copy(&mut bytes, &mut out).map_err(io_at(&copy))?;
                self.publish(&copy, table, path)
            }
        }
    }

    fn prepare_target(&self, table: &TableRef, path: &DataPath) -> Result<Target, StorageError> {
        self.make_folder(table, path)?;
        let file = self.checked_file(table, path)?;
        let folder = file.parent().unwrap_or(&file);
        let opened = no_links::open_folder(folder).map_err(failed_at(&file))?;
        Ok(Target::new(opened, file))
    }

    /// Makes the folders of a file below the table's `data`, one after the other: none of them may be a
    /// link, for it would be followed.
    fn make_folder(&self, table: &TableRef, path: &DataPath) -> Result<(), StorageError> {
        let mut folder = self.table_folder(table).join("data");
        fs::create_dir_all(&folder).map_err(io_at(&folder))?;
        for part in path.dir().as_str().split('/') {
            folder.push(part);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(io_at(&folder)(error));
                }
                _ => {}
            }
            let meta = fs::symlink_metadata(&folder).map_err(io_at(&folder))?;
            if !meta.is_dir() {
                return Err(StorageError::Outside { path: folder });
            }
        }
        Ok(())
    }

    /// Deletes a file's bytes; `false` when they were gone already.
    pub fn delete(&self, table: &TableRef, path: &DataPath) -> Result<bool, StorageError> {
        let file = self.checked_file(table, path)?;
        let removed = no_links::open_folder(file.parent().unwrap_or(&file))
            .and_then(|folder| Ok(unlinkat(&folder, path.file_name(), AtFlags::empty())?));
        match removed {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(source) => Err(failed_at(&file)(source)),
        }
    }

    /// Removes work folders of processes that are gone. Other programs' files in `tmp` stay.
    pub fn sweep_workspaces(&self) -> u64 {
        let folders = |path: &Path| {
            fs::read_dir(path)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
        };
        folders(&self.root)
            .flat_map(|database| folders(&database).collect::<Vec<_>>())
            .map(|table| Workspace::sweep(&table.join("tmp")))
            .sum()
    }
}

/// Gives finished bytes their name: fsync, rename without overwriting, fsync the folder.
/// Both must be on one file system.
pub fn publish_file(staged: &Path, target: &Path) -> Result<(), StorageError> {
    sync(staged)?;
    // A bare name lies in the current folder.
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let opened = File::open(folder).map_err(io_at(target))?;
    rename_new(staged, &Target::new(opened.into(), target.to_owned()))
}

/// A name in a folder that is open: whatever happens to the way there, it is the same folder.
struct Target {
    folder: OwnedFd,
    path: PathBuf,
}

impl Target {
    fn new(folder: OwnedFd, path: PathBuf) -> Self {
        Self { folder, path }
    }

    fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    fn link(&self, source: &Path, flags: AtFlags) -> Result<(), StorageError> {
        linkat(CWD, source, &self.folder, self.name(), flags).map_err(|errno| self.failed(errno))
    }

    fn failed(&self, errno: Errno) -> StorageError {
        match errno {
            Errno::EXIST => StorageError::Exists {
                path: self.path.clone(),
            },
            errno => io_at(&self.path)(errno.into()),
        }
    }

    /// Makes a name durable that was given just now; where that fails it is taken back, so that
    /// whoever is told of the failure need not look for it.
    fn sync_name(&self) -> Result<(), StorageError> {
        fsync(&self.folder).map_err(|errno| {
            let _ = unlinkat(&self.folder, self.name(), AtFlags::empty());
            io_at(&self.path)(errno.into())
        })
    }
}

/// Renames without overwriting, and makes the new name durable.
fn rename_new(staged: &Path, target: &Target) -> Result<(), StorageError> {
    let flags = RenameFlags::NOREPLACE;
    match renameat_with(CWD, staged, &target.folder, target.name(), flags) {
        Ok(()) => {}
        // Some network file systems cannot rename without overwriting; a link cannot overwrite either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            target.link(staged, AtFlags::empty())?;
            fs::remove_file(staged).map_err(io_at(staged))?;
        }
        Err(errno) => return Err(target.failed(errno)),
    }
    target.sync_name()
}

/// A link on the way is an error of its own.
fn failed_at(path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| {
        if no_links::is_link(&source) {
            StorageError::Outside { path }
        } else {
            StorageError::Io { path, source }
        }
    }
}

fn sync(path: &Path) -> Result<(), StorageError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(io_at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> (tempfile::TempDir, Layer, TableRef, DataPath) {
        let root = tempfile::tempdir().unwrap();
        let layer = Layer::new(LayerName::parse("hot").unwrap(), root.path().to_owned());
        let table = TableRef::new("db", "cpu").unwrap();
        let path = DataPath::parse("date=2024-01-15/hour=14/x.2.parquet").unwrap();
        (root, layer, table, path)
    }

    #[test]
    fn a_published_file_is_never_overwritten() {
        let (_root, layer, table, path) = setup();
        let workspace = layer.workspace(&table).unwrap();
        for (text, is_first) in [("one", true), ("two", false)] {
            let staged = workspace.dir().join("out");
            fs::write(&staged, text).unwrap();
            let published = layer.publish(&staged, &table, &path);
            assert_eq!(published.is_ok(), is_first, "{published:?}");
        }
        assert_eq!(
            fs::read_to_string(layer.data_file(&table, &path)).unwrap(),
            "one"
        );
        let again = layer.publish_link(&layer.data_file(&table, &path), &table, &path);
        assert!(
            matches!(again, Err(StorageError::Exists { .. })),
            "{again:?}"
        );
    }

    #[test]
    fn a_link_that_leads_out_of_the_table_is_not_followed() {
        let (root, layer, table, path) = setup();
        let elsewhere = root.path().join("elsewhere");
        fs::create_dir_all(&elsewhere).unwrap();
        fs::write(elsewhere.join("x.2.parquet"), "precious").unwrap();
        let folder = root.path().join("db/cpu/data/date=2024-01-15");
        fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(&elsewhere, folder.join("hour=14")).unwrap();
        assert!(matches!(
            layer.delete(&table, &path),
            Err(StorageError::Outside { .. })
        ));
        fs::remove_file(folder.join("hour=14")).unwrap();
        fs::create_dir(folder.join("hour=14")).unwrap();
        std::os::unix::fs::symlink(
            elsewhere.join("x.2.parquet"),
            folder.join("hour=14/x.2.parquet"),
        )
        .unwrap();
        assert!(matches!(
            layer.delete(&table, &path),
            Err(StorageError::Outside { .. })
        ));
        assert!(elsewhere.join("x.2.parquet").exists());
    }

    #[test]
    fn only_work_folders_of_dead_processes_are_swept() {
        let (root, layer, table, _) = setup();
        let living = layer.workspace(&table).unwrap();
        let tmp = root.path().join("db/cpu/tmp");
        let dead = tmp.join("gigamerge-0000");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("lock"), "").unwrap();
        fs::write(dead.join("half.parquet"), "half").unwrap();
        fs::write(tmp.join("of-a-writer.parquet"), "half").unwrap();
        assert_eq!(layer.sweep_workspaces(), 1);
        assert!(
            !dead.exists() && living.dir().exists() && tmp.join("of-a-writer.parquet").exists()
        );
        let dir = living.dir().to_owned();
        drop(living);
        assert!(!dir.exists());
    }
}
