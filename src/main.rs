//! The `gigamerge` program.

use std::{process::ExitCode, time::Duration};

use gigamerge::{
    cli::{
        self, Cli, Command, check_config, demo, import, ls, merge_files, once, plan, quarantine,
        query, scripts, undelete, verify,
    },
    config::{Config, ConfigError},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;

/// Merges allocate and free large buffers on many threads; this one gives them back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long blocking file work may go on after everything else has ended.
const SHUTDOWN_TIME: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    // Huge pages are cleared as a whole when one byte of them is touched: a third more memory
    // for a merge, and no time gained. A kernel that refuses changes nothing else.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    allow_open_files();
    gigamerge::merge::silence_caught_panics();
    match run(&cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gigamerge: {error:#}");
            exit_code(&error)
        }
    }
}

/// Takes as many open files as the process may have: the usual limit of 1,024 is for programs
/// that use `select`.
fn allow_open_files() {
    const OPEN_FILES_MAX: u64 = 65_536;
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(OPEN_FILES_MAX).min(OPEN_FILES_MAX);
    if limit.current.is_some_and(|current| current < most) {
        let raised = Rlimit {
            current: Some(most),
            maximum: limit.maximum,
        };
        // Where that is forbidden, fewer merges run at once.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let runtime = Runtime::new()?;
    let done = obey(cli, &runtime);
    // Work on a hung disk must not keep a stopped program alive.
    runtime.shutdown_timeout(SHUTDOWN_TIME);
    done
}

fn obey(cli: &Cli, runtime: &Runtime) -> anyhow::Result<()> {
    let load = |common| Config::load(&cli.sources(common));
    match &cli.command {
        Command::CheckConfig(args) => check_config::run(&load(&args.common)?)?,
        Command::Run(args) => runtime.block_on(cli::run::run(
            load(&args.common)?,
            cli.sources(&args.common),
        ))?,
        Command::Once(args) => runtime.block_on(once::run(load(&args.common)?))?,
        Command::Plan(args) => runtime.block_on(plan::run(args, load(&args.common)?))?,
        Command::Import(args) => runtime.block_on(import::run(args, load(&args.common)?))?,
        Command::Ls(args) => runtime.block_on(ls::run(args, load(&args.common)?))?,
        Command::Query(args) => runtime.block_on(query::run(args, load(&args.common)?))?,
        Command::Quarantine(args) => {
            runtime.block_on(quarantine::run(&args.action, load(args.action.common())?))?
        }
        Command::Undelete(args) => runtime.block_on(undelete::run(args, load(&args.common)?))?,
        Command::Verify(args) => runtime.block_on(verify::run(args, load(&args.common)?))?,
        Command::Scripts(args) => scripts::run(args)?,
        Command::MergeFiles(args) => runtime.block_on(merge_files::run(args))?,
        Command::Demo(args) => runtime.block_on(demo::run(args))?,
    }
    Ok(())
}

/// Services and scripts tell a wrong configuration, which a restart does not heal, from a failure.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error
        .chain()
        .any(<dyn std::error::Error>::is::<ConfigError>)
    {
        ExitCode::from(cli::EXIT_CONFIG)
    } else {
        ExitCode::FAILURE
    }
}
