//! INSIDE-TABLE, for what is opened: a path is walked without following any link, so that who may
//! write into a table's folder cannot lead us out of it, not even between a look and the use.
//!
//! Paths are to be given as `canonicalize` gives them as far as their owner decides where they
//! lead (a layer's root, a table's folder); what comes behind is walked as it is.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};

/// Opens a file for reading. A pipe does not make it wait.
pub fn open(path: &Path) -> io::Result<File> {
    walk(path, OFlags::RDONLY | OFlags::NONBLOCK).map(File::from)
}

/// Opens a folder, to work on the names in it.
pub fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    walk(path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Whether an open failed because of a link.
pub fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

fn walk(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    let opened = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    match opened {
        Ok(opened) => Ok(opened),
        // Kernels before 5.6 and some sandboxes do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => {
            if fs::canonicalize(path)? != path {
                return Err(Errno::LOOP.into());
            }
            Ok(openat(CWD, path, flags | OFlags::NOFOLLOW, Mode::empty())?)
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_link_is_followed_at_any_place_of_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let inside = root.join("a/b");
        fs::create_dir_all(&inside).unwrap();
        fs::write(inside.join("file"), "text").unwrap();
        symlink(&inside, root.join("link")).unwrap();
        symlink(inside.join("file"), inside.join("other")).unwrap();
        assert!(open(&inside.join("file")).is_ok() && open_folder(&inside).is_ok());
        for path in ["link/file", "a/b/other"] {
            let error = open(&root.join(path)).unwrap_err();
            assert!(is_link(&error), "{path}: {error}");
        }
        assert!(open_folder(&root.join("link")).is_err());
        let absent = open(&inside.join("absent")).unwrap_err();
        assert!(absent.kind() == io::ErrorKind::NotFound && !is_link(&absent));
    }
}
