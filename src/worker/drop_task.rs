//! Deletes the bytes of replaced files once their grace is over.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{WorkContext, WorkError};
use crate::{
    catalog::CatalogError,
    model::{ClaimedDrop, DataPath, IndexEntry, TableRef},
    storage::StorageError,
};

/// Deletes claimed in one go.
const DROPS_MAX: usize = 500;
/// A delete that failed is tried again after this.
const RETRY_DELAY: Duration = Duration::from_secs(60);

/// Deletes what is due until nothing is, or until claims are stopped. Returns the number of items that were ended.
pub async fn delete_due(context: &Arc<WorkContext>) -> Result<u64, WorkError> {
    let mut ended_count = 0;
    while !context.stop.claims.is_cancelled() {
        let claimed = context
            .catalog
            .claim_drops(DROPS_MAX, context.config.worker.lease)
            .await?;
        if claimed.is_empty() {
            break;
        }
        let ended = delete_unindexed(context, claimed).await;
        context.catalog.finish_drops(&ended).await?;
        ended_count += ended.len() as u64;
    }
    if ended_count > 0 {
        tracing::debug!(files = ended_count, "deleted replaced files");
    }
    Ok(ended_count)
}

/// Deletes each file that no entry names any more (DROP-AFTER-COMMIT); returns the items to end. An item that
/// fails waits, the others go on.
async fn delete_unindexed(
    context: &Arc<WorkContext>,
    claimed: Vec<ClaimedDrop>,
) -> Vec<ClaimedDrop> {
    let mut by_table: HashMap<TableRef, Vec<ClaimedDrop>> = HashMap::new();
    for claim in claimed {
        let claims = by_table.entry(claim.item.table.clone()).or_default();
        claims.push(claim);
    }
    let mut ended = Vec::new();
    for (table, claims) in by_table {
        let paths: Vec<DataPath> = claims.iter().map(|claim| claim.item.path.clone()).collect();
        let entries = match context.catalog.resolve(&table, &paths).await {
            Ok(entries) => entries.into_iter().map(Some).collect(),
            Err(CatalogError::Malformed { .. }) => one_by_one(context, &table, &paths).await,
            Err(error) => {
                tracing::warn!(%table, %error, "deletes wait: the index could not be asked");
                continue;
            }
        };
        for (claim, entry) in claims.into_iter().zip(entries) {
            // What the index says of it cannot be known: its bytes stay, its lease runs out.
            let Some(entry) = entry else { continue };
            if entry.is_some_and(|entry| names_these_bytes(context, &entry, &claim)) {
                tracing::warn!(%table, file = %claim.item.path, "file is in the index again; it is kept");
                ended.push(claim);
                continue;
            }
            match delete(context, &claim).await {
                Ok(was_there) => {
                    context.totals.add_drops(u64::from(was_there));
                    ended.push(claim);
                }
                Err(error) => {
                    tracing::warn!(%table, file = %claim.item.path, %error, retry_in = ?RETRY_DELAY, "file could not be deleted");
                    if let Err(error) = context.catalog.release_drop(&claim, RETRY_DELAY).await {
                        tracing::warn!(%error, "delete could not be handed back; its lease will run out");
                    }
                }
            }
        }
    }
    ended
}

/// What the index says of each path; `None` where that is not an entry.
async fn one_by_one(
    context: &WorkContext,
    table: &TableRef,
    paths: &[DataPath],
) -> Vec<Option<Option<IndexEntry>>> {
    let mut found = Vec::with_capacity(paths.len());
    for path in paths {
        let resolved = context
            .catalog
            .resolve(table, std::slice::from_ref(path))
            .await;
        found.push(match resolved {
            Ok(entries) => Some(entries.into_iter().flatten().next()),
            Err(error) => {
                tracing::warn!(%table, file = %path, %error, "delete waits");
                None
            }
        });
    }
    found
}

/// Layers are compared by what they stand for; what cannot be known keeps its bytes.
fn names_these_bytes(context: &WorkContext, entry: &IndexEntry, claim: &ClaimedDrop) -> bool {
    let (named, ours) = (
        context.layers.get(&entry.layer),
        context.layers.get(&claim.item.layer),
    );
    match (named, ours) {
        (Ok(named), Ok(ours)) => named.name() == ours.name(),
        _ => true,
    }
}

async fn delete(context: &WorkContext, claim: &ClaimedDrop) -> Result<bool, StorageError> {
    let layer = context.layers.get(&claim.item.layer)?.clone();
    let (table, path) = (claim.item.table.clone(), claim.item.path.clone());
    let file = layer.data_file(&table, &path);
    tokio::task::spawn_blocking(move || layer.delete(&table, &path))
        .await
        .unwrap_or_else(|error| {
            Err(StorageError::Io {
                path: file,
                source: std::io::Error::other(error),
            })
        })
}
