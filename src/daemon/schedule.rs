//! When which task runs.
//!
//! Each merge level, the moves, the deletes and the look for new files are jobs of their own: a level that falls
//! behind delays neither deletes nor the look for files, and waits with other levels for a free merge
//! in turn. A job that still runs is not started again.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::Semaphore;
use tokio_cron_scheduler::{Job, JobScheduler};

use super::DaemonError;
use crate::{
    config::CatalogConfig,
    worker::{self, WorkContext},
};

/// The scheduler looks at its clock twice a second.
const PERIOD_MIN: Duration = Duration::from_secs(1);
/// New files are looked for at least this often.
const REFRESH_PERIOD_MAX: Duration = Duration::from_secs(10);
/// Several daemons that were started together must not knock at the same moment.
const JITTER_MAX: Duration = Duration::from_secs(5);
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// A clock that was slewed this far is no reason to start again.
const CLOCK_STEP_MAX: Duration = Duration::from_secs(30);

/// The running timers of one configuration.
pub(super) struct Timers {
    scheduler: JobScheduler,
    started: (Instant, SystemTime),
}

impl Timers {
    /// Returns when the system clock was set. The scheduler reckons in that clock: after a step back it
    /// would wait until the old time comes again.
    pub(super) async fn clock_stepped(&self) {
        loop {
            tokio::time::sleep(CLOCK_CHECK_INTERVAL).await;
            let passed = self.started.0.elapsed();
            let shown = self.started.1.elapsed().unwrap_or_default();
            if shown.abs_diff(passed) > CLOCK_STEP_MAX {
                return;
            }
        }
    }

    /// No job starts any more; those that run go on.
    pub(super) async fn stop(&mut self) {
        if let Err(error) = self.scheduler.shutdown().await {
            tracing::warn!(%error, "timers could not be stopped");
        }
    }
}

type Run = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A task with its name, its period, and one run at a time.
#[derive(Clone)]
struct Task {
    name: String,
    period: Duration,
    schedule: Option<String>,
    run: Run,
    turn: Arc<Semaphore>,
}

impl Task {
    fn new(name: String, period: Duration, schedule: Option<String>, run: Run) -> Self {
        Self {
            name,
            period: period.max(PERIOD_MIN),
            schedule,
            run,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    async fn run_unless_running(self, context: Arc<WorkContext>) {
        let Ok(_turn) = self.turn.try_acquire() else {
            return tracing::debug!(task = self.name, "still running; not started again");
        };
        let jitter = (self.period / 10).min(JITTER_MAX).mul_f64(fastrand::f64());
        tokio::select! {
            () = context.stop.claims.cancelled() => return,
            () = tokio::time::sleep(jitter) => {}
        }
        (self.run)().await;
    }

    fn job(&self, context: &Arc<WorkContext>) -> Result<Job, DaemonError> {
        let (task, context) = (self.clone(), Arc::clone(context));
        let start = move |_, _| -> Pin<Box<dyn Future<Output = ()> + Send>> {
            Box::pin(task.clone().run_unless_running(Arc::clone(&context)))
        };
        let job = match &self.schedule {
            Some(line) => Job::new_async(line.as_str(), start),
            None => Job::new_repeated_async(self.period, start),
        };
        job.map_err(|error| self.error(&error))
    }

    fn error(&self, error: &tokio_cron_scheduler::JobSchedulerError) -> DaemonError {
        DaemonError::Schedule {
            job: self.name.clone(),
            reason: error.to_string(),
        }
    }
}

/// Starts the timers of a configuration. Tasks without a cron line also run once soon, so that a
/// restart does not put off what is due.
pub(super) async fn start(context: &Arc<WorkContext>) -> Result<Timers, DaemonError> {
    let failed = |error: &tokio_cron_scheduler::JobSchedulerError| DaemonError::Schedule {
        job: "the scheduler".to_owned(),
        reason: error.to_string(),
    };
    let scheduler = JobScheduler::new().await.map_err(|error| failed(&error))?;
    for task in tasks(context) {
        scheduler
            .add(task.job(context)?)
            .await
            .map_err(|error| task.error(&error))?;
        if task.schedule.is_none() {
            tokio::spawn(task.run_unless_running(Arc::clone(context)));
        }
    }
    scheduler.start().await.map_err(|error| failed(&error))?;
    Ok(Timers {
        scheduler,
        started: (Instant::now(), SystemTime::now()),
    })
}

fn tasks(context: &Arc<WorkContext>) -> Vec<Task> {
    let config = &context.config;
    let mut tasks: Vec<Task> = config.levels.iter().map(|level| {
        let (worker, iteration) = (Arc::clone(context), level.iteration);
        let run: Run = Arc::new(move || {
            let worker = Arc::clone(&worker);
            Box::pin(async move {
                if let Err(error) = worker::merge_due(&worker, iteration).await {
                    tracing::warn!(iteration = iteration.0, %error, "merges could not be looked for; trying again");
                }
            })
        });
        Task::new(format!("merge iteration {iteration}"), level.timeout, level.schedule.clone(), run)
    }).collect();
    let worker = Arc::clone(context);
    tasks.push(Task::new(
        "delete replaced files".to_owned(),
        config.drops.interval,
        None,
        Arc::new(move || {
            let worker = Arc::clone(&worker);
            Box::pin(async move {
                if let Err(error) = worker::delete_due(&worker).await {
                    tracing::warn!(%error, "deletes could not be done; trying again");
                }
            })
        }),
    ));
    if worker::serves_moves(config) {
        let worker = Arc::clone(context);
        tasks.push(Task::new(
            "move files to the next layer".to_owned(),
            config.drops.interval,
            None,
            Arc::new(move || {
                let worker = Arc::clone(&worker);
                Box::pin(async move {
                    if let Err(error) = worker::move_due(&worker).await {
                        tracing::warn!(%error, "moves could not be looked for; trying again");
                    }
                })
            }),
        ));
    }
    let worker = Arc::clone(context);
    tasks.push(Task::new(
        "remove what dead workers left".to_owned(),
        config.worker.janitor_interval,
        None,
        Arc::new(move || {
            let worker = Arc::clone(&worker);
            Box::pin(async move {
                worker::clean(&worker).await;
            })
        }),
    ));
    if config.catalog == CatalogConfig::Json {
        let shortest = config
            .levels
            .iter()
            .map(|level| level.timeout)
            .min()
            .unwrap_or(REFRESH_PERIOD_MAX);
        let worker = Arc::clone(context);
        tasks.push(Task::new(
            "find new files".to_owned(),
            shortest.min(REFRESH_PERIOD_MAX),
            None,
            Arc::new(move || {
                let worker = Arc::clone(&worker);
                Box::pin(async move { find_new_files(&worker).await })
            }),
        ));
    }
    tasks
}

async fn find_new_files(worker: &WorkContext) {
    match worker.catalog.refresh().await {
        Ok(found) if found.registered_count > 0 => {
            tracing::debug!(files = found.registered_count, "registered new files")
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "new files could not be looked for; trying again"),
    }
}
