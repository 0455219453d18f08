//! Files that merges replaced, while they wait for their deletion.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{
    RedisCatalog,
    keys::{self, FileWork, ListState},
};
use crate::{
    catalog::{CatalogError, Replacement},
    model::{DataPath, LayerName, TableRef, WriterId},
};

const CONTEXT: &str = "listing replaced files";
/// Items read in one call: each holds an entry.
const PAGE_ITEMS: isize = 500;
/// Pages of one list, so that a listing ends even while a list grows faster than it is read.
const PAGES_MAX: isize = 10_000;

/// What a merge adds to a delete (`lua/lib/index.lua`).
#[derive(Deserialize)]
struct Waiting {
    path: String,
    time_s: i64,
    replaced_by: String,
    replaced_count: usize,
}

impl RedisCatalog {
    pub(super) async fn find_replacements(
        &self,
        table: &TableRef,
    ) -> Result<Vec<Replacement>, CatalogError> {
        let mut found: BTreeMap<(LayerName, WriterId, DataPath), Replacement> = BTreeMap::new();
        for key in self.scan(CONTEXT, FileWork::Drop.pattern()).await? {
            let Some((queue, ListState::Idle)) = keys::parse_file_list(&key) else {
                continue;
            };
            if queue.table != *table {
                continue;
            }
            for (path, item) in self.replaced_in(&key).await? {
                let Ok(output) = DataPath::parse(&item.replaced_by) else {
                    continue;
                };
                let place = (queue.layer.clone(), queue.writer.clone(), output.clone());
                let replacement = found.entry(place).or_insert_with(|| Replacement {
                    table: table.clone(),
                    layer: queue.layer.clone(),
                    writer: queue.writer.clone(),
                    output,
                    sources: Vec::new(),
                    sources_count: item.replaced_count,
                    due_s: item.time_s,
                });
                replacement.due_s = replacement.due_s.min(item.time_s);
                replacement.sources.push(path);
            }
        }
        let mut found: Vec<Replacement> = found.into_values().collect();
        for replacement in &mut found {
            replacement.sources.sort();
        }
        found.sort_by(|a, b| (a.due_s, &a.output).cmp(&(b.due_s, &b.output)));
        Ok(found)
    }

    /// Items of one list that a merge left. The list may shrink meanwhile: each comes once.
    async fn replaced_in(&self, key: &str) -> Result<Vec<(DataPath, Waiting)>, CatalogError> {
        let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
        for page in 0..PAGES_MAX {
            let start = page * PAGE_ITEMS;
            let mut command = redis::cmd("LRANGE");
            command.arg(key).arg(start).arg(start + PAGE_ITEMS - 1);
            let texts: Vec<Vec<u8>> = self.connection.query(CONTEXT, &command).await?;
            let is_last = texts.len() < PAGE_ITEMS.unsigned_abs();
            for text in texts {
                // Deletes that a writer asked for have no such fields.
                if let Ok(item) = serde_json::from_slice::<Waiting>(&text)
                    && let Ok(path) = DataPath::parse(&item.path)
                    && seen.insert(path.clone())
                {
                    found.push((path, item));
                }
            }
            if is_last {
                break;
            }
        }
        Ok(found)
    }
}
