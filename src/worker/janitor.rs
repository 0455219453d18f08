//! Removes what dead workers left: scratch, and outputs that were published and never committed.
//!
//! Nothing is guessed from names that lie around. Scratch has a lock that its owner holds while it
//! lives; an output was announced before its bytes appeared, and goes only when the catalog says
//! that its claim has ended without a commit, so that nobody can commit it any more.

use std::sync::Arc;

use super::{
    WorkContext,
    run_error::{RunError, blocking},
};
use crate::{
    catalog::DeadOutput,
    storage::{Layer, StorageError, Workspace},
};

/// Outputs looked at in one pass; the next pass goes on.
const DEAD_OUTPUTS_MAX: usize = 10_000;

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Scratch folders that were removed.
    pub scratch_count: u64,
    /// Outputs whose bytes were removed.
    pub outputs_count: u64,
    /// Announcements that were forgotten; the bytes of most were gone already.
    pub forgotten_count: u64,
}

/// One pass. What cannot be removed now is tried again by the next one.
pub async fn clean(context: &Arc<WorkContext>) -> Cleaned {
    let mut cleaned = Cleaned {
        scratch_count: sweep_scratch(context).await,
        ..Cleaned::default()
    };
    // Whoever announced it may be about to publish it: a lease passes before anybody wonders.
    let age_min = context.config.worker.lease;
    match context
        .catalog
        .dead_outputs(age_min, DEAD_OUTPUTS_MAX)
        .await
    {
        Ok(outputs) => {
            for output in &outputs {
                match remove(context, output).await {
                    Ok(removed) => {
                        cleaned.outputs_count += u64::from(removed == Removed::Bytes);
                        cleaned.forgotten_count += u64::from(removed != Removed::Nothing);
                    }
                    Err(error) => {
                        tracing::warn!(table = %output.queue.table, file = %output.path, %error,
                        "output of a dead worker could not be removed; the next pass tries again")
                    }
                }
            }
        }
        Err(error) => {
            tracing::warn!(%error, "outputs of dead workers could not be looked for; the next pass tries again")
        }
    }
    if cleaned != Cleaned::default() {
        let Cleaned {
            scratch_count: scratch_folders,
            outputs_count: outputs,
            forgotten_count: announcements,
        } = cleaned;
        tracing::info!(
            scratch_folders,
            outputs,
            announcements,
            "removed what dead workers left"
        );
    }
    cleaned
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Removed {
    Bytes,
    OnlyAnnouncement,
    Nothing,
}

async fn remove(context: &Arc<WorkContext>, dead: &DeadOutput) -> Result<Removed, RunError> {
    let catalog = &context.catalog;
    let table = &dead.queue.table;
    let indexed = catalog
        .resolve(table, std::slice::from_ref(&dead.path))
        .await?;
    if indexed.iter().any(Option::is_some) {
        catalog.forget_output(dead).await?;
        return Ok(Removed::OnlyAnnouncement);
    }
    let layer = context.layers.get(&dead.queue.layer)?.clone();
    if let Some(file) = missing_source(context, dead).await? {
        tracing::error!(%table, output = %dead.path, missing = %file.display(),
            "the index names a file that is gone, and this output of a forgotten merge may hold its only copy: it is kept; register it by hand (gigamerge import) or put the file back");
        return Ok(Removed::Nothing);
    }
    let (of, path) = (table.clone(), dead.path.clone());
    let was_there = blocking(move || layer.delete(&of, &path)).await??;
    catalog.forget_output(dead).await?;
    Ok(if was_there {
        Removed::Bytes
    } else {
        Removed::OnlyAnnouncement
    })
}

/// A catalog that lost its last writes (a crash, a failover) forgets commits, and names files again whose
/// bytes were deleted since.
async fn missing_source(
    context: &WorkContext,
    dead: &DeadOutput,
) -> Result<Option<std::path::PathBuf>, RunError> {
    let table = dead.queue.table.clone();
    let layer = context.layers.get(&dead.sources_layer)?;
    let entries = context.catalog.resolve(&table, &dead.sources).await?;
    let sources: Vec<_> = entries
        .into_iter()
        .flatten()
        .filter(|entry| entry.layer == dead.sources_layer)
        .map(|entry| layer.data_file(&table, &entry.path))
        .collect();
    blocking(move || {
        for file in sources {
            let is_there = file.try_exists().map_err(|source| StorageError::Io {
                path: file.clone(),
                source,
            })?;
            if !is_there {
                return Ok(Some(file));
            }
        }
        Ok(None)
    })
    .await?
}

/// Scratch of processes that are gone; says how many folders.
async fn sweep_scratch(context: &WorkContext) -> u64 {
    let layers = context.layers.clone();
    let scratch_dir = context.config.worker.scratch_dir.clone();
    blocking(move || {
        let in_tables: u64 = layers.iter().map(Layer::sweep_workspaces).sum();
        in_tables + scratch_dir.as_deref().map_or(0, Workspace::sweep)
    })
    .await
    .unwrap_or(0)
}
