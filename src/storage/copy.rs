//! Copies whose bytes are compared with the original's before anybody relies on them.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use rustix::fs::{Advice, fadvise};

use super::{StorageError, create_new};
use crate::no_links;

/// What is held of each file at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// What became of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// The copy is durable and equal.
    Done,
    /// The caller did not want it any more.
    Stopped,
}

/// Copies a file to a new name, makes the copy durable, reads it again from the disk where the system
/// allows that, and compares it with the original. `is_stopped` is asked between pieces.
pub fn copy_checked(
    from: &Path,
    to: &Path,
    is_stopped: &dyn Fn() -> bool,
) -> Result<Copied, StorageError> {
    let of_source = |source: io::Error| {
        if no_links::is_link(&source) {
            StorageError::Outside {
                path: from.to_owned(),
            }
        } else {
            StorageError::Io {
                path: from.to_owned(),
                source,
            }
        }
    };
    let of_copy = |source| StorageError::Io {
        path: to.to_owned(),
        source,
    };
    let mut source = no_links::open(from).map_err(of_source)?;
    let size_bytes = source.metadata().map_err(of_source)?.len();
    let mut copy = create_new(to).map_err(of_copy)?;
    let mut piece = vec![0; CHUNK_BYTES];
    loop {
        if is_stopped() {
            return Ok(Copied::Stopped);
        }
        let length = read_full(&mut source, &mut piece).map_err(of_source)?;
        copy.write_all(&piece[..length]).map_err(of_copy)?;
        if length < CHUNK_BYTES {
            break;
        }
    }
    copy.sync_all().map_err(of_copy)?;
    // What is in memory only is no proof of what the disk has. It is an advice: without it the
    // comparison still covers the way there.
    let _ = fadvise(&copy, 0, None, Advice::DontNeed);
    drop(copy);

    let mut source = no_links::open(from).map_err(of_source)?;
    let mut copy = File::open(to).map_err(of_copy)?;
    let mut copied = vec![0; CHUNK_BYTES];
    let mut compared_bytes = 0_u64;
    loop {
        if is_stopped() {
            return Ok(Copied::Stopped);
        }
        let length = read_full(&mut source, &mut piece).map_err(of_source)?;
        let of_length = read_full(&mut copy, &mut copied).map_err(of_copy)?;
        if piece[..length] != copied[..of_length] {
            return Err(StorageError::Differs {
                path: to.to_owned(),
                source_path: from.to_owned(),
            });
        }
        compared_bytes += length as u64;
        if length < CHUNK_BYTES {
            break;
        }
    }
    let size_after = fs::metadata(to).map_err(of_copy)?.len();
    if compared_bytes != size_bytes || size_after != size_bytes {
        return Err(StorageError::Differs {
            path: to.to_owned(),
            source_path: from.to_owned(),
        });
    }
    Ok(Copied::Done)
}

/// Fills the piece unless the file ends before.
fn read_full(file: &mut File, piece: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < piece.len() {
        match file.read(&mut piece[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_copy_has_the_bytes_of_its_original_whatever_their_number() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        for (place, size) in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES - 7]
            .into_iter()
            .enumerate()
        {
            let bytes: Vec<u8> = (0..=250).cycle().take(size).collect();
            let (from, to) = (
                root.join(format!("{place}")),
                root.join(format!("{place}c")),
            );
            fs::write(&from, &bytes).unwrap();
            let copied = copy_checked(&from, &to, &|| false).unwrap();
            assert_eq!(copied, Copied::Done);
            assert!(fs::read(&to).unwrap() == bytes);
            let again = copy_checked(&from, &to, &|| false);
            assert!(again.is_err(), "an existing file is not overwritten");
        }
    }

    #[test]
    fn a_copy_that_is_not_what_was_written_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let (from, to) = (root.join("from"), root.join("to"));
        fs::write(&from, vec![7; 3 * CHUNK_BYTES]).unwrap();
        // Between the copy and the comparison somebody changes the original.
        let looks = Cell::new(0);
        let change = || {
            looks.set(looks.get() + 1);
            if looks.get() == 5 {
                fs::write(&from, vec![8; 3 * CHUNK_BYTES]).unwrap();
            }
            false
        };
        let copied = copy_checked(&from, &to, &change);
        assert!(
            matches!(copied, Err(StorageError::Differs { .. })),
            "{copied:?}"
        );
    }

    #[test]
    fn a_copy_that_is_stopped_ends_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        fs::write(root.join("from"), "text").unwrap();
        let copied = copy_checked(&root.join("from"), &root.join("to"), &|| true);
        assert_eq!(copied.unwrap(), Copied::Stopped);
    }
}
