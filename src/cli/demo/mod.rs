//! `gigamerge demo`: the real daemon on a fresh folder beside a small writer, with short timeouts,
//! a live view, and a summary that checks what was promised.

mod error;
mod rows;
mod view;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytesize::ByteSize;

pub use self::error::DemoError;
use self::{
    rows::{RowTally, tally_file},
    view::{View, shares},
    writer::{Writer, Written},
};
use super::DemoArgs;
use crate::{
    catalog::EntryFilter,
    config::{Config, ConfigError, ConfigSources, LevelConfig, Overrides},
    daemon::{self, Access, Daemon},
    model::Iteration,
    telemetry::logging,
    worker::WorkContext,
};

const DRAW_INTERVAL: Duration = Duration::from_secs(2);
/// Merging what the writer left behind takes no longer than this.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(30);

/// Runs the demo. An error means that a promise was broken or the folder could not be used.
pub async fn run(args: &DemoArgs) -> Result<(), DemoError> {
    let (folder, is_kept) = folder(args)?;
    let result = run_in(&folder, args).await;
    if is_kept {
        println!("The files stay in {}.", folder.display());
    } else if let Err(error) = std::fs::remove_dir_all(&folder) {
        eprintln!("{} could not be removed: {error}", folder.display());
    }
    result
}

/// A folder of the user's must be new or empty: the demo must not touch anybody's data.
fn folder(args: &DemoArgs) -> Result<(PathBuf, bool), DemoError> {
    let (folder, is_kept) = match &args.dir {
        Some(dir) => (dir.clone(), true),
        None => (
            std::env::temp_dir().join(format!("gigamerge-demo-{}", uuid::Uuid::new_v4().simple())),
            false,
        ),
    };
    std::fs::create_dir_all(&folder).map_err(DemoError::folder(&folder))?;
    let folder = folder.canonicalize().map_err(DemoError::folder(&folder))?;
    if std::fs::read_dir(&folder)
        .map_err(DemoError::folder(&folder))?
        .next()
        .is_some()
    {
        return Err(DemoError::NotEmpty { path: folder });
    }
    Ok((folder, is_kept))
}

/// The defaults, with timeouts that make half a minute look like an hour. Neither file nor
/// environment counts: a demo shows the same everywhere.
fn quick_config(folder: &Path) -> Result<Config, ConfigError> {
    let mut config = Config::load(&ConfigSources {
        overrides: Overrides {
            data_dir: Some(folder.display().to_string()),
            ..Overrides::default()
        },
        ..ConfigSources::default()
    })?;
    let level = |iteration, timeout_s, max_size_bytes| LevelConfig {
        iteration: Iteration(iteration),
        timeout: Duration::from_secs(timeout_s),
        max_size_bytes,
        schedule: None,
    };
    config.levels = vec![level(1, 2, 4 << 20), level(2, 8, 64 << 20)];
    config.drops.grace = Duration::from_secs(3);
    config.drops.interval = Duration::from_secs(1);
    "warn".clone_into(&mut config.log.level);
    Ok(config)
}

async fn run_in(folder: &Path, args: &DemoArgs) -> Result<(), DemoError> {
    let config = quick_config(folder)?;
    logging::start(&config.log);
    let mut signals = daemon::listen()?;
    let context = daemon::open(config, Access::Work).await?;
    let daemon = Daemon::start(Arc::clone(&context)).await?;
    let run_time = Duration::from_secs(args.seconds);
    println!(
        "A writer drops {} unsorted files a second into {}; gigamerge merges them. Ctrl-C ends it early.\n",
        writer::FILES_PER_SECOND,
        folder.display()
    );
    let writer =
        Writer::start(folder.to_owned(), run_time / 2).map_err(DemoError::folder(folder))?;
    let started = Instant::now();
    let mut view = View::default();
    let mut draw = tokio::time::interval(DRAW_INTERVAL);
    while started.elapsed() < run_time {
        tokio::select! {
            _ = signals.recv() => break,
            _ = draw.tick() => view.draw(started.elapsed(), &shares(context.catalog.as_ref()).await?, &context.totals),
        }
    }
    let written = tokio::task::spawn_blocking(|| writer.finish())
        .await
        .map_err(|error| DemoError::Broken(error.to_string()))??;
    println!("\nThe writer stopped. Merging what it left behind ...");
    let settled = settle(&context, &written, &mut signals).await;
    let (stop, stopped) = tokio::sync::mpsc::channel(1);
    drop(stop);
    daemon
        .run(
            stopped,
            Box::new(|| Err("the demo has no configuration file".to_owned())),
        )
        .await;
    settled?;
    summarize(&context, &written).await
}

/// Waits until every file went through all levels and the replaced ones are deleted, or a signal comes.
async fn settle(
    context: &Arc<WorkContext>,
    written: &Written,
    signals: &mut tokio::sync::mpsc::Receiver<daemon::Signal>,
) -> Result<(), DemoError> {
    let started = Instant::now();
    let last = context
        .config
        .levels
        .last()
        .map_or(1, |level| level.iteration.next().0);
    while started.elapsed() < SETTLE_TIME_MAX {
        let shares = shares(context.catalog.as_ref()).await?;
        let depths = context.catalog.queue_depths().await?;
        let rows: u64 = shares.values().map(|share| share.rows).sum();
        let is_done =
            rows == written.tally.rows && shares.keys().all(|iteration| *iteration >= last);
        if is_done && depths.drops_idle_count + depths.drops_processing_count == 0 {
            break;
        }
        tokio::select! {
            _ = signals.recv() => break,
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
        }
    }
    Ok(())
}

/// Reads every file of the index and compares it with what was written.
async fn summarize(context: &Arc<WorkContext>, written: &Written) -> Result<(), DemoError> {
    context.catalog.refresh().await?;
    let mut tally = RowTally::default();
    let (mut files, mut bytes, mut unsorted_merged) = (0_u64, 0_u64, 0_u64);
    for table in context.catalog.tables().await? {
        for entry in context
            .catalog
            .entries(&table, &EntryFilter::default())
            .await?
        {
            let path = context
                .layers
                .get(&entry.layer)?
                .data_file(&table, &entry.path);
            let is_sorted = tally_file(&path, &mut tally)?;
            files += 1;
            bytes += entry.size_bytes;
            unsorted_merged += u64::from(!is_sorted && entry.path.iteration() > Iteration(1));
        }
    }
    let size = |bytes| ByteSize::b(bytes).display().iec().to_string();
    println!("\n            files         size          rows");
    println!(
        "written  {:>8} {:>12} {:>13}",
        written.files,
        size(written.bytes),
        written.tally.rows
    );
    println!("now      {files:>8} {:>12} {:>13}", size(bytes), tally.rows);
    println!(
        "\n{} merges, {} promotions, {} replaced files deleted",
        context.totals.merges(),
        context.totals.promotions(),
        context.totals.drops()
    );
    if tally != written.tally {
        return Err(DemoError::Broken(format!(
            "the rows differ: {} were written, {} are there",
            written.tally.rows, tally.rows
        )));
    }
    if unsorted_merged > 0 {
        return Err(DemoError::Broken(format!(
            "{unsorted_merged} merged files are not sorted"
        )));
    }
    println!("Every row is there exactly once, and every merged file is sorted by time.");
    Ok(())
}
