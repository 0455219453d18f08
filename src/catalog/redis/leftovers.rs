//! Outputs that dead workers announced: which bytes they left that nobody else knows of.

use std::time::Duration;

use serde::Deserialize;

use super::{
    RedisCatalog,
    keys::{self, FileQueue, FileWork, ScriptKeys},
    scripts::{self, Announced},
};
use crate::{
    catalog::{CatalogError, DeadOutput},
    model::{DataPath, Iteration, LayerName, MergeQueue, PartitionDir, TableRef, WriterId},
};

const CONTEXT: &str = "looking for outputs of dead workers";
/// Pages of one hash, so that a pass ends even while fields are made faster than they are read.
const PAGES_MAX: usize = 10_000;
/// A hash's field and value.
type Field = (Vec<u8>, Vec<u8>);

/// Fields that one page looks at: each holds the paths of a plan.
const PAGE_FIELDS: usize = 100;

/// An announcement as it is stored (`lua/announce_output.lua`).
#[derive(Deserialize)]
struct Announcement {
    path: String,
    layer: String,
    suffix: String,
    writer: String,
    #[serde(default)]
    paths: Vec<String>,
    /// Of a move: the layer that the file was to leave.
    layer_from: Option<String>,
}

impl RedisCatalog {
    pub(super) async fn find_dead_outputs(
        &self,
        age_min: Duration,
        limit: usize,
    ) -> Result<Vec<DeadOutput>, CatalogError> {
        let mut dead = Vec::new();
        for key in self.scan(CONTEXT, keys::ANNOUNCED_PATTERN).await? {
            let Some(table) = keys::parse_announced(&key) else {
                continue;
            };
            let mut cursor = 0_u64;
            for _ in 0..PAGES_MAX {
                let mut command = redis::cmd("HSCAN");
                command.arg(&key).arg(cursor).arg("COUNT").arg(PAGE_FIELDS);
                let (next, page): (u64, Vec<Field>) =
                    self.connection.query(CONTEXT, &command).await?;
                for (_, text) in page {
                    match dead_output(&table, &text) {
                        Ok(output) if self.is_dead(&output, age_min).await? => dead.push(output),
                        Ok(_) => {}
                        Err(reason) => self.reports.warn_once(&key, &reason),
                    }
                    if dead.len() >= limit {
                        return Ok(dead);
                    }
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(dead)
    }

    /// An output that the index names is also an announcement to forget.
    async fn is_dead(&self, output: &DeadOutput, age_min: Duration) -> Result<bool, CatalogError> {
        let keys = script_keys(output);
        let found =
            scripts::dead_output(&self.connection, &keys, &output.token, age_min, false).await?;
        Ok(found != Announced::Open)
    }

    pub(super) async fn forget_dead_output(&self, dead: &DeadOutput) -> Result<(), CatalogError> {
        let keys = script_keys(dead);
        scripts::dead_output(&self.connection, &keys, &dead.token, Duration::ZERO, true)
            .await
            .map(drop)
    }
}

/// The queue of the merge or move that announced it.
fn script_keys(output: &DeadOutput) -> ScriptKeys {
    let is_move = serde_json::from_str::<Announcement>(&output.token)
        .is_ok_and(|announcement| announcement.layer_from.is_some());
    if !is_move {
        return keys::merge_keys(&output.queue);
    }
    keys::file_keys(&FileQueue {
        work: FileWork::Move,
        table: output.queue.table.clone(),
        layer: output.sources_layer.clone(),
        writer: output.queue.writer.clone(),
    })
}

fn dead_output(table: &TableRef, text: &[u8]) -> Result<DeadOutput, String> {
    let text = String::from_utf8(text.to_vec()).map_err(|error| error.to_string())?;
    let found: Announcement =
        serde_json::from_str(&text).map_err(|error| format!("an announcement is left: {error}"))?;
    let refused = |error: &dyn std::fmt::Display| format!("an announcement is left: {error}");
    let path = DataPath::parse(&found.path).map_err(|error| refused(&error))?;
    let layer = LayerName::parse(&found.layer).map_err(|error| refused(&error))?;
    let (iteration, dir, sources_layer) = match &found.layer_from {
        Some(from) => {
            let from = LayerName::parse(from).map_err(|error| refused(&error))?;
            (path.iteration(), path.dir(), from)
        }
        None => {
            let (iteration, dir) = found
                .suffix
                .split_once(':')
                .ok_or_else(|| refused(&"its suffix names no folder"))?;
            let iteration = Iteration(iteration.parse().map_err(|error| refused(&error))?);
            let dir = PartitionDir::parse(dir).map_err(|error| refused(&error))?;
            (iteration, dir, layer.clone())
        }
    };
    Ok(DeadOutput {
        queue: MergeQueue {
            table: table.clone(),
            iteration,
            dir,
            layer,
            writer: WriterId::parse(&found.writer).map_err(|error| refused(&error))?,
        },
        path,
        sources_layer,
        // Paths that cannot be used were not merged.
        sources: found
            .paths
            .iter()
            .filter_map(|path| DataPath::parse(path).ok())
            .collect(),
        token: text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_that_leads_out_of_its_table_is_left() {
        let table = TableRef::new("db", "cpu").unwrap();
        let text = |path: &str, suffix: &str| {
            serde_json::json!({"path": path, "layer": "hot", "suffix": suffix, "writer": "", "at_s": 1})
                .to_string()
        };
        let good = text("date=1/m-1.2.parquet", "1:date=1");
        assert!(dead_output(&table, good.as_bytes()).is_ok());
        for bad in [
            text("../x.2.parquet", "1:date=1"),
            text("date=1/m.2.parquet", "1"),
            text("date=1/m.2.parquet", "one:date=1"),
            "[]".to_owned(),
        ] {
            assert!(dead_output(&table, bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
