//! One connection to Redis that everybody shares: made at the first call, thrown away when it
//! breaks, made again by a later call, with a growing pause between attempts.
//!
//! No call waits longer than the configured time. An error names the server that could not be asked, and none holds
//! the password.

use std::{
    fmt,
    time::{Duration, Instant},
};

use redis::{
    Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, ServerErrorKind,
    aio::MultiplexedConnection,
};
use tokio::sync::Mutex;

use super::endpoint::{Endpoint, Failure};
use crate::{catalog::CatalogError, config::RedisConfig};

/// Pause after the first failed attempt; doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What the server said to a call that reached it.
pub(super) type Answer<T> = Result<T, RedisError>;

pub(super) struct Connection {
    endpoint: Endpoint,
    timeout: Duration,
    /// The URL without its password and without any other secret, for messages.
    address: String,
    /// Texts that must not appear in errors.
    secrets: Vec<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: Option<MultiplexedConnection>,
    /// Counts connections, so that a late failure of an old one does not close its successor.
    generation: u64,
    failures: u32,
    retry_at: Option<Instant>,
    last_failure: String,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    /// Checks URL and certificates; connects to nothing.
    ///
    /// # Errors
    /// [`CatalogError::Refused`] when the URL or a certificate cannot be used.
    pub(super) fn new(config: &RedisConfig) -> Result<Self, CatalogError> {
        // Whoever comes second finds one installed; it is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let endpoint = Endpoint::new(config)?;
        let mut secrets = endpoint.secrets();
        // As written, a password may be percent-encoded.
        if let Some((credentials, _)) = config.url.0.rsplit_once('@')
            && let Some((_, written)) = credentials.rsplit_once(':')
        {
            secrets.push(written.to_owned());
        }
        secrets.retain(|secret| !secret.is_empty());
        Ok(Self {
            endpoint,
            timeout: config.timeout,
            address: hide(&secrets, &config.url.hidden_url()),
            secrets,
            state: Mutex::default(),
        })
    }

    /// One command. The outer error says that the server could not be asked.
    pub(super) async fn ask<T: FromRedisValue>(
        &self,
        context: &str,
        command: &Cmd,
    ) -> Result<Answer<T>, CatalogError> {
        let (mut connection, generation) = self.live(context).await?;
        let answer = tokio::time::timeout(self.timeout, command.query_async(&mut connection)).await;
        self.judge(context, generation, answer).await
    }

    /// One command whose refusal is an error.
    pub(super) async fn query<T: FromRedisValue>(
        &self,
        context: &str,
        command: &Cmd,
    ) -> Result<T, CatalogError> {
        self.ask(context, command)
            .await?
            .map_err(|error| self.refusal(context, &error))
    }

    /// Several commands in one round trip; a refusal of one is an error of all.
    pub(super) async fn query_all<T: FromRedisValue>(
        &self,
        context: &str,
        pipeline: &Pipeline,
    ) -> Result<T, CatalogError> {
        let (mut connection, generation) = self.live(context).await?;
        let answer =
            tokio::time::timeout(self.timeout, pipeline.query_async(&mut connection)).await;
        self.judge(context, generation, answer)
            .await?
            .map_err(|error| self.refusal(context, &error))
    }

    /// A server's refusal as an error of ours.
    pub(super) fn refusal(&self, context: &str, error: &RedisError) -> CatalogError {
        CatalogError::Refused {
            context: context.to_owned(),
            reason: self.hide(&server_text(error)),
        }
    }

    /// The server did not do what was asked of it, and may later. `reason` holds no secret.
    pub(super) fn unavailable(&self, context: &str, reason: String) -> CatalogError {
        CatalogError::Unavailable {
            context: format!("{context} at {}", self.address),
            reason,
        }
    }

    async fn judge<T>(
        &self,
        context: &str,
        generation: u64,
        answer: Result<Answer<T>, tokio::time::error::Elapsed>,
    ) -> Result<Answer<T>, CatalogError> {
        let (reason, is_broken) = match answer {
            Ok(Err(error)) if is_broken(&error) => (self.hide(&server_text(&error)), true),
            Ok(Err(error)) if is_busy(&error) => (self.hide(&server_text(&error)), false),
            Ok(answer) => return Ok(answer),
            // Answers that come later would only pile up.
            Err(_) => (format!("no answer within {:?}", self.timeout), true),
        };
        if is_broken {
            let mut state = self.state.lock().await;
            if state.generation == generation {
                state.live = None;
            }
        }
        Err(self.unavailable(context, reason))
    }

    async fn live(&self, context: &str) -> Result<(MultiplexedConnection, u64), CatalogError> {
        let mut state = self.state.lock().await;
        if let Some(live) = &state.live {
            return Ok((live.clone(), state.generation));
        }
        if state.retry_at.is_some_and(|at| Instant::now() < at) {
            return Err(self.unavailable(context, state.last_failure.clone()));
        }
        match self.connect().await {
            Ok(connection) => {
                state.live = Some(connection.clone());
                state.generation += 1;
                state.failures = 0;
                state.retry_at = None;
                Ok((connection, state.generation))
            }
            Err(error) => {
                let reason = match &error {
                    CatalogError::Unavailable { reason, .. }
                    | CatalogError::Refused { reason, .. } => reason.clone(),
                    other => other.to_string(),
                };
                state.retry_at = Some(Instant::now() + pause(state.failures));
                state.failures = state.failures.saturating_add(1);
                state.last_failure = reason;
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<MultiplexedConnection, CatalogError> {
        let context = format!("connecting to {}", self.address);
        let attempt = async {
            let mut connection = self.endpoint.connect().await?;
            // A user who may not ask for INFO is no reason to stop.
            let info: Answer<String> = redis::cmd("INFO")
                .arg("cluster")
                .query_async(&mut connection)
                .await;
            match info {
                Err(error) if error.is_io_error() || error.is_timeout() => {
                    Err(Failure::Away(server_text(&error)))
                }
                info => Ok((connection, info.unwrap_or_default())),
            }
        };
        let time_max = self.endpoint.timeout();
        match tokio::time::timeout(time_max, attempt).await {
            Err(_) => Err(CatalogError::Unavailable {
                context,
                reason: format!("no answer within {time_max:?}"),
            }),
            Ok(Err(Failure::Refused(reason))) => Err(CatalogError::Refused {
                context,
                reason: self.hide(&reason),
            }),
            Ok(Err(Failure::Away(reason))) => Err(CatalogError::Unavailable {
                context,
                reason: self.hide(&reason),
            }),
            Ok(Ok((_, info))) if info.contains("cluster_enabled:1") => Err(CatalogError::Refused {
                context,
                reason: "this is a Redis Cluster, where a script may only touch keys that its caller names, \
                         but key names of this contract are computed in the scripts; use a single primary, with replicas and Sentinel if wanted"
                    .to_owned(),
            }),
            Ok(Ok((connection, _))) => Ok(connection),
        }
    }

    fn hide(&self, text: &str) -> String {
        hide(&self.secrets, text)
    }
}

fn hide(secrets: &[String], text: &str) -> String {
    secrets
        .iter()
        .fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
}

/// With jitter, so that many daemons do not come back in one moment.
fn pause(failures: u32) -> Duration {
    pause_limit(failures).mul_f64(0.5 + 0.5 * fastrand::f64())
}

fn pause_limit(failures: u32) -> Duration {
    PAUSE_MIN
        .saturating_mul(1 << failures.min(16))
        .min(PAUSE_MAX)
}

/// The connection is of no use any more, or leads to a server that cannot write.
fn is_broken(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
        || matches!(
            error.kind(),
            ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
        )
}

/// The server answers, and will take calls again.
fn is_busy(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::TryAgain)
    ) || matches!(
        error.code(),
        Some("BUSY" | "MISCONF" | "NOREPLICAS" | "OOM")
    )
}

pub(super) fn is_denied(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
        || matches!(error.code(), Some("WRONGPASS" | "NOAUTH"))
}

/// The server's own words, without the library's frame where there is one.
pub(super) fn server_text(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some("ERR"), Some(detail)) => detail.to_owned(),
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use super::*;

    fn connection(url: &str) -> Result<Connection, CatalogError> {
        Connection::new(&RedisConfig {
            timeout: Duration::from_millis(200),
            ..RedisConfig::new(url)
        })
    }

    #[test]
    fn an_unusable_url_is_refused_without_being_repeated() {
        let error = connection("http://me:s3cr3t@example.org").unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("redis://"), "{text}");
        assert!(!text.contains("s3cr3t"), "{text}");
    }

    #[test]
    fn a_password_is_hidden_as_written_and_as_meant() {
        let connection = connection("redis://me:a%40b%21c@127.0.0.1:1").unwrap();
        let shown = connection.hide("WRONGPASS a@b!c or a%40b%21c");
        assert_eq!(shown, "WRONGPASS *** or ***");
        assert!(!format!("{connection:?}").contains("a@b"));
    }

    #[test]
    fn a_pause_is_drawn_from_the_upper_half_of_a_limit_that_doubles_up_to_five_seconds() {
        let mut limit = PAUSE_MIN;
        for failures in (0..40).chain([u32::MAX]) {
            let drawn: HashSet<Duration> = (0..64).map(|_| pause(failures)).collect();
            assert!(drawn.len() > 32, "daemons would come back together");
            for pause in drawn {
                assert!(
                    (limit / 2..=limit).contains(&pause),
                    "{failures}: {pause:?}"
                );
            }
            limit = (limit * 2).min(PAUSE_MAX);
        }
        assert_eq!(limit, Duration::from_secs(5));
    }

    #[tokio::test]
    async fn no_call_reaches_the_server_before_the_pause_after_a_failure_is_over() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let attempts = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&attempts);
        std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                seen.fetch_add(1, Ordering::SeqCst);
                drop(socket);
            }
        });
        let connection = connection(&format!("redis://127.0.0.1:{port}")).unwrap();
        let ping = redis::cmd("PING");
        for failures in 0..8 {
            let asked_at = Instant::now();
            let first = connection.query::<String>("asking", &ping).await;
            assert!(first.is_err());
            let mut state = connection.state.lock().await;
            assert_eq!(state.failures, failures + 1);
            let retry_at = state.retry_at.unwrap();
            assert!(retry_at > asked_at && retry_at <= Instant::now() + pause_limit(failures));
            // As if the test took no time: the pause lasts while these calls are made.
            state.retry_at = Some(Instant::now() + Duration::from_hours(1));
            let reason = state.last_failure.clone();
            drop(state);
            let made = attempts.load(Ordering::SeqCst);
            for _ in 0..20 {
                let error = connection.query::<String>("asking", &ping).await;
                let error = error.unwrap_err().to_string();
                assert!(error.ends_with(&reason), "{error}");
            }
            assert_eq!(attempts.load(Ordering::SeqCst), made);
            connection.state.lock().await.retry_at = Some(asked_at);
        }
        assert_eq!(attempts.load(Ordering::SeqCst), 8);
    }

    #[tokio::test]
    async fn tls_to_a_server_that_speaks_none_is_an_error_and_no_panic() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            while let Ok((mut socket, _)) = listener.accept() {
                let _ = std::io::Write::write_all(&mut socket, b"-ERR no\r\n");
            }
        });
        let connection = connection(&format!("rediss://me:s3cr3t@127.0.0.1:{port}")).unwrap();
        let error = connection
            .query::<String>("asking", &redis::cmd("PING"))
            .await
            .unwrap_err();
        assert!(!format!("{error:?}").contains("s3cr3t"), "{error:?}");
    }

    #[tokio::test]
    async fn a_server_that_is_away_costs_no_more_than_the_timeout_and_each_error_names_it() {
        let connection = connection("redis://me:s3cr3t@127.0.0.1:1/0").unwrap();
        let started = Instant::now();
        for _ in 0..50 {
            let error = connection
                .query::<String>("asking", &redis::cmd("PING"))
                .await
                .unwrap_err();
            assert!(matches!(error, CatalogError::Unavailable { .. }), "{error}");
            let text = format!("{error} {error:?}");
            assert!(text.contains("redis://me:***@127.0.0.1:1/0"), "{text}");
            assert!(!text.contains("s3cr3t"), "{text}");
        }
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}
