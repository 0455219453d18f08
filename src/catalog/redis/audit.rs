//! What stands in Redis, as `verify` sees it.

use std::collections::BTreeSet;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::Value;

use super::{
    RedisCatalog,
    index::{Field, stored_entry},
    keys, scripts,
    wire::{self, EntryCommand},
};
use crate::{
    catalog::{
        CatalogError,
        audit::{Audit, FolderCount, ItemFate, Mend, Record, RecordStream, StoredEntry},
    },
    model::{DataPath, MergeQueue, PartitionDir, TableRef},
};

pub(super) const CONTEXT: &str = "verifying";
/// What our keys begin with, and their types.
pub(super) const PREFIXES: [(&str, &str); 7] = [
    ("files:", "hash"),
    ("folders:", "hash"),
    ("announced:", "hash"),
    ("quarantine:", "hash"),
    ("merge:", "list"),
    ("drop:", "list"),
    ("move:", "list"),
];

/// The table that a key belongs to.
fn table_of(key: &str) -> Option<TableRef> {
    match key.split(':').next()? {
        "files" => keys::parse_files(key).map(|(table, _)| table),
        "folders" => keys::parse_folders(key),
        "announced" | "quarantine" => keys::parse_own_hash(key),
        "merge" => keys::parse_merge_list(key).map(|(queue, _)| queue.table),
        _ => keys::parse_file_list(key).map(|(queue, _)| queue.table),
    }
}

/// The plan's text without some paths; `None` when no path is left.
fn without_paths(text: &str, paths: &[String]) -> Result<Option<String>, CatalogError> {
    let mut plan: Value = serde_json::from_str(text).map_err(|error| CatalogError::Malformed {
        place: "a plan".to_owned(),
        reason: error.to_string(),
    })?;
    let Some(kept) = plan["paths"].as_array_mut() else {
        return Ok(None);
    };
    let mut seen = BTreeSet::new();
    kept.retain(|path| {
        let text = path.as_str().unwrap_or_default();
        let goes = paths.iter().any(|path| path == text);
        !goes && seen.insert(text.to_owned())
    });
    let is_empty = kept.is_empty();
    Ok((!is_empty).then(|| plan.to_string()))
}

#[async_trait]
impl Audit for RedisCatalog {
    async fn now_s(&self) -> Result<i64, CatalogError> {
        let clock: (i64, i64) = self.connection.query(CONTEXT, &redis::cmd("TIME")).await?;
        Ok(clock.0)
    }

    async fn tables(&self) -> Result<(BTreeSet<TableRef>, Vec<Record>), CatalogError> {
        let mut tables = BTreeSet::new();
        let mut strange = Vec::new();
        for (prefix, _) in PREFIXES {
            let found = self.scan(CONTEXT, &format!("{prefix}*")).await?;
            for key in &found {
                match table_of(key) {
                    Some(table) => drop(tables.insert(table)),
                    None => strange.push(Record::Strange {
                        place: key.clone(),
                        reason: "its name is none that a table, queue or folder can have"
                            .to_owned(),
                    }),
                }
            }
            strange.extend(self.of_other_types(&found).await?);
        }
        Ok((tables, strange))
    }

    async fn first_folders(&self, table: &TableRef) -> Result<BTreeSet<String>, CatalogError> {
        let mut found = BTreeSet::new();
        let first = |dir: &str| dir.split('/').next().unwrap_or_default().to_owned();
        for key in self.scan(CONTEXT, &keys::files_pattern(table)).await? {
            found.extend(keys::parse_files(&key).map(|(_, first)| first.to_owned()));
        }
        for key in self
            .scan(CONTEXT, &keys::table_pattern("merge", table))
            .await?
        {
            found.extend(keys::parse_merge_list(&key).map(|(queue, _)| first(queue.dir.as_str())));
        }
        let mut folders = self.hash_fields(keys::folders(table), None);
        while let Some((dir, _)) = folders.try_next().await? {
            found.insert(first(&String::from_utf8_lossy(&dir)));
        }
        found.remove("");
        Ok(found)
    }

    fn entries<'a>(
        &'a self,
        table: &'a TableRef,
        first_folder: &'a str,
    ) -> RecordStream<'a, StoredEntry> {
        self.hash_fields(keys::files(table, first_folder), None)
            .map_ok(move |(path, text)| StoredEntry {
                entry: stored_entry(table, &path, &text),
                path: String::from_utf8_lossy(&path).into_owned(),
                text: String::from_utf8_lossy(&text).into_owned(),
            })
            .boxed()
    }

    fn merges<'a>(
        &'a self,
        table: &'a TableRef,
        first_folder: &'a str,
    ) -> RecordStream<'a, Record> {
        let lists = async move {
            let pattern = keys::table_pattern("merge", table);
            let mut lists = self.scan(CONTEXT, &pattern).await?;
            lists.retain(|key| {
                keys::parse_merge_list(key).is_some_and(|(queue, _)| {
                    queue.dir.as_str().split('/').next() == Some(first_folder)
                })
            });
            Ok(lists)
        };
        self.records_of(lists)
    }

    fn records<'a>(&'a self, table: &'a TableRef, _: &'a str) -> RecordStream<'a, Record> {
        let lists = async move {
            let mut lists = Vec::new();
            for prefix in ["drop", "move"] {
                let pattern = keys::table_pattern(prefix, table);
                lists.extend(self.scan(CONTEXT, &pattern).await?);
            }
            Ok(lists)
        };
        let set_aside = self
            .hash_fields(keys::quarantine(table), None)
            .map_ok(|(path, _)| Record::SetAside {
                path: String::from_utf8_lossy(&path).into_owned(),
            });
        self.records_of(lists)
            .chain(self.announcements(table))
            .chain(set_aside)
            .boxed()
    }

    fn is_table_wide(&self) -> bool {
        true
    }

    fn has_plans(&self) -> bool {
        true
    }

    async fn folder_counts(
        &self,
        table: &TableRef,
        first_folder: &str,
    ) -> Result<Vec<(String, String)>, CatalogError> {
        let pattern = keys::below(first_folder);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let found: Vec<Field> = self
            .hash_fields(keys::folders(table), Some(pattern))
            .try_collect()
            .await?;
        let is_below = |dir: &str| dir.split('/').next() == Some(first_folder);
        Ok(found
            .into_iter()
            .map(|(dir, count)| (text(dir), text(count)))
            .filter(|(dir, _)| is_below(dir))
            .collect())
    }

    async fn count_folder(
        &self,
        table: &TableRef,
        dir: &PartitionDir,
    ) -> Result<Option<FolderCount>, CatalogError> {
        let arguments = ["folder", dir.as_str(), "look"];
        let found = scripts::mend_look(&self.connection, table, &arguments).await?;
        Ok(found.and_then(|found| match &found[..] {
            [kept, files] => Some(FolderCount {
                kept: kept.clone(),
                files: files.parse().ok()?,
            }),
            _ => None,
        }))
    }

    async fn stored(
        &self,
        table: &TableRef,
        path: &str,
    ) -> Result<Option<StoredEntry>, CatalogError> {
        let first = path.split('/').next().unwrap_or_default();
        let mut command = redis::cmd("HGET");
        command.arg(keys::files(table, first)).arg(path);
        let text: Option<Vec<u8>> = self.connection.query(CONTEXT, &command).await?;
        Ok(text.map(|text| StoredEntry {
            path: path.to_owned(),
            entry: stored_entry(table, path.as_bytes(), &text),
            text: String::from_utf8_lossy(&text).into_owned(),
        }))
    }

    async fn unplanned(
        &self,
        queue: &MergeQueue,
        paths: &[DataPath],
    ) -> Result<Option<Vec<DataPath>>, CatalogError> {
        let found = self.plans_without(queue, paths, "look").await?;
        Ok(found.map(|found| {
            let paths = found.iter().filter_map(|path| DataPath::parse(path).ok());
            paths.collect()
        }))
    }

    async fn mend(&self, table: &TableRef, mend: &Mend) -> Result<bool, CatalogError> {
        let (new, reason, grace);
        let arguments: Vec<&str> = match mend {
            Mend::Entry {
                path,
                seen,
                new: entry,
            } => {
                new = entry
                    .as_deref()
                    .map(|entry| wire::entry_to_json(entry, EntryCommand::Add))
                    .unwrap_or_default();
                vec!["entry", path, seen, &new]
            }
            Mend::Item { place, seen, fate } => match fate {
                ItemFate::Remove => vec!["item", place, seen, "remove"],
                ItemFate::Release => vec!["item", place, seen, "release"],
                ItemFate::Fail(why) => {
                    reason = why.clone();
                    vec!["item", place, seen, "fail", &reason]
                }
                ItemFate::WithoutPaths(paths) => match without_paths(seen, paths)? {
                    Some(text) => {
                        new = text;
                        vec!["item", place, seen, "replace", &new]
                    }
                    None => vec!["item", place, seen, "remove"],
                },
            },
            Mend::Folder(dir) => {
                let arguments = ["folder", dir.as_str(), "set"];
                let found = scripts::mend_look(&self.connection, table, &arguments).await?;
                return Ok(found.is_some());
            }
            Mend::Plan { queue, paths } => {
                let planned = self.plans_without(queue, paths, "plan").await?;
                return Ok(planned.is_some_and(|planned| !planned.is_empty()));
            }
            Mend::Drop {
                path,
                layer,
                writer,
                grace: time,
            } => {
                grace = scripts::seconds(*time);
                let (path, layer, writer) = (path.as_str(), layer.as_str(), writer.as_str());
                vec!["drop", path, layer, writer, &grace]
            }
            Mend::Announced { field, seen } => vec!["announced", field, seen],
        };
        scripts::mend(&self.connection, table, &arguments).await
    }
}

impl RedisCatalog {
    async fn plans_without(
        &self,
        queue: &MergeQueue,
        paths: &[DataPath],
        act: &str,
    ) -> Result<Option<Vec<String>>, CatalogError> {
        let suffix = format!("{}:{}", queue.iteration, queue.dir);
        let rules = self.rules();
        let mut arguments = vec![
            "plans",
            &suffix,
            queue.layer.as_str(),
            queue.writer.as_str(),
            &rules.planning.levels_json,
            act,
        ];
        arguments.extend(paths.iter().map(DataPath::as_str));
        scripts::mend_look(&self.connection, &queue.table, &arguments).await
    }
}
