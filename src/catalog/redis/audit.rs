//! What stands in Redis, as `verify` sees it.

use std::{
    collections::{BTreeSet, VecDeque},
    str::from_utf8,
};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::{
    RedisCatalog,
    index::{Field, HSCAN_ROUNDS_MAX, grows_too_fast, stored_entry},
    keys::{self, FileWork, ListState},
    scripts,
    wire::{self, EntryCommand},
};
use crate::{
    catalog::{
        CatalogError,
        audit::{
            Audit, FolderCount, ItemFate, ItemState, Mend, Record, RecordStream, StoredEntry, Work,
        },
    },
    model::{DataPath, LayerName, MergeQueue, PartitionDir, TableRef},
};

const CONTEXT: &str = "verifying";
/// Items of one list that are read at once: a plan may be large.
const ITEMS_MAX: usize = 200;
/// Commands in one round trip.
const PIPELINE_MAX: usize = 1000;
/// Rounds through one list, so that it ends even while items are added.
const LIST_ROUNDS_MAX: usize = 100_000;
/// What our keys begin with, and their types.
const PREFIXES: [(&str, &str); 7] = [
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

fn state_of(state: ListState) -> ItemState {
    match state {
        ListState::Idle => ItemState::Idle,
        ListState::Processing => ItemState::Processing,
        ListState::Failed => ItemState::Failed,
    }
}

impl RedisCatalog {
    /// A list's items from its head; those that move meanwhile may be seen or not.
    async fn list_page(&self, list: &str, start: usize) -> Result<Vec<Vec<u8>>, CatalogError> {
        let mut command = redis::cmd("LRANGE");
        command.arg(list).arg(start).arg(start + ITEMS_MAX - 1);
        match self.connection.query(CONTEXT, &command).await {
            // A key of another type was named before.
            Err(CatalogError::Refused { .. }) => Ok(Vec::new()),
            page => page,
        }
    }

    fn item(key: &str, bytes: &[u8]) -> Option<Record> {
        let (_, state) = ListState::split(key)?;
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (inner, reason) = match state {
            ListState::Failed => match serde_json::from_str::<Value>(&text) {
                Ok(failed) => (
                    failed["item"].as_str().unwrap_or_default().to_owned(),
                    Some(failed["reason"].as_str().unwrap_or_default().to_owned()),
                ),
                Err(error) => (String::new(), Some(error.to_string())),
            },
            _ => (text.clone(), None),
        };
        let work = if let Some((queue, _)) = keys::parse_merge_list(key) {
            wire::plan_from_json(&inner, &queue).map(Work::Merge)
        } else {
            let (queue, _) = keys::parse_file_list(key)?;
            match queue.work {
                FileWork::Drop => wire::drop_from_json(&inner, &queue).map(Work::Drop),
                // Without time_s it is an item of the original's, and as good as another.
                FileWork::Move => match wire::move_from_json(&inner, &queue) {
                    Err(reason) if reason.contains("time_s") => {
                        let timed = inner.replacen('{', "{\"time_s\":0,", 1);
                        wire::move_from_json(&timed, &queue).map(Work::Move)
                    }
                    parsed => parsed.map(Work::Move),
                },
            }
        };
        let work = match from_utf8(bytes) {
            Ok(_) => work,
            Err(_) => Err("it is not UTF-8".to_owned()),
        };
        Some(Record::Item {
            place: key.to_owned(),
            state: state_of(state),
            text,
            work,
            reason,
        })
    }

    fn list_records(&self, lists: Vec<String>) -> RecordStream<'_, Record> {
        let state = (VecDeque::from(lists), 0_usize, 0_usize);
        stream::try_unfold(state, move |(mut lists, start, rounds)| async move {
            let Some(key) = lists.front().cloned() else {
                return Ok::<_, CatalogError>(None);
            };
            let page = self.list_page(&key, start).await?;
            let is_last = page.len() < ITEMS_MAX || rounds > LIST_ROUNDS_MAX;
            let records: Vec<Record> = page
                .into_iter()
                .filter_map(|bytes| Self::item(&key, &bytes))
                .collect();
            let next = if is_last {
                lists.pop_front();
                (lists, 0, 0)
            } else {
                (lists, start + ITEMS_MAX, rounds + 1)
            };
            Ok(Some((records, next)))
        })
        .map_ok(|records| stream::iter(records.into_iter().map(Ok)))
        .try_flatten()
        .boxed()
    }

    /// Pages of a hash.
    fn hash_fields(&self, key: String, pattern: Option<String>) -> RecordStream<'_, Field> {
        let state = (Some(0_u64), 0_usize);
        stream::try_unfold(state, move |(cursor, rounds)| {
            let (key, pattern) = (key.clone(), pattern.clone());
            async move {
                let Some(cursor) = cursor else {
                    return Ok::<_, CatalogError>(None);
                };
                if rounds > HSCAN_ROUNDS_MAX {
                    return Err(grows_too_fast(CONTEXT, &key));
                }
                let mut command = redis::cmd("HSCAN");
                command.arg(&key).arg(cursor).arg("COUNT").arg(1000);
                if let Some(pattern) = &pattern {
                    command.arg("MATCH").arg(pattern);
                }
                let page = self.connection.query(CONTEXT, &command).await;
                let (next, fields): (u64, Vec<Field>) = match page {
                    Err(CatalogError::Refused { .. }) => (0, Vec::new()),
                    page => page?,
                };
                let state = ((next != 0).then_some(next), rounds + 1);
                Ok(Some((fields, state)))
            }
        })
        .map_ok(|fields| stream::iter(fields.into_iter().map(Ok)))
        .try_flatten()
        .boxed()
    }

    fn records_of<'a>(
        &'a self,
        lists: impl Future<Output = Result<Vec<String>, CatalogError>> + Send + 'a,
    ) -> RecordStream<'a, Record> {
        let sorted = async move {
            let mut lists = lists.await?;
            // What waits moves to those who work on it: look there last.
            lists.sort_by_key(|key| ListState::split(key).map(|(_, state)| state));
            Ok(lists)
        };
        stream::once(sorted)
            .map_ok(move |lists| self.list_records(lists))
            .try_flatten()
            .boxed()
    }

    fn announcements<'a>(&'a self, table: &TableRef) -> RecordStream<'a, Record> {
        let key = keys::announced(table);
        let record = move |(field, text): Field| {
            let field = String::from_utf8_lossy(&field).into_owned();
            let text = String::from_utf8_lossy(&text).into_owned();
            let value: Value = serde_json::from_str(&text).unwrap_or_default();
            let path = value["path"].as_str().map(DataPath::parse);
            let layer = LayerName::parse(value["layer"].as_str().unwrap_or_default());
            match (path, layer) {
                (Some(Ok(path)), Ok(layer)) => Record::Announced {
                    at_s: value["at_s"].as_i64(),
                    field,
                    text,
                    path,
                    layer,
                },
                _ => Record::Strange {
                    place: format!("{key} {field}"),
                    reason: "it names no file".to_owned(),
                },
            }
        };
        self.hash_fields(keys::announced(table), None)
            .map_ok(record)
            .boxed()
    }

    /// Keys of our prefixes that have another type.
    async fn of_other_types(&self, found: &[String]) -> Result<Vec<Record>, CatalogError> {
        let mut strange = Vec::new();
        for keys in found.chunks(PIPELINE_MAX) {
            let mut pipeline = redis::pipe();
            for key in keys {
                pipeline.cmd("TYPE").arg(key);
            }
            let types: Vec<String> = self.connection.query_all(CONTEXT, &pipeline).await?;
            for (key, found) in keys.iter().zip(types) {
                let wanted = PREFIXES.iter().find(|(prefix, _)| key.starts_with(prefix));
                if found != "none" && wanted.is_some_and(|(_, wanted)| *wanted != found) {
                    strange.push(Record::Strange {
                        place: key.clone(),
                        reason: format!("it is a {found}; rename or remove it"),
                    });
                }
            }
        }
        Ok(strange)
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
