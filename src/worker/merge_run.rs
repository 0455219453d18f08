//! One plan from claim to commit. Order is everything: bytes, then index, then drops
//! (BYTES-BEFORE-INDEX, DROP-AFTER-COMMIT), and nothing is published that is not ours (ONE-HOLDER).

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    WorkContext, WorkError,
    budget::RoomError,
    commit,
    gate::ClaimTurn,
    hand_back::{RETRY_DELAY_MAX, retry_delay, until_answered},
    lease_keeper::LeaseKeeper,
    promote, sources,
    suspects::{self, Verdict},
};
use crate::{
    catalog::CatalogError,
    crash_points::CrashPoint,
    merge::{self, MergeControl, MergeError, MergeReport, MergeRequest},
    model::{ClaimedMerge, DataPath, IndexEntry, MergePlan, ModelError, SetAside},
    storage::{Layer, StorageError, Workspace},
};

/// Merges longer than this tell how far they are, this often.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Why a plan was not merged this time.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Work(#[from] WorkError),
    #[error("the merge thread panicked; the inputs are kept as they were")]
    Panicked,
    #[error("{} of the inputs are not there, first {}", .0.len(), .0.first().map(|path| path.display().to_string()).unwrap_or_default())]
    MissingInputs(Vec<PathBuf>),
    #[error("{}: the folder is not there; is its file system mounted?", .0.display())]
    FolderAway(PathBuf),
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("there is too little free space for its merge")]
    NoRoom,
    #[error(transparent)]
    RoomUnknown(#[from] RoomError),
    #[error("the lease was lost; another worker goes on")]
    LeaseLost,
    #[error("{0} left the index meanwhile")]
    SourceGone(String),
    #[error("the catalog names the output already")]
    OutputExists,
    #[error(
        "it is not known whether the commit took place ({0}); the output stays until that is known"
    )]
    CommitUnknown(CatalogError),
}

impl RunError {
    /// Trying again with the same inputs gives the same answer.
    fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Merge(MergeError::TypeConflict { .. }) | Self::Model(_)
        )
    }

    /// The settings are at fault: they may be corrected at any time.
    fn is_setting(&self) -> bool {
        matches!(
            self,
            Self::Merge(
                MergeError::SortColumn { .. }
                    | MergeError::DedupKey { .. }
                    | MergeError::Budget { .. }
            )
        )
    }

    /// The inputs may be at fault, so that the plan is given up after some attempts. A full disk, a lost mount
    /// or a server that is away says nothing about the inputs: such a plan is tried until it succeeds.
    fn blames_inputs(&self) -> bool {
        match self {
            Self::Panicked => true,
            Self::Merge(error) => {
                !self.is_setting()
                    && !matches!(error, MergeError::Io { .. } | MergeError::Cancelled)
            }
            _ => false,
        }
    }

    fn retry_delay(&self, attempts: u32) -> Duration {
        if self.is_setting() {
            RETRY_DELAY_MAX
        } else {
            retry_delay(attempts)
        }
    }
}

/// Everything that one attempt needs.
pub(super) struct Attempt<'a> {
    pub(super) context: &'a Arc<WorkContext>,
    pub(super) plan: &'a MergePlan,
    pub(super) layer: &'a Layer,
    /// The inputs that are in the index, in the plan's order.
    pub(super) sources: Vec<IndexEntry>,
    pub(super) output: DataPath,
}

/// A published file that is not in the index yet.
pub(super) struct Published {
    pub(super) entry: IndexEntry,
    pub(super) sources: Vec<DataPath>,
    pub(super) set_aside: Vec<SetAside>,
    /// `None` for a promotion.
    pub(super) report: Option<MergeReport>,
}

impl Published {
    /// See [`commit::remove_output`].
    pub(super) async fn remove(&self, context: &WorkContext) {
        let entry = &self.entry;
        commit::remove_output(context, &entry.table, &entry.layer, &entry.path).await;
    }
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
        output: commit::output_path(plan, plan.attempts)?,
    };
    if plan.attempts > 1 && sources::are_all_there(&attempt).await? {
        commit::remove_dead_attempts(&attempt, keeper).await?;
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
        return Ok(commit::nothing_but_set_aside(&attempt, set_aside));
    };
    announced?;
    published?;
    attempt.context.reached(CrashPoint::MergePublished);
    Ok(commit::merged(&attempt, report, set_aside))
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

/// Runs file work where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| RunError::Panicked)
}

/// How a claim ends that did not commit.
enum Ending {
    /// Its files are not to blame; the plan is due again after this time.
    Release(Duration),
    /// The attempt counts; the plan is due again after this time.
    Retry(Duration),
    /// The plan is given up.
    GiveUp(String),
    /// Some of its files are suspects.
    Judged(Verdict),
}

/// Ends an attempt that did not commit.
async fn give_back(context: &Arc<WorkContext>, claim: &ClaimedMerge, error: &RunError) {
    let plan = &claim.plan;
    let ending = ending(context, plan, error);
    let (queue, attempts) = (&plan.queue, plan.attempts);
    match &ending {
        Ending::Release(_) if matches!(error, RunError::Merge(MergeError::Cancelled)) => {
            tracing::info!(plan = %queue, "merge stopped; its plan is handed back");
        }
        Ending::Release(_) if matches!(error, RunError::NoRoom) => context.totals.add_held_back(),
        Ending::Release(Duration::ZERO) => {
            context.totals.add_failure();
            tracing::warn!(plan = %queue, %error, "merge abandoned");
        }
        Ending::Release(delay) | Ending::Retry(delay) => {
            context.totals.add_failure();
            tracing::warn!(plan = %queue, attempts, %error, retry_in = ?delay, "merge failed");
        }
        Ending::GiveUp(_) => {
            context.totals.add_failure();
            tracing::error!(plan = %queue, id = %plan.id, attempts, %error,
                "merge given up; its files stay as they are");
        }
        Ending::Judged(_) => {
            context.totals.add_failure();
            tracing::warn!(plan = %queue, id = %plan.id, attempts, %error, "merge failed");
        }
    }
    if let Err(error) = end_when_answered(context, claim, &ending).await {
        tracing::warn!(plan = %queue, %error, "plan could not be handed back; its lease will run out");
    }
}

fn ending(context: &WorkContext, plan: &MergePlan, error: &RunError) -> Ending {
    let max_attempts = context.config.worker.max_attempts;
    let delay = error.retry_delay(plan.attempts);
    match error {
        // Whoever goes on learns that this attempt did not die. A commit that is still on its way
        // is refused afterwards, or has ended the claim.
        RunError::Merge(MergeError::Cancelled)
        | RunError::LeaseLost
        | RunError::CommitUnknown(_) => Ending::Release(Duration::ZERO),
        _ if error.is_final() => Ending::GiveUp(error.to_string()),
        _ if error.blames_inputs() => {
            match suspects::judge_failure(plan, &error.to_string(), max_attempts) {
                Some(verdict) => Ending::Judged(verdict),
                None => Ending::Retry(delay),
            }
        }
        RunError::MissingInputs(_) => Ending::Retry(delay),
        _ => Ending::Release(delay),
    }
}

async fn end_when_answered(
    context: &Arc<WorkContext>,
    claim: &ClaimedMerge,
    ending: &Ending,
) -> Result<(), CatalogError> {
    let catalog = &context.catalog;
    until_answered(context, || async {
        let ended = match ending {
            Ending::Release(delay) => catalog.release_merge(claim, *delay).await,
            Ending::Retry(delay) => catalog.retry_merge(claim, *delay).await,
            Ending::GiveUp(reason) => catalog.fail_merge(claim, reason).await,
            Ending::Judged(verdict) => suspects::execute(context, claim, verdict).await,
        };
        context.reached(match ending {
            Ending::Release(_) | Ending::Retry(_) => CrashPoint::MergeReleased,
            Ending::GiveUp(_) => CrashPoint::MergeGivenUp,
            Ending::Judged(_) => CrashPoint::MergeJudged,
        });
        ended
    })
    .await
}
