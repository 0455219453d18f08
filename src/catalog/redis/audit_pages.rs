//! Lists and hashes page by page, as `verify` reads them.

use std::{collections::VecDeque, str::from_utf8};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::{
    RedisCatalog,
    audit::{CONTEXT, PREFIXES},
    index::{Field, HSCAN_ROUNDS_MAX, grows_too_fast},
    keys::{self, FileWork, ListState},
    wire,
};
use crate::{
    catalog::{
        CatalogError,
        audit::{ItemState, Record, RecordStream, Work},
    },
    model::{DataPath, LayerName, TableRef},
};

/// Items of one list that are read at once: a plan may be large.
const ITEMS_MAX: usize = 200;
/// Commands in one round trip.
const PIPELINE_MAX: usize = 1000;
/// Rounds through one list, so that it ends even while items are added.
const LIST_ROUNDS_MAX: usize = 100_000;

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
    pub(super) fn hash_fields(
        &self,
        key: String,
        pattern: Option<String>,
    ) -> RecordStream<'_, Field> {
        let state = (Some(0_u64), 0_usize);
        stream::try_unfold(state, move |(cursor, rounds)| {
            let (key, pattern) = (key.clone(), pattern.clone());
            async move {
                let Some(cursor) = cursor else {
                    return Ok::<_, CatalogError>(None);
                };
                if rounds > HSCAN_ROUNDS_MAX {
                    return Err(grows_too_fast(&self.connection, CONTEXT, &key));
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

    pub(super) fn records_of<'a>(
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

    pub(super) fn announcements<'a>(&'a self, table: &TableRef) -> RecordStream<'a, Record> {
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
    pub(super) async fn of_other_types(
        &self,
        found: &[String],
    ) -> Result<Vec<Record>, CatalogError> {
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
