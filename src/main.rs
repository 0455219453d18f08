//! The `gigamerge` program.

use std::process::ExitCode;

use gigamerge::{
    cli::{self, Cli, Command, check_config},
    config::{Config, ConfigError},
};

fn main() -> ExitCode {
    match run(&cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gigamerge: {error:#}");
            exit_code(&error)
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        Command::CheckConfig(args) => {
            check_config::run(&Config::load(&cli.sources(&args.common))?)?;
        }
        Command::Run(_) | Command::Once(_) | Command::Demo(_) | Command::Plan(_) => {
            anyhow::bail!("this command is not part of this build")
        }
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
