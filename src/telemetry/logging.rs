//! Log lines on standard error: text for people, JSON for machines; both can be changed while the program runs.

use std::io::IsTerminal;

use tracing_subscriber::{
    EnvFilter, Layer, Registry, layer::SubscriberExt, registry::LookupSpan, reload,
    util::SubscriberInitExt,
};

use crate::config::{LogConfig, LogFormat};

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Changes how the running program logs.
pub struct LogHandle(reload::Handle<BoxedLayer, Registry>);

impl LogHandle {
    /// Applies new settings from the next line on.
    pub fn apply(&self, config: &LogConfig) {
        if self.0.reload(layer(config)).is_err() {
            tracing::warn!("the log settings could not be changed");
        }
    }
}

/// Starts logging. Called once, from `main`.
pub fn start(config: &LogConfig) -> LogHandle {
    let (layer, handle) = reload::Layer::new(layer(config));
    // Fails only when logging was started before, and then that one goes on.
    let _ = tracing_subscriber::registry().with(layer).try_init();
    LogHandle(handle)
}

fn layer<S>(config: &LogConfig) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    // The scheduler repeats each of our own lines in other words. The level was checked with the configuration.
    let filter = EnvFilter::try_new(format!("{},tokio_cron_scheduler=warn", config.level))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    match config.format {
        LogFormat::Text => lines
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter(filter)
            .boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    }
}
