//! What was set aside (`quarantine:…`) or given up (`…:failed`), and how it comes back.

use serde_json::Value;

use super::{
    RedisCatalog,
    keys::{self, ScriptKeys},
    scripts, wire,
};
use crate::{
    catalog::{CatalogError, Retried},
    model::{DataPath, QuarantineKind, Quarantined, TableRef},
};

const CONTEXT: &str = "listing the quarantine";
/// Items of one list that are read at once: each may hold many paths.
const PAGE_ITEMS: isize = 64;
/// Shown of items that cannot be read.
const TEXT_SHOWN_MAX: usize = 200;

impl RedisCatalog {
    pub(super) async fn list_quarantine(
        &self,
        table: Option<&TableRef>,
    ) -> Result<Vec<Quarantined>, CatalogError> {
        let is_wanted = |of: &TableRef| table.is_none_or(|table| table == of);
        let mut found = Vec::new();
        for key in self.scan(CONTEXT, keys::QUARANTINE_PATTERN).await? {
            if let Some(of) = keys::parse_quarantine(&key)
                && is_wanted(&of)
            {
                found.extend(self.files_aside(&of, &key).await?);
            }
        }
        for pattern in keys::FAILED_PATTERNS {
            for key in self.scan(CONTEXT, pattern).await? {
                let Some((of, script_keys)) = keys::parse_failed(&key) else {
                    continue;
                };
                if is_wanted(&of) {
                    found.extend(self.given_up(&of, &key, &script_keys).await?);
                }
            }
        }
        found.sort_by(|a, b| (a.at_s, &a.id).cmp(&(b.at_s, &b.id)));
        Ok(found)
    }

    async fn files_aside(
        &self,
        table: &TableRef,
        key: &str,
    ) -> Result<Vec<Quarantined>, CatalogError> {
        let mut found = Vec::new();
        for (path, text) in self.fields(CONTEXT, key).await? {
            let Ok(id) = String::from_utf8(path) else {
                self.reports.warn_once(key, "a path is not UTF-8");
                continue;
            };
            let record = serde_json::from_slice(&text).unwrap_or(Value::Null);
            found.push(Quarantined {
                kind: QuarantineKind::File,
                table: table.clone(),
                paths: DataPath::parse(&id).ok().into_iter().collect(),
                id,
                reason: record["reason"].as_str().unwrap_or("unknown").to_owned(),
                at_s: record["at_s"].as_i64().unwrap_or(0),
                place: key.to_owned(),
                text: String::new(),
            });
        }
        // A field may come twice.
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found.dedup_by(|a, b| a.id == b.id);
        let paths: Vec<DataPath> = found.iter().flat_map(|file| file.paths.clone()).collect();
        let indexed = self.indexed(table, &paths).await?;
        for file in &mut found {
            file.paths.retain(|path| indexed.contains(path));
        }
        Ok(found)
    }

    async fn given_up(
        &self,
        table: &TableRef,
        key: &str,
        script_keys: &ScriptKeys,
    ) -> Result<Vec<Quarantined>, CatalogError> {
        let mut found = Vec::new();
        let mut start = 0;
        loop {
            let mut command = redis::cmd("LRANGE");
            command.arg(key).arg(start).arg(start + PAGE_ITEMS - 1);
            let page: Vec<Vec<u8>> = self.connection.query(CONTEXT, &command).await?;
            let is_last = page.len() < PAGE_ITEMS.unsigned_abs();
            for text in page {
                let Ok(text) = String::from_utf8(text) else {
                    self.reports.warn_once(key, "an item is not UTF-8");
                    continue;
                };
                found.push(self.given_up_item(table, key, script_keys, text).await?);
            }
            if is_last {
                return Ok(found);
            }
            start += PAGE_ITEMS;
        }
    }

    async fn given_up_item(
        &self,
        table: &TableRef,
        key: &str,
        script_keys: &ScriptKeys,
        text: String,
    ) -> Result<Quarantined, CatalogError> {
        let record: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let item = record["item"].as_str().unwrap_or(&text);
        let plan = keys::parse_merge_list(key)
            .and_then(|(queue, _)| wire::plan_from_json(item, &queue).ok());
        let mut reason = record["reason"].as_str().unwrap_or("unknown").to_owned();
        let (kind, paths) = match plan {
            Some(plan) => {
                let indexed = self.indexed(table, &plan.paths).await?;
                (QuarantineKind::Plan, indexed)
            }
            None => {
                let shown: String = item.chars().take(TEXT_SHOWN_MAX).collect();
                reason = format!("{reason} ({} item {shown})", script_keys[0]);
                (QuarantineKind::Item, Vec::new())
            }
        };
        let seed = format!("{key} {text}");
        let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, seed.as_bytes());
        Ok(Quarantined {
            kind,
            table: table.clone(),
            id: id.simple().to_string().chars().take(12).collect(),
            paths,
            reason,
            at_s: record["at_s"].as_i64().unwrap_or(0),
            place: key.to_owned(),
            text,
        })
    }

    /// Those of the paths that the index has, also where their entries cannot be used.
    async fn indexed(
        &self,
        table: &TableRef,
        paths: &[DataPath],
    ) -> Result<Vec<DataPath>, CatalogError> {
        let mut found = Vec::new();
        for path in paths {
            let one = self.look_up(table, std::slice::from_ref(path)).await;
            match one {
                Ok(entries) if entries.iter().all(Option::is_none) => {}
                Ok(_) | Err(CatalogError::Malformed { .. }) => found.push(path.clone()),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    pub(super) async fn retry(&self, what: &Quarantined) -> Result<Retried, CatalogError> {
        if what.kind == QuarantineKind::File {
            let rules = self.rules();
            let (table, planning) = (&what.table, &rules.planning);
            let said =
                scripts::retry_quarantined(&self.connection, table, planning, &what.id).await?;
            return Ok(match said.as_str() {
                "planned" => Retried::Planned,
                "final" => Retried::Final,
                "gone" => Retried::Gone,
                _ => Retried::Absent,
            });
        }
        let keys = script_keys_of(what)?;
        let is_back = scripts::retry_failed(&self.connection, &keys, &what.text).await?;
        Ok(if is_back {
            Retried::Planned
        } else {
            Retried::Absent
        })
    }

    pub(super) async fn drop_aside(
        &self,
        what: &Quarantined,
        grace: std::time::Duration,
    ) -> Result<Option<u64>, CatalogError> {
        let keys = script_keys_of(what)?;
        let mut paths: Vec<&str> = what.paths.iter().map(DataPath::as_str).collect();
        if what.kind == QuarantineKind::File {
            // Also one that the index does not have, or that is no path.
            paths = vec![&what.id];
        }
        scripts::drop_quarantined(&self.connection, &keys, grace, &what.text, &paths).await
    }
}

fn script_keys_of(what: &Quarantined) -> Result<ScriptKeys, CatalogError> {
    if what.kind == QuarantineKind::File {
        let table = &what.table;
        return Ok(["merge", table.database(), table.table(), "", "", ""].map(str::to_owned));
    }
    keys::parse_failed(&what.place)
        .map(|(_, keys)| keys)
        .ok_or_else(|| CatalogError::Malformed {
            place: what.place.clone(),
            reason: "it names no list of what was given up".to_owned(),
        })
}
