//! Copies of files from elsewhere: what they are, where they go, how they come in whole.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use chrono::{DateTime, Utc};

use super::{
    importer::Source,
    ledger::{ContentHash, SourceStamp},
};
use crate::{
    model::{IndexEntry, ModelError, PartitionDir},
    storage::create_new,
};

pub(super) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub(super) fn stamp(file: &Path) -> Result<SourceStamp, String> {
    let meta = fs::metadata(file).map_err(text)?;
    let modified = meta.modified().unwrap_or_else(|_| SystemTime::now());
    Ok(SourceStamp {
        file: file.to_owned(),
        size_bytes: meta.len(),
        modified_ns: modified
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos(),
    })
}

/// `date=2024-01-15/hour=14` of a time in nanoseconds, UTC.
pub(super) fn partition_of(time_ns: i64) -> Result<PartitionDir, ModelError> {
    let time = DateTime::<Utc>::from_timestamp_nanos(time_ns);
    PartitionDir::parse(&time.format("date=%Y-%m-%d/hour=%H").to_string())
}

/// Copies a file to where it waits for its name, durably, and checks that it is what was read before.
pub(super) fn stage(source: &Source, entry: &IndexEntry, target: &Path) -> Result<(), String> {
    let from = File::open(&source.file).map_err(text)?;
    // What an import that was cut off left.
    let _ = fs::remove_file(target);
    let mut copy = create_new(target).map_err(|error| format!("{}: {error}", target.display()))?;
    let mut size_bytes = 0;
    let content = ContentHash::of(&from, |piece| {
        size_bytes += piece.len() as u64;
        copy.write_all(piece)
    })
    .map_err(text)?;
    copy.sync_all().map_err(text)?;
    let is_same = source
        .read
        .as_ref()
        .is_none_or(|(_, read)| *read == content);
    if is_same && size_bytes == entry.size_bytes {
        Ok(())
    } else {
        Err("it changed while it was read; import it when it is complete".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_the_hour_of_the_time_in_utc() {
        for (time_ns, dir) in [
            (1_705_327_200_000_000_000, "date=2024-01-15/hour=14"),
            (1_705_327_199_999_999_999, "date=2024-01-15/hour=13"),
            (-1, "date=1969-12-31/hour=23"),
        ] {
            assert_eq!(partition_of(time_ns).unwrap().as_str(), dir);
        }
    }
}
