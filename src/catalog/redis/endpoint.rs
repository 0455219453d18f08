//! Which server to talk to: the URL's own, or the primary that Sentinels name; and with which
//! certificates. Everything is looked up again for each connection, so that neither a failover
//! nor new certificates need a restart.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, RedisError, TlsCertificates, aio::MultiplexedConnection,
};

use super::connection::{is_denied, server_text};
use crate::{
    catalog::CatalogError,
    config::{RedisConfig, TlsConfig},
};

/// Sentinels in one URL.
const SENTINELS_MAX: usize = 32;
/// A Sentinel that does not answer must not keep the others from being asked.
const SENTINEL_TIMEOUT_MAX: Duration = Duration::from_secs(1);
const SHAPE: &str = "it is not of the form redis://[user:password@]host[:port][/db], rediss://…, \
                     unix://path or redis+sentinel://[user:password@]host[:port],…/master[/db]";

/// Where the server is, and how to trust it.
pub(super) struct Endpoint {
    server: Server,
    tls: TlsConfig,
    timeout: Duration,
}

enum Server {
    Direct(Box<ConnectionInfo>),
    Sentinel(Sentinel),
}

struct Sentinel {
    /// `redis` or `rediss`, for Sentinels and servers alike.
    scheme: &'static str,
    /// `user:password@` as written, or nothing.
    credentials: String,
    hosts: Vec<String>,
    master: String,
    database: String,
}

/// Why there is no connection.
pub(super) enum Failure {
    /// Trying again does not help: wrong password, unusable certificate.
    Refused(String),
    Away(String),
}

impl Endpoint {
    /// Checks URL and certificates; connects to nothing.
    pub(super) fn new(config: &RedisConfig) -> Result<Self, CatalogError> {
        let refused = |reason: &str| CatalogError::Refused {
            context: "the Redis URL".to_owned(),
            reason: reason.to_owned(),
        };
        let url = config.url.0.as_str();
        let server = match parse_sentinel(url).map_err(|reason| refused(&reason))? {
            Some(sentinel) => Server::Sentinel(sentinel),
            // The library's own text is left out: it may repeat parts of the URL.
            None => Server::Direct(Box::new(
                url.into_connection_info().map_err(|_| refused(SHAPE))?,
            )),
        };
        let endpoint = Self {
            server,
            tls: config.tls.clone(),
            timeout: config.timeout,
        };
        if endpoint.uses_tls() {
            endpoint.certificates()?;
        } else if config.tls != TlsConfig::default() {
            return Err(refused(
                "it asks for no TLS, but certificates or tls_insecure are given; write rediss:// or rediss+sentinel://",
            ));
        }
        Ok(endpoint)
    }

    fn uses_tls(&self) -> bool {
        match &self.server {
            Server::Direct(info) => matches!(info.addr(), ConnectionAddr::TcpTls { .. }),
            Server::Sentinel(sentinel) => sentinel.scheme == "rediss",
        }
    }

    fn certificates(&self) -> Result<TlsCertificates, CatalogError> {
        let read = |path: &std::path::PathBuf| {
            std::fs::read(path).map_err(|source| CatalogError::Io {
                path: path.clone(),
                source,
            })
        };
        let client_tls = match (&self.tls.cert, &self.tls.key) {
            (Some(cert), Some(key)) => Some(ClientTlsConfig {
                client_cert: read(cert)?,
                client_key: read(key)?,
            }),
            (None, None) => None,
            _ => {
                return Err(CatalogError::Refused {
                    context: "the client certificate".to_owned(),
                    reason: "tls_cert and tls_key belong together; set both or none".to_owned(),
                });
            }
        };
        let certificates = TlsCertificates {
            client_tls,
            root_cert: self.tls.ca.as_ref().map(read).transpose()?,
        };
        let is_pem = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).any(|part| part == what);
        let begin: &[u8] = b"-----BEGIN CERTIFICATE-----";
        if let (Some(path), Some(root)) = (&self.tls.ca, &certificates.root_cert)
            && !is_pem(root, begin)
        {
            return Err(not_pem(path));
        }
        if let (Some(path), Some(client)) = (&self.tls.cert, &certificates.client_tls)
            && !is_pem(&client.client_cert, begin)
        {
            return Err(not_pem(path));
        }
        // The library checks the rest, and its errors hold no part of a key.
        Client::build_with_tls("rediss://localhost", certificates.clone()).map_err(|error| {
            CatalogError::Refused {
                context: "the certificates".to_owned(),
                reason: format!("{error}; tls_ca, tls_cert and tls_key must be PEM files"),
            }
        })?;
        Ok(certificates)
    }

    /// Texts of the URL that must not appear in errors.
    pub(super) fn secrets(&self) -> Vec<String> {
        let info = match &self.server {
            Server::Direct(info) => Some(ConnectionInfo::clone(info)),
            Server::Sentinel(sentinel) => {
                let url = format!("redis://{}localhost", sentinel.credentials);
                url.into_connection_info().ok()
            }
        };
        info.and_then(|info| info.redis_settings().password().map(str::to_owned))
            .into_iter()
            .collect()
    }

    /// Longest time that [`connect`](Self::connect) takes.
    pub(super) fn timeout(&self) -> Duration {
        let sentinels = match &self.server {
            Server::Direct(_) => 0,
            Server::Sentinel(sentinel) => sentinel.hosts.len(),
        };
        let asking = self.timeout.min(SENTINEL_TIMEOUT_MAX) * u32::try_from(sentinels).unwrap_or(1);
        // Twice: once for the connection, once for the first answer.
        self.timeout * 2 + asking
    }

    /// A connection to the primary.
    pub(super) async fn connect(&self) -> Result<MultiplexedConnection, Failure> {
        match &self.server {
            Server::Direct(info) => {
                let connection = self.open(ConnectionInfo::clone(info), self.timeout).await;
                connection.map_err(|error| Failure::of(&error))
            }
            Server::Sentinel(sentinel) => self.connect_to_primary(sentinel).await,
        }
    }

    async fn open(
        &self,
        mut info: ConnectionInfo,
        timeout: Duration,
    ) -> Result<MultiplexedConnection, RedisError> {
        if self.tls.insecure
            && let ConnectionAddr::TcpTls {
                host,
                port,
                tls_params,
                ..
            } = info.addr()
        {
            let address = ConnectionAddr::TcpTls {
                host: host.clone(),
                port: *port,
                insecure: true,
                tls_params: tls_params.clone(),
            };
            info = info.set_addr(address);
        }
        let client = if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            let certificates = self
                .certificates()
                .map_err(|error| RedisError::from(std::io::Error::other(error)))?;
            Client::build_with_tls(info, certificates)?
        } else {
            Client::open(info)?
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout));
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// Asks one Sentinel after the other until one names a server that says it is the primary.
    async fn connect_to_primary(
        &self,
        sentinel: &Sentinel,
    ) -> Result<MultiplexedConnection, Failure> {
        let mut reasons = Vec::new();
        for host in &sentinel.hosts {
            let address = match self.ask_sentinel(sentinel, host).await {
                Ok(Some(address)) => address,
                Ok(None) => {
                    reasons.push(format!("{host} knows no master {:?}", sentinel.master));
                    continue;
                }
                Err(error) => {
                    reasons.push(format!("{host}: {}", server_text(&error)));
                    continue;
                }
            };
            match self.open_primary(sentinel, &address).await {
                Ok(connection) => return Ok(connection),
                Err(Failure::Refused(reason)) => {
                    return Err(Failure::Refused(format!("{address}: {reason}")));
                }
                Err(Failure::Away(reason)) => reasons.push(format!("{address}: {reason}")),
            }
        }
        Err(Failure::Away(reasons.join("; ")))
    }

    async fn ask_sentinel(
        &self,
        sentinel: &Sentinel,
        host: &str,
    ) -> Result<Option<String>, RedisError> {
        let timeout = self.timeout.min(SENTINEL_TIMEOUT_MAX);
        let ask = async |credentials: &str| -> Result<Option<(String, String)>, RedisError> {
            let url = format!("{}://{credentials}{host}", sentinel.scheme);
            let mut connection = self.open(url.into_connection_info()?, timeout).await?;
            let mut command = redis::cmd("SENTINEL");
            command.arg("get-master-addr-by-name").arg(&sentinel.master);
            command.query_async(&mut connection).await
        };
        let both = async {
            match ask("").await {
                // Some Sentinels ask for a password too: the same one.
                Err(error) if is_denied(&error) && !sentinel.credentials.is_empty() => {
                    ask(&sentinel.credentials).await
                }
                answer => answer,
            }
        };
        let answer = tokio::time::timeout(timeout, both)
            .await
            .unwrap_or_else(|_| {
                let reason = format!("no answer within {timeout:?}");
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, reason).into())
            })?;
        Ok(answer.map(|(host, port)| {
            if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            }
        }))
    }

    async fn open_primary(
        &self,
        sentinel: &Sentinel,
        address: &str,
    ) -> Result<MultiplexedConnection, Failure> {
        let url = format!(
            "{}://{}{address}/{}",
            sentinel.scheme, sentinel.credentials, sentinel.database
        );
        let attempt = async {
            let mut connection = self.open(url.into_connection_info()?, self.timeout).await?;
            let role: Vec<redis::Value> = redis::cmd("ROLE").query_async(&mut connection).await?;
            Ok((connection, role))
        };
        let (connection, role) = attempt.await.map_err(|error| Failure::of(&error))?;
        // A server that was replaced may not know it yet.
        match role.first() {
            Some(redis::Value::BulkString(role)) if role == b"master" => Ok(connection),
            _ => Err(Failure::Away("it is not the primary (any more)".to_owned())),
        }
    }
}

impl Failure {
    fn of(error: &RedisError) -> Self {
        if is_denied(error) {
            Self::Refused(format!(
                "{}; check user and password in the URL",
                server_text(error)
            ))
        } else {
            Self::Away(server_text(error))
        }
    }
}

fn not_pem(path: &std::path::Path) -> CatalogError {
    CatalogError::Malformed {
        place: path.display().to_string(),
        reason: "it holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)".to_owned(),
    }
}

/// `None` for a URL of another kind.
fn parse_sentinel(url: &str) -> Result<Option<Sentinel>, String> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("redis+sentinel", rest)) => ("redis", rest),
        Some(("rediss+sentinel", rest)) => ("rediss", rest),
        _ => return Ok(None),
    };
    let (credentials, rest) = match rest.rsplit_once('@') {
        Some((credentials, rest)) => (format!("{credentials}@"), rest),
        None => (String::new(), rest),
    };
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (master, database) = path.split_once('/').unwrap_or((path, "0"));
    let hosts: Vec<String> = hosts
        .split(',')
        .map(|host| {
            let has_port = host.rsplit_once(':').is_some_and(|(name, port)| {
                port.parse::<u16>().is_ok() && (!name.contains(':') || name.ends_with(']'))
            });
            if has_port {
                host.to_owned()
            } else {
                format!("{host}:26379")
            }
        })
        .collect();
    let usable = |host: &String| {
        let url = format!("{scheme}://{credentials}{host}/0");
        !host.starts_with(':') && url.into_connection_info().is_ok()
    };
    if master.is_empty() || database.parse::<u32>().is_err() || !hosts.iter().all(usable) {
        return Err(SHAPE.to_owned());
    }
    if hosts.len() > SENTINELS_MAX {
        return Err(format!("it names more than {SENTINELS_MAX} Sentinels"));
    }
    Ok(Some(Sentinel {
        scheme,
        credentials,
        hosts,
        master: master.to_owned(),
        database: database.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_sentinels_master_and_database() {
        let url = "redis+sentinel://me:p%40ss@a,b:1,[::1]:2,[::2]/prime/3";
        let sentinel = parse_sentinel(url).ok().flatten().unwrap();
        assert_eq!(sentinel.hosts, ["a:26379", "b:1", "[::1]:2", "[::2]:26379"]);
        assert_eq!(sentinel.master, "prime");
        assert_eq!(sentinel.database, "3");
        assert_eq!(sentinel.credentials, "me:p%40ss@");
        let plain = parse_sentinel("rediss+sentinel://a/prime").ok().flatten();
        let plain = plain.unwrap();
        assert_eq!((plain.scheme, plain.database.as_str()), ("rediss", "0"));
        assert!(parse_sentinel("redis://a/0").ok().flatten().is_none());
    }

    #[test]
    fn a_url_without_master_or_host_is_refused() {
        for url in [
            "redis+sentinel://a",
            "redis+sentinel://a/",
            "redis+sentinel:///prime",
            "redis+sentinel://a,/prime",
            "redis+sentinel://a/prime/x",
            "redis+sentinel://a:99999/prime",
        ] {
            assert!(parse_sentinel(url).is_err(), "{url} was accepted");
        }
    }
}
