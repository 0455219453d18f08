//! `gigamerge check-config`: is the configuration right, and what is in force?

use std::io::{self, Write};

use crate::config::Config;

/// Prints the effective configuration to stdout and warnings to stderr.
pub fn run(config: &Config) -> Result<(), CheckConfigError> {
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    match io::stdout().lock().write_all(config.to_toml().as_bytes()) {
        // Whoever reads has seen enough, as in `gigamerge check-config | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(CheckConfigError),
    }
}

/// The result could not be printed.
#[derive(Debug, thiserror::Error)]
#[error("stdout cannot be written")]
pub struct CheckConfigError(#[source] io::Error);
