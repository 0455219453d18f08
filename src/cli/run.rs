//! `gigamerge run`: the daemon.

use crate::{
    config::{Config, ConfigSources},
    daemon::{self, Access, Daemon, DaemonError},
    telemetry::logging,
};

/// Runs until a signal says stop.
pub async fn run(config: Config, sources: ConfigSources) -> Result<(), DaemonError> {
    let log = logging::start(&config.log);
    // From here on a signal stops in order, even while the catalog is being opened.
    let mut signals = daemon::listen()?;
    warn_all(&config);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "gigamerge starts");
    let context = tokio::select! {
        opened = daemon::open(config, Access::Work) => opened?,
        () = daemon::stop_signal(&mut signals) => return Ok(()),
    };
    let daemon = Daemon::start(context).await?;
    let reload = move || {
        let config = Config::load(&sources).map_err(|error| error.to_string())?;
        warn_all(&config);
        log.apply(&config.log);
        Ok(config)
    };
    daemon.run(signals, Box::new(reload)).await;
    Ok(())
}

/// Logs what the configuration check let pass with a remark.
pub(super) fn warn_all(config: &Config) {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
}
