//! SIGTERM, SIGINT and SIGHUP as values.

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use tokio::sync::mpsc;

use super::DaemonError;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Stop; a second one: stop now.
    Stop,
    /// Read the configuration again.
    Reload,
}

/// Signals that wait while one is obeyed; more are the same as these.
const WAITING_MAX: usize = 8;

/// Listens from now on, on a thread of its own.
pub fn listen() -> Result<mpsc::Receiver<Signal>, DaemonError> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(DaemonError::Signals)?;
    let (send, receive) = mpsc::channel(WAITING_MAX);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in &mut signals {
                let asked = if signal == SIGHUP {
                    Signal::Reload
                } else {
                    Signal::Stop
                };
                // A reload that waits is as good as two; a stop must never get lost.
                let is_closed = match asked {
                    Signal::Stop => send.blocking_send(asked).is_err(),
                    Signal::Reload => matches!(
                        send.try_send(asked),
                        Err(mpsc::error::TrySendError::Closed(_))
                    ),
                };
                if is_closed {
                    return;
                }
            }
        })
        .map_err(DaemonError::Signals)?;
    Ok(receive)
}

/// Waits for the next stop signal; reloads asked for meanwhile are passed over.
pub async fn stop_signal(signals: &mut mpsc::Receiver<Signal>) {
    while let Some(signal) = signals.recv().await {
        if signal == Signal::Stop {
            return;
        }
    }
    std::future::pending().await
}
