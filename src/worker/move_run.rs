//! One move from claim to commit. The bytes are copied to the next layer and compared, then get their
//! name there, then the index changes in one step (BYTES-BEFORE-INDEX), then the old bytes wait for
//! their deletion like those of a merge's inputs (DROP-AFTER-COMMIT). A file whose last layer's time is
//! over leaves the index in one step, and its bytes wait in the same way.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    WorkContext,
    commit::{self, Change},
    dead_outputs::{earlier_attempts, remove_output, remove_unindexed},
    lease_keeper::LeaseKeeper,
    move_end::{Ending, MoveError, end, give_back},
    run_error::{RunError, blocking},
};
use crate::{
    catalog::{CatalogError, MoveCommit},
    crash_points::CrashPoint,
    merge::MergeControl,
    model::{ClaimedMove, DataPath, IndexEntry, LayerName, ModelError, MoveItem},
    storage::{Copied, Layer, copy_checked},
};

/// What an attempt came to.
enum Made {
    /// The bytes are in the next layer under this name.
    Copied {
        layer: LayerName,
        path: DataPath,
        bytes: u64,
    },
    /// The file is to leave the index.
    Expired,
    /// The index has it there no more.
    Gone,
}

/// Sees a claimed move through. False when something beside the file keeps it from being moved, so that
/// others would meet the same.
pub(super) async fn run(
    context: &Arc<WorkContext>,
    claim: ClaimedMove,
    claimed_at: Instant,
) -> bool {
    let started = Instant::now();
    let control = Arc::new(MergeControl::default());
    let keeper = LeaseKeeper::start(
        Arc::clone(&context.catalog),
        (claim.clone(), claimed_at),
        context.config.worker.lease,
        Arc::clone(&control),
    );
    let made = prepare(context, &claim.item, &keeper, &control).await;
    let (claim, is_held) = keeper.stop().await;
    let done = match made {
        Ok(Made::Gone) if is_held => {
            let item = &claim.item;
            tracing::info!(table = %item.table, file = %item.path_from, layer = %item.layer_from,
                "move ended: the index does not have the file there any more");
            return end(context, &claim, &Ending::Finish).await;
        }
        Ok(made) if is_held => commit(context, &claim, &made, started).await,
        Ok(made) => {
            remove_copy(context, &claim.item, &made).await;
            Err(RunError::LeaseLost.into())
        }
        Err(_) if !is_held => Err(RunError::LeaseLost.into()),
        Err(error) => Err(error),
    };
    match done {
        Ok(()) => true,
        Err(error) => give_back(context, &claim, &error).await,
    }
}

/// Steps up to the published copy.
async fn prepare(
    context: &Arc<WorkContext>,
    item: &MoveItem,
    keeper: &LeaseKeeper<ClaimedMove>,
    control: &Arc<MergeControl>,
) -> Result<Made, MoveError> {
    let Some(entry) = look_up(context, item).await? else {
        return Ok(Made::Gone);
    };
    let from = context.layers.get(&item.layer_from)?.clone();
    let target = target(context, item)?;
    if item.attempts > 1
        && let Some(to) = &target
    {
        remove_dead_copies(context, item, (&from, to), keeper).await?;
    }
    if item.counted_attempts() > context.config.worker.max_attempts {
        return Err(MoveError::Died(item.counted_attempts() - 1));
    }
    check_time(context, item, &entry, target.is_none())?;
    let Some(to) = target else {
        return Ok(Made::Expired);
    };
    let (file, bytes) = locate(&from, item).await?;
    let path = copy_path(item, item.attempts)?;
    copy_and_publish(context, item, (&file, bytes), (&to, &path), keeper, control).await?;
    Ok(Made::Copied {
        layer: to.name().clone(),
        path,
        bytes,
    })
}

/// The file's entry, if it lies in the layer that it is to leave.
async fn look_up(context: &WorkContext, item: &MoveItem) -> Result<Option<IndexEntry>, MoveError> {
    let path = std::slice::from_ref(&item.path_from);
    match context.catalog.resolve(&item.table, path).await {
        Ok(found) => Ok(found
            .into_iter()
            .flatten()
            .find(|entry| entry.layer == item.layer_from)),
        Err(CatalogError::Malformed { reason, .. }) => Err(MoveError::Malformed(reason)),
        Err(error) => Err(error.into()),
    }
}

/// Where the file goes; `None` when it expires. An item may be older than the settings: where these
/// have a next layer, nothing is deleted.
fn target(context: &WorkContext, item: &MoveItem) -> Result<Option<Layer>, MoveError> {
    let policy = context.config.policy();
    let next = policy
        .layers
        .iter()
        .find(|layer| layer.name == item.layer_from)
        .and_then(|layer| layer.next.clone());
    let name = item.layer_to.clone().or(next);
    Ok(name
        .map(|name| context.layers.get(&name).cloned())
        .transpose()?)
}

/// Whether the file's time is over by our settings too, which may have changed since the item was made.
fn check_time(
    context: &WorkContext,
    item: &MoveItem,
    entry: &IndexEntry,
    expires: bool,
) -> Result<(), MoveError> {
    let layers = &context.config.layers;
    let layer = layers.iter().find(|layer| layer.name == item.layer_from);
    let Some(ttl) = layer.and_then(|layer| layer.ttl) else {
        return Ok(());
    };
    let chunk_time_ns = match u64::try_from(entry.chunk_time_ns) {
        Ok(time_ns) if time_ns > 0 => time_ns,
        _ if expires => return Err(MoveError::NoChunkTime),
        _ => return Ok(()),
    };
    let due = UNIX_EPOCH + Duration::from_nanos(chunk_time_ns) + ttl;
    match due.duration_since(SystemTime::now()) {
        Ok(left) if !left.is_zero() => Err(MoveError::NotDue(left)),
        _ => Ok(()),
    }
}

/// The name of an attempt's copy. That of the item may stand in other items too, whose copies must not be
/// taken for ours; this one depends on the item and the attempt, so that the next holder knows what a dead
/// one left.
fn copy_path(item: &MoveItem, attempt: u32) -> Result<DataPath, ModelError> {
    let parts = [
        item.id.as_str(),
        item.layer_from.as_str(),
        item.path_from.as_str(),
    ];
    let seed = parts.join("\0");
    let name = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, seed.as_bytes());
    let (dir, iteration) = (item.path_to.dir(), item.path_to.iteration());
    dir.file(&format!("{name}-{attempt}"), iteration)
}

/// Copies of earlier attempts that the index does not name, but only while the original is there: a server
/// that lost its last writes may have forgotten a commit, and then such a copy is the only one.
async fn remove_dead_copies(
    context: &WorkContext,
    item: &MoveItem,
    (from, to): (&Layer, &Layer),
    keeper: &LeaseKeeper<ClaimedMove>,
) -> Result<(), MoveError> {
    let original = from.data_file(&item.table, &item.path_from);
    if !blocking(move || matches!(original.try_exists(), Ok(true))).await? {
        return Ok(());
    }
    let names = earlier_attempts(item.attempts)
        .map(|attempt| copy_path(item, attempt))
        .collect::<Result<Vec<_>, _>>()?;
    remove_unindexed(context, &item.table, to, names, keeper).await?;
    Ok(())
}

/// Where the original lies, and its size.
async fn locate(from: &Layer, item: &MoveItem) -> Result<(PathBuf, u64), MoveError> {
    let (layer, table, path) = (from.clone(), item.table.clone(), item.path_from.clone());
    blocking(move || {
        let file = layer.checked_file(&table, &path)?;
        match std::fs::metadata(&file) {
            Ok(meta) => Ok((file, meta.len())),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(RunError::Unreadable {
                    path: file,
                    source: error,
                }
                .into())
            }
            Err(_) if file.parent().is_some_and(Path::exists) => Err(MoveError::Missing(file)),
            Err(_) => Err(RunError::FolderAway(file).into()),
        }
    })
    .await?
}

async fn copy_and_publish(
    context: &Arc<WorkContext>,
    item: &MoveItem,
    (file, bytes): (&Path, u64),
    (to, path): (&Layer, &DataPath),
    keeper: &LeaseKeeper<ClaimedMove>,
    control: &Arc<MergeControl>,
) -> Result<(), MoveError> {
    // Held until the copy has its name: what is written counts as taken until then.
    let room = context.budgets.reserve_copy(&context.config, to, bytes);
    let Some(_room) = room.await.map_err(RunError::from)? else {
        return Err(MoveError::NoRoom(to.name().clone()));
    };
    let (layer, table) = (to.clone(), item.table.clone());
    // Goes away on every path.
    let workspace = blocking(move || layer.workspace(&table)).await??;
    let staged = workspace.dir().join("moved.parquet");
    copy_unless_stopped(context, file, &staged, control).await?;
    context.reached(CrashPoint::MoveCopied);
    let ours_until = keeper.announce(to.name(), path).await?;
    context.reached(CrashPoint::MoveAnnounced);
    let (layer, table, path) = (to.clone(), item.table.clone(), path.clone());
    blocking(move || {
        // Stopped or swapped out since: whoever took over does not expect new bytes.
        let published = if ours_until <= Instant::now() {
            Err(RunError::LeaseLost)
        } else {
            layer
                .publish(&staged, &table, &path)
                .map_err(RunError::from)
        };
        drop(workspace);
        published
    })
    .await??;
    context.reached(CrashPoint::MovePublished);
    Ok(())
}

/// Copies off the runtime, in pieces between which it looks whether it is still wanted.
async fn copy_unless_stopped(
    context: &WorkContext,
    file: &Path,
    staged: &Path,
    control: &Arc<MergeControl>,
) -> Result<(), MoveError> {
    let (file, staged, wanted) = (file.to_owned(), staged.to_owned(), Arc::clone(control));
    let copy = blocking(move || copy_checked(&file, &staged, &|| wanted.is_cancelled()));
    tokio::pin!(copy);
    loop {
        tokio::select! {
            copied = &mut copy => return match copied?? {
                Copied::Done => Ok(()),
                Copied::Stopped => Err(MoveError::Stopped),
            },
            () = context.stop.merges.cancelled(), if !control.is_cancelled() => control.cancel(),
        }
    }
}

/// Changes the index. A copy that the index does not name for sure is removed again.
async fn commit(
    context: &Arc<WorkContext>,
    claim: &ClaimedMove,
    made: &Made,
    started: Instant,
) -> Result<(), MoveError> {
    let to = match made {
        Made::Copied { layer, path, .. } => Some((layer.clone(), path.clone())),
        Made::Expired | Made::Gone => None,
    };
    let item = &claim.item;
    let (table, file, from) = (&item.table, &item.path_from, &item.layer_from);
    let grace = context.config.grace(from);
    let commit = MoveCommit { to, grace };
    let done = commit::commit_until_known(context, Change::Move(claim, &commit)).await;
    context.reached(CrashPoint::MoveCommitted);
    match (&done, made) {
        (Ok(()), Made::Copied { layer, path, bytes }) => {
            context.totals.add_move(*bytes);
            tracing::info!(%table, %file, %from, to = %layer, name = path.file_name(), bytes,
                duration_ms = started.elapsed().as_millis(), "moved");
        }
        (Ok(()), _) => {
            context.totals.add_expiry();
            tracing::info!(%table, %file, layer = %from, deleted_in = ?grace, "expired");
        }
        (Err(error), _) if commit::output_is_ours_to_remove(error) => {
            remove_copy(context, item, made).await;
        }
        (Err(_), _) => {}
    }
    Ok(done?)
}

async fn remove_copy(context: &WorkContext, item: &MoveItem, made: &Made) {
    if let Made::Copied { layer, path, .. } = made {
        remove_output(context, &item.table, layer, path).await;
    }
}
