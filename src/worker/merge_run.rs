//! One plan from claim to commit. Order is everything: bytes, then index, then drops
//! (BYTES-BEFORE-INDEX, DROP-AFTER-COMMIT), and nothing is published that is not ours (ONE-HOLDER).

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    WorkContext, WorkError, commit,
    dead_outputs::{output_path, remove_dead_attempts},
    gate::ClaimTurn,
    lease_keeper::LeaseKeeper,
    merge_end::give_back,
    promote,
    published::{self, Published},
    run_error::{RunError, blocking},
    sources,
    suspects::{self, Verdict},
};
use crate::{
    crash_points::CrashPoint,
    merge::{self, MergeControl, MergeError, MergeReport, MergeRequest},
    model::{ClaimedMerge, DataPath, IndexEntry, MergePlan, SetAside},
    storage::{Layer, StorageError, Workspace},
};

/// Merges longer than this tell how far they are, this often.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Everything that one attempt needs.
pub(super) struct Attempt<'a> {
    pub(super) context: &'a Arc<WorkContext>,
    pub(super) plan: &'a MergePlan,
    pub(super) layer: &'a Layer,
    /// The inputs that are in the index, in the plan's order.
    pub(super) sources: Vec<IndexEntry>,
    pub(super) output: DataPath,
}

/// What an attempt came to.
enum Made {
    /// Published bytes.
    Output(Box<Published>),
    /// No input is left.
    Nothing,
    /// It is not merged.
    Judged(Verdict),
}

/// Sees a claimed plan through: it ends committed, given back or given up, and says so in the log.
pub(super) async fn run(
    context: &Arc<WorkContext>,
    claim: ClaimedMerge,
    claimed_at: Instant,
    turn: ClaimTurn,
) {
    let started = Instant::now();
    let control = Arc::new(MergeControl::default());
    let lease = context.config.worker.lease;
    let keeper = LeaseKeeper::start(
        Arc::clone(&context.catalog),
        (claim.clone(), claimed_at),
        lease,
        Arc::clone(&control),
    );
    // Kept until the claim has ended.
    let turn = turn
        .begin(claim.plan.runs_alone(), &context.stop.merges)
        .await;
    let made = match &turn {
        Some(_) => make_output(context, &claim.plan, &keeper, &control).await,
        None => Err(MergeError::Cancelled.into()),
    };
    let (claim, is_held) = keeper.stop().await;
    let done = match made {
        Ok(Made::Output(made)) if is_held => {
            let committed = commit::commit(context, &claim, Some(*made), started).await;
            context.reached(CrashPoint::MergeCommitted);
            committed
        }
        Ok(Made::Nothing) if is_held => commit::commit(context, &claim, None, started).await,
        Ok(Made::Judged(verdict)) if is_held => {
            let ended = suspects::execute(context, &claim, &verdict).await;
            context.reached(CrashPoint::MergeJudged);
            ended.map_err(RunError::from)
        }
        Ok(made) => {
            if let Made::Output(published) = &made {
                published.remove(context).await;
            }
            Err(RunError::LeaseLost)
        }
        Err(_) if !is_held => Err(RunError::LeaseLost),
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        give_back(context, &claim, &error).await;
    }
}

/// Steps up to the published bytes.
async fn make_output(
    context: &Arc<WorkContext>,
    plan: &MergePlan,
    keeper: &LeaseKeeper,
    control: &Arc<MergeControl>,
) -> Result<Made, RunError> {
    for (path, reason) in &plan.refused_paths {
        tracing::error!(plan = %plan.queue, path, reason, "a plan names a path that is not touched");
    }
    let layer = context.layers.get(&plan.queue.layer)?;
    let (sources, malformed) = sources::resolve(context, plan).await?;
    let mut attempt = Attempt {
        context,
        plan,
        layer,
        sources,
        output: output_path(plan, plan.attempts)?,
    };
    if plan.attempts > 1 && sources::are_all_there(&attempt).await? {
        remove_dead_attempts(&attempt, keeper).await?;
    }
    if attempt.sources.is_empty() && malformed.is_empty() {
        return Ok(Made::Nothing);
    }
    let max_attempts = context.config.worker.max_attempts;
    if let Some(verdict) = suspects::judge(plan, &attempt.sources, &malformed, max_attempts) {
        return Ok(Made::Judged(verdict));
    }
    let (files, mut set_aside) = sources::locate(&mut attempt).await?;
    set_aside.extend(malformed);
    context.reached(CrashPoint::MergeResolved);
    if set_aside.is_empty()
        && let Some(published) = promote::try_promote(&attempt, &files, keeper).await?
    {
        return Ok(Made::Output(Box::new(published)));
    }
    let published = merge_and_publish(attempt, files, set_aside, keeper, control).await?;
    Ok(Made::Output(Box::new(published)))
}

/// Merges in a work folder that goes away on every path, off the runtime: it may hold gigabytes.
async fn merge_and_publish(
    mut attempt: Attempt<'_>,
    mut files: Vec<PathBuf>,
    mut set_aside: Vec<SetAside>,
    keeper: &LeaseKeeper,
    control: &Arc<MergeControl>,
) -> Result<Published, RunError> {
    let table = attempt.plan.queue.table.clone();
    let layer = attempt.layer.clone();
    let (context, input_bytes) = (attempt.context, input_bytes(files.clone()).await?);
    // Held until the output is published: what is written counts as taken until then.
    let room = context
        .budgets
        .reserve(&context.config, &layer, input_bytes);
    let Some(_room) = room.await? else {
        return Err(RunError::NoRoom);
    };
    let scratch_dir = attempt.context.config.worker.scratch_dir.clone();
    let folders = blocking(move || -> Result<_, StorageError> {
        let workspace = layer.workspace(&table)?;
        let scratch = scratch_dir.as_deref().map(Workspace::create).transpose()?;
        Ok((workspace, scratch))
    })
    .await??;
    let staged = folders.0.dir().join("merged.parquet");
    let scratch = folders.1.as_ref().unwrap_or(&folders.0).dir().to_owned();
    let merged = merge_readable(
        &mut attempt,
        &mut files,
        &mut set_aside,
        (&staged, &scratch),
        control,
    )
    .await;
    let announced = match &merged {
        Ok(Some(_)) => {
            attempt.context.reached(CrashPoint::MergeWritten);
            let announced = keeper.announce(attempt.layer.name(), &attempt.output).await;
            attempt.context.reached(CrashPoint::MergeAnnounced);
            announced.map(Some)
        }
        _ => Ok(None),
    };
    let ours_until = announced.as_ref().copied().unwrap_or_default();
    let (layer, table, output) = (
        attempt.layer.clone(),
        attempt.plan.queue.table.clone(),
        attempt.output.clone(),
    );
    let published = blocking(move || {
        let published = match ours_until {
            // Stopped or swapped out since: whoever took over does not expect new bytes.
            Some(until) if until <= Instant::now() => Err(RunError::LeaseLost),
            Some(_) => layer
                .publish(&staged, &table, &output)
                .map_err(RunError::from),
            None => Ok(()),
        };
        drop(folders);
        published
    })
    .await?;
    let Some(report) = merged? else {
        return Ok(published::nothing_but_set_aside(&attempt, set_aside));
    };
    announced?;
    published?;
    attempt.context.reached(CrashPoint::MergePublished);
    Ok(published::merged(&attempt, report, set_aside))
}

/// Bytes of these files as they are; what the catalog says of them may be wrong.
async fn input_bytes(files: Vec<PathBuf>) -> Result<u64, RunError> {
    let size = |file: &PathBuf| std::fs::metadata(file).map_or(0, |meta| meta.len());
    blocking(move || files.iter().map(size).fold(0, u64::saturating_add)).await
}

/// Merges, leaving out inputs that cannot be read. Each is given a second chance first: a full table of
/// open files or a hiccup of the disk must not set a good file aside. `None` when no input is left.
async fn merge_readable(
    attempt: &mut Attempt<'_>,
    files: &mut Vec<PathBuf>,
    set_aside: &mut Vec<SetAside>,
    (staged, scratch): (&Path, &Path),
    control: &Arc<MergeControl>,
) -> Result<Option<MergeReport>, RunError> {
    let context = attempt.context;
    let table = context.config.table(&attempt.plan.queue.table);
    let mut suspects: HashSet<PathBuf> = HashSet::new();
    let (paths, options) = (
        files.clone(),
        table.merge_options(context.merge_budget_bytes()),
    );
    let wanted_bytes = blocking(move || merge::estimate_memory(&paths, &options)).await?;
    let mut memory = context.budgets.memory(wanted_bytes);
    tracing::debug!(plan = %attempt.plan.queue, wanted_bytes, granted_bytes = memory.bytes, "memory");
    while !files.is_empty() {
        let request = MergeRequest {
            inputs: files.clone(),
            output: staged.to_owned(),
            scratch: scratch.to_owned(),
            options: table.merge_options(memory.bytes),
        };
        match merge_on_thread(attempt, request, control).await {
            Err(RunError::Merge(MergeError::BadInputs(bad))) if !bad.is_empty() => {
                if let Some(lack) = bad.iter().find(|bad| bad.is_lack) {
                    return Err(sources::lacking(lack));
                }
                let (again, first): (Vec<_>, Vec<_>) = bad
                    .into_iter()
                    .partition(|bad| suspects.contains(&bad.path));
                if !first.is_empty() {
                    // A page or footer that is too large for a small share may fit into a large one.
                    drop(memory);
                    memory = context.budgets.memory(u64::MAX);
                }
                suspects.extend(first.into_iter().map(|bad| bad.path));
                set_aside.extend(sources::set_aside(attempt, files, again).await?);
            }
            other => return other.map(Some),
        }
    }
    Ok(None)
}

/// Runs the merge on a thread of its own and stops it when the daemon stops.
async fn merge_on_thread(
    attempt: &Attempt<'_>,
    request: MergeRequest,
    control: &Arc<MergeControl>,
) -> Result<MergeReport, RunError> {
    let (send, mut receive) = tokio::sync::oneshot::channel();
    let control_of_thread = Arc::clone(control);
    std::thread::Builder::new()
        .name("merge".to_owned())
        .spawn(move || {
            // The receiver waits for as long as the thread runs.
            let _ = send.send(merge::merge_files(&request, &control_of_thread));
        })
        .map_err(WorkError::Thread)?;
    let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
    progress.tick().await;
    let rows_total: u64 = attempt.sources.iter().map(|source| source.row_count).sum();
    loop {
        tokio::select! {
            result = &mut receive => return Ok(result.map_err(|_| RunError::Panicked)??),
            () = attempt.context.stop.merges.cancelled(), if !control.is_cancelled() => control.cancel(),
            _ = progress.tick() => {
                let (rows_read, rows_written) = control.progress();
                tracing::info!(plan = %attempt.plan.queue, rows_read, rows_written, rows_total, "merging");
            }
        }
    }
}
