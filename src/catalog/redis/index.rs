//! The index: what files there are.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    RedisCatalog,
    connection::Connection,
    keys, scripts,
    wire::{self, EntryCommand},
};
use crate::{
    catalog::CatalogError,
    model::{DataPath, Folder, IndexEntry, PartitionDir, TableRef},
};

/// Entries of one call of `patch_index`: Redis answers nobody else meanwhile.
const BATCH_ENTRIES_MAX: usize = 2000;
/// Entries of the first call, before it is known how fast the server is.
const BATCH_ENTRIES_FIRST: usize = 1000;
/// However slow the server is.
const BATCH_ENTRIES_MIN: usize = 100;
/// Bytes of entries in one call; the last one may go beyond.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// After a call that took longer, the next one is smaller. Redis may be kept from others for
/// twice as long.
const BATCH_TIME_LONG: Duration = Duration::from_millis(25);
/// After a call that was faster, the next one may be larger.
const BATCH_TIME_SHORT: Duration = Duration::from_millis(10);
/// Entries that are taken in one step on request.
const ATOMIC_ENTRIES_MAX: usize = 100_000;
/// Fields that one `HSCAN` or `HMGET` asks for.
const FIELDS_MAX: usize = 1000;
/// A hash's field and its value.
pub(super) type Field = (Vec<u8>, Vec<u8>);

/// Rounds of one `HSCAN`.
pub(super) const HSCAN_ROUNDS_MAX: usize = 1_000_000;

impl RedisCatalog {
    pub(super) async fn list_tables(&self) -> Result<Vec<TableRef>, CatalogError> {
        let keys = self.scan("listing tables", keys::FOLDERS_PATTERN).await?;
        let mut tables = Vec::with_capacity(keys.len());
        for key in &keys {
            match keys::parse_folders(key) {
                Some(table) => tables.push(table),
                None => self.reports.warn_once(key, "the key names no usable table"),
            }
        }
        tables.sort_unstable();
        Ok(tables)
    }

    /// Every field of a hash; one may come twice.
    pub(super) async fn fields(
        &self,
        context: &str,
        key: &str,
    ) -> Result<Vec<Field>, CatalogError> {
        let mut found = Vec::new();
        let mut cursor = 0_u64;
        for _ in 0..HSCAN_ROUNDS_MAX {
            let (next, page) = self.page(context, key, cursor).await?;
            found.extend(page);
            cursor = next;
            if cursor == 0 {
                return Ok(found);
            }
        }
        Err(grows_too_fast(&self.connection, context, key))
    }

    pub(super) async fn page(
        &self,
        context: &str,
        key: &str,
        cursor: u64,
    ) -> Result<(u64, Vec<Field>), CatalogError> {
        let mut command = redis::cmd("HSCAN");
        command.arg(key).arg(cursor).arg("COUNT").arg(FIELDS_MAX);
        self.connection.query(context, &command).await
    }

    pub(super) async fn list_folders(&self, table: &TableRef) -> Result<Vec<Folder>, CatalogError> {
        let key = keys::folders(table);
        let mut found = BTreeMap::new();
        for (dir, count) in self.fields("listing folders", &key).await? {
            let dir = String::from_utf8_lossy(&dir).into_owned();
            let count: Option<i64> = std::str::from_utf8(&count)
                .ok()
                .and_then(|text| text.parse().ok());
            match (PartitionDir::parse(&dir), count) {
                // Other programs count deletes of what is not there.
                (Ok(dir), Some(count)) => {
                    found.insert(dir, u64::try_from(count).unwrap_or(0));
                }
                (Err(error), _) => self.reports.warn_once(&key, &error.to_string()),
                (_, None) => {
                    let reason = format!("the count of {dir:?} is not a number");
                    self.reports.warn_once(&key, &reason);
                }
            }
        }
        Ok(found
            .into_iter()
            .map(|(dir, files_count)| Folder { dir, files_count })
            .collect())
    }

    pub(super) async fn look_up(
        &self,
        table: &TableRef,
        paths: &[DataPath],
    ) -> Result<Vec<Option<IndexEntry>>, CatalogError> {
        let context = "looking files up";
        let mut by_hash: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (place, path) in paths.iter().enumerate() {
            by_hash.entry(path.first_folder()).or_default().push(place);
        }
        let mut found: Vec<Option<IndexEntry>> = vec![None; paths.len()];
        for (first_folder, places) in by_hash {
            let key = keys::files(table, first_folder);
            for places in places.chunks(FIELDS_MAX) {
                let mut command = redis::cmd("HMGET");
                command.arg(&key);
                for &place in places {
                    command.arg(paths[place].as_str());
                }
                let texts: Vec<Option<Vec<u8>>> = self.connection.query(context, &command).await?;
                for (&place, text) in places.iter().zip(&texts) {
                    let Some(text) = text else { continue };
                    // Not "absent": a file that is taken for merged would never be merged.
                    let entry = stored_entry(table, paths[place].as_str().as_bytes(), text)
                        .map_err(|reason| CatalogError::Malformed {
                            place: format!("{key} {}", paths[place]),
                            reason,
                        })?;
                    found[place] = Some(entry);
                }
            }
        }
        Ok(found)
    }

    /// In calls that keep Redis from others for a short time only: a call that took long is
    /// followed by smaller ones.
    pub(super) async fn patch(
        &self,
        add: &[IndexEntry],
        remove: &[IndexEntry],
    ) -> Result<(), CatalogError> {
        let rules = self.rules();
        let mut rest = commands(add, remove).peekable();
        let mut count_max = BATCH_ENTRIES_FIRST;
        while rest.peek().is_some() {
            let mut texts: Vec<String> = Vec::new();
            let mut bytes = 0;
            while texts.len() < count_max && bytes < BATCH_BYTES_MAX {
                let Some((entry, command)) = rest.next() else {
                    break;
                };
                texts.push(wire::entry_to_json(entry, command));
                bytes += texts.last().map_or(0, String::len);
            }
            let started = Instant::now();
            scripts::patch_index(&self.connection, &rules.planning, &texts).await?;
            count_max = match started.elapsed() {
                took if took > BATCH_TIME_LONG => (count_max / 2).max(BATCH_ENTRIES_MIN),
                took if took < BATCH_TIME_SHORT => (count_max * 2).min(BATCH_ENTRIES_MAX),
                _ => count_max,
            };
        }
        Ok(())
    }

    pub(super) async fn patch_at_once(
        &self,
        add: &[IndexEntry],
        remove: &[IndexEntry],
    ) -> Result<(), CatalogError> {
        if add.len() + remove.len() > ATOMIC_ENTRIES_MAX {
            return Err(CatalogError::Refused {
                context: format!("{} entries in one step", add.len() + remove.len()),
                reason: format!("at most {ATOMIC_ENTRIES_MAX} are possible; call batch"),
            });
        }
        let texts: Vec<String> = commands(add, remove)
            .map(|(entry, command)| wire::entry_to_json(entry, command))
            .collect();
        if texts.is_empty() {
            return Ok(());
        }
        scripts::patch_index(&self.connection, &self.rules().planning, &texts)
            .await
            .map(drop)
    }
}

fn commands<'a>(
    add: &'a [IndexEntry],
    remove: &'a [IndexEntry],
) -> impl Iterator<Item = (&'a IndexEntry, EntryCommand)> {
    let added = add.iter().map(|entry| (entry, EntryCommand::Add));
    added.chain(remove.iter().map(|entry| (entry, EntryCommand::Delete)))
}

pub(super) fn grows_too_fast(connection: &Connection, context: &str, key: &str) -> CatalogError {
    connection.unavailable(context, format!("{key} grows faster than it can be listed"))
}

pub(super) fn stored_entry(
    table: &TableRef,
    path: &[u8],
    text: &[u8],
) -> Result<IndexEntry, String> {
    let path = std::str::from_utf8(path).map_err(|_| "its path is not UTF-8".to_owned())?;
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
    wire::entry_from_json(text, table, path)
}
