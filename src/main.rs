//! The `gigamerge` program.

use std::process::ExitCode;

use gigamerge::{
    cli::{self, Cli, Command, check_config, demo, merge_files, once, plan},
    config::{Config, ConfigError},
};

/// Merges allocate and free large buffers on many threads; this one gives them back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Huge pages are cleared as a whole when one byte of them is touched: a third more memory
    // for a merge, and no time gained. A kernel that refuses changes nothing else.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    match run(&cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gigamerge: {error:#}");
            exit_code(&error)
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let load = |common| Config::load(&cli.sources(common));
    let runtime = tokio::runtime::Runtime::new()?;
    match &cli.command {
        Command::CheckConfig(args) => check_config::run(&load(&args.common)?)?,
        Command::Run(args) => runtime.block_on(cli::run::run(
            load(&args.common)?,
            cli.sources(&args.common),
        ))?,
        Command::Once(args) => runtime.block_on(once::run(load(&args.common)?))?,
        Command::Plan(args) => runtime.block_on(plan::run(args, load(&args.common)?))?,
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
