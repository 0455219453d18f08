//! Puts the parts together and runs them until told to stop.
//!
//! [`open`] builds everything without starting work; [`Daemon`] runs it on timers and obeys signals;
//! [`run_once`] does what is due and returns.

mod once;
mod reload;
mod schedule;
mod signals;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Map;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

pub use once::{OnceReport, run_once};
pub use signals::{Signal, listen, stop_signal};

use crate::{
    catalog::{
        Catalog, CatalogError,
        json::{JsonCatalog, ProbedFile},
        redis::RedisCatalog,
    },
    config::{CatalogConfig, Config},
    merge::{self, MergeError},
    model::TableRef,
    storage::Layers,
    worker::{self, Budgets, Gate, Stop, Totals, WorkContext},
};

/// After running merges were told to stop, they get this long to hand their plans back.
const HAND_BACK_TIME: Duration = Duration::from_secs(10);
/// A daemon whose catalog could not be opened again tries this often.
const STRANDED_RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The catalog could not be opened.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A timer could not be set.
    #[error("timer of {job}: {reason}")]
    Schedule {
        /// The job.
        job: String,
        /// What the scheduler said.
        reason: String,
    },
    /// Signals could not be listened to.
    #[error("signals cannot be listened to: {0}")]
    Signals(std::io::Error),
}

/// How a catalog is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To work: the embedded catalog is locked against other processes.
    Work,
    /// To look: nothing is locked, claimed or written.
    Look,
}

/// Opens catalog and layers; starts no work.
pub async fn open(config: Config, access: Access) -> Result<Arc<WorkContext>, DaemonError> {
    let catalog = open_catalog(&config, access).await?;
    if access == Access::Work {
        warn_of_few_files(&config);
    }
    Ok(context(
        config,
        catalog,
        Arc::new(Totals::default()),
        Gate::default(),
    ))
}

/// Says so when fewer merges run at once than are wanted.
fn warn_of_few_files(config: &Config) {
    let (wanted, possible) = (config.worker.concurrency, worker::merges_at_once(config));
    if possible < wanted {
        tracing::warn!(
            wanted,
            possible,
            "fewer merges run at once: the limit of open files (ulimit -n, LimitNOFILE) leaves no more"
        );
    }
}

fn context(
    config: Config,
    catalog: Arc<dyn Catalog>,
    totals: Arc<Totals>,
    gate: Gate,
) -> Arc<WorkContext> {
    Arc::new(WorkContext {
        catalog,
        layers: Layers::new(&config.layers),
        merge_permits: Arc::new(Semaphore::new(worker::merges_at_once(&config))),
        budgets: Arc::new(Budgets::new(&config)),
        gate,
        claiming: TaskTracker::new(),
        running: TaskTracker::new(),
        stop: Stop::default(),
        totals,
        config,
    })
}

async fn open_catalog(config: &Config, access: Access) -> Result<Arc<dyn Catalog>, CatalogError> {
    let policy = Arc::new(config.policy());
    Ok(match &config.catalog {
        CatalogConfig::Redis(redis) => Arc::new(RedisCatalog::connect(redis, policy)?),
        CatalogConfig::Json => {
            // Others may belong to writers that keep their own metadata.json there.
            let layers = config
                .layers
                .iter()
                .take(1)
                .map(|layer| (layer.name.clone(), layer.root.clone()))
                .collect();
            let for_probe = config.clone();
            let probe = Arc::new(move |table: &TableRef, file: &Path| {
                probe_file(
                    &for_probe,
                    table,
                    &below_real_folder(&for_probe, table, file),
                )
            });
            match access {
                Access::Work => Arc::new(
                    JsonCatalog::open_with(layers, policy, probe, config.crash_points.clone())
                        .await?,
                ),
                Access::Look => Arc::new(JsonCatalog::open_to_look(layers, policy, probe).await?),
            }
        }
    })
}

/// A file of a table, named so that no link above the table's folder is on the way to it.
fn below_real_folder(config: &Config, table: &TableRef, file: &Path) -> PathBuf {
    let real = config.layers.iter().find_map(|layer| {
        let folder = layer.root.join(table.database()).join(table.table());
        let below = file.strip_prefix(&folder).ok()?;
        Some(std::fs::canonicalize(&folder).ok()?.join(below))
    });
    real.unwrap_or_else(|| file.to_owned())
}

/// What is registered of a file that nobody described: read from its footer, and from its values
/// where the footer does not say. The error is a reason, without the file's name.
pub fn probe_file(config: &Config, table: &TableRef, file: &Path) -> Result<ProbedFile, String> {
    let table = config.table(table);
    let options = table.merge_options(config.worker.memory_budget_bytes);
    let summary = merge::summarize(file, &options).map_err(|error| match error {
        // The file is named where the reason is reported.
        MergeError::BadInputs(bad) => bad.into_iter().map(|bad| bad.reason).collect(),
        other => other.to_string(),
    })?;
    let time = summary
        .bounds
        .iter()
        .find(|bounds| bounds.column == table.time_column);
    let (min_time_ns, max_time_ns) = match time.map(|time| (time.min.as_i64(), time.max.as_i64())) {
        Some((Some(min), Some(max))) => (min, max),
        _ if summary.row_count == 0 => (0, 0),
        _ => {
            return Err(format!(
                "it has no times: column {:?} is missing, empty or not an integer",
                table.time_column
            ));
        }
    };
    let sorted = |name: &str| table.order_by.iter().any(|sort| sort.name == name);
    let bounds = || {
        summary
            .bounds
            .iter()
            .filter(|bounds| sorted(&bounds.column))
    };
    Ok(ProbedFile {
        row_count: summary.row_count,
        size_bytes: summary.size_bytes,
        min_time_ns,
        max_time_ns,
        min: bounds()
            .map(|bounds| (bounds.column.clone(), bounds.min.clone()))
            .collect::<Map<_, _>>(),
        max: bounds()
            .map(|bounds| (bounds.column.clone(), bounds.max.clone()))
            .collect::<Map<_, _>>(),
    })
}

/// Reads the configuration again; the error is ready to print.
pub type Reload = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// Runs tasks on timers until a signal says stop.
pub struct Daemon {
    context: Arc<WorkContext>,
    timers: schedule::Timers,
    /// Contexts of earlier configurations whose merges still run.
    retired: Vec<Arc<WorkContext>>,
    /// A reload failed so that neither the new nor the old catalog could be opened.
    is_stranded: bool,
}

impl Daemon {
    /// Starts the timers; every task runs once soon.
    pub async fn start(context: Arc<WorkContext>) -> Result<Self, DaemonError> {
        let timers = schedule::start(&context).await?;
        Ok(Self {
            context,
            timers,
            retired: Vec::new(),
            is_stranded: false,
        })
    }

    /// What the tasks work with now.
    pub fn context(&self) -> &Arc<WorkContext> {
        &self.context
    }

    /// Obeys signals until one says stop; then stops and returns.
    pub async fn run(mut self, mut signals: mpsc::Receiver<Signal>, reload: Reload) {
        loop {
            let is_stopped = tokio::select! {
                signal = signals.recv() => match signal {
                    Some(Signal::Reload) => self.reload(&reload, &mut signals).await,
                    Some(Signal::Stop) | None => true,
                },
                () = self.timers.clock_stepped() => {
                    tracing::warn!("the system clock was set; the timers start again");
                    self.restart_timers().await;
                    false
                }
                () = tokio::time::sleep(STRANDED_RETRY_INTERVAL), if self.is_stranded => {
                    self.reload(&reload, &mut signals).await
                }
            };
            if is_stopped {
                break;
            }
        }
        self.stop(&mut signals).await;
    }

    async fn restart_timers(&mut self) {
        self.timers.stop().await;
        match schedule::start(&self.context).await {
            Ok(timers) => self.timers = timers,
            Err(error) => {
                self.is_stranded = true;
                tracing::error!(%error, "timers could not be started; trying again soon");
            }
        }
    }

    /// No new claims; deletes that were claimed are handed back, running merges get `stop_timeout`, then
    /// hand their plans back too.
    /// A second stop signal cuts the wait short.
    async fn stop(mut self, signals: &mut mpsc::Receiver<Signal>) {
        let timeout = self.context.config.worker.stop_timeout;
        tracing::info!(running = self.context.running.len(), ?timeout, "stopping");
        self.context.stop.claims.cancel();
        self.timers.stop().await;
        let mut contexts = self.retired;
        contexts.push(self.context);
        let is_drained = tokio::select! {
            () = drained(&contexts) => true,
            () = tokio::time::sleep(timeout) => {
                tracing::warn!("work still runs; it stops now and hands its plans back");
                false
            }
            () = stop_signal(signals) => {
                tracing::warn!("stopping now");
                false
            }
        };
        for context in &contexts {
            context.stop.merges.cancel();
        }
        if !is_drained
            && tokio::time::timeout(HAND_BACK_TIME, drained(&contexts))
                .await
                .is_err()
        {
            tracing::error!("work did not stop in time; its leases will run out");
        }
        tracing::info!("stopped");
    }
}

async fn drained(contexts: &[Arc<WorkContext>]) {
    for context in contexts {
        context.drained().await;
    }
}
