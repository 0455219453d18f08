//! The index: what files there are.

use std::collections::BTreeMap;

use super::{
    RedisCatalog, keys, scripts,
    wire::{self, EntryCommand},
};
use crate::{
    catalog::{CatalogError, EntryFilter},
    model::{DataPath, IndexEntry, TableRef},
};

/// Entries of one call of `patch_index`: Redis answers nobody else meanwhile.
const BATCH_ENTRIES_MAX: usize = 2000;
/// Fields that one `HSCAN` or `HMGET` asks for.
const FIELDS_MAX: usize = 1000;
/// A hash's field and its value.
type Field = (Vec<u8>, Vec<u8>);

/// Rounds of one `HSCAN`.
const HSCAN_ROUNDS_MAX: usize = 1_000_000;

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

    pub(super) async fn list_entries(
        &self,
        table: &TableRef,
        filter: &EntryFilter,
    ) -> Result<Vec<IndexEntry>, CatalogError> {
        let context = "listing files";
        // By path, because HSCAN may return a field twice.
        let mut found = BTreeMap::new();
        for key in self.scan(context, &keys::files_pattern(table)).await? {
            for (path, text) in self.fields(context, &key).await? {
                match stored_entry(table, &path, &text) {
                    Ok(entry) if filter.matches(&entry) => {
                        found.insert(entry.path.clone(), entry);
                    }
                    Ok(_) => {}
                    Err(reason) => self.reports.warn_once(
                        &format!("{key} {}", String::from_utf8_lossy(&path)),
                        &reason,
                    ),
                }
            }
        }
        Ok(found.into_values().collect())
    }

    /// Every field of a hash; one may come twice.
    async fn fields(&self, context: &str, key: &str) -> Result<Vec<Field>, CatalogError> {
        let mut found = Vec::new();
        let mut cursor = 0_u64;
        for _ in 0..HSCAN_ROUNDS_MAX {
            let mut command = redis::cmd("HSCAN");
            command.arg(key).arg(cursor).arg("COUNT").arg(FIELDS_MAX);
            let (next, page): (u64, Vec<Field>) = self.connection.query(context, &command).await?;
            found.extend(page);
            cursor = next;
            if cursor == 0 {
                return Ok(found);
            }
        }
        Err(CatalogError::Unavailable {
            context: context.to_owned(),
            reason: format!("{key} grows faster than it can be listed"),
        })
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

    pub(super) async fn patch(
        &self,
        add: &[IndexEntry],
        remove: &[IndexEntry],
    ) -> Result<(), CatalogError> {
        let rules = self.rules();
        let added = add.iter().map(|entry| (entry, EntryCommand::Add));
        let removed = remove.iter().map(|entry| (entry, EntryCommand::Delete));
        let entries: Vec<(&IndexEntry, EntryCommand)> = added.chain(removed).collect();
        for entries in entries.chunks(BATCH_ENTRIES_MAX) {
            let texts: Vec<String> = entries
                .iter()
                .map(|(entry, command)| wire::entry_to_json(entry, *command))
                .collect();
            scripts::patch_index(&self.connection, &rules.planning, &texts).await?;
        }
        Ok(())
    }
}

fn stored_entry(table: &TableRef, path: &[u8], text: &[u8]) -> Result<IndexEntry, String> {
    let path = std::str::from_utf8(path).map_err(|_| "its path is not UTF-8".to_owned())?;
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
    wire::entry_from_json(text, table, path)
}
