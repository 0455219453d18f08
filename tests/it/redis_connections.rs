//! TLS with certificates of our own, Sentinel with a failover, RESP3: real servers on loopback.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use gigamerge::{
    catalog::{Catalog, CatalogError, redis::RedisCatalog},
    config::{RedisConfig, TlsConfig},
};
use tempfile::TempDir;

use crate::{
    catalog_suite::{entry, policy},
    support::redis_server::RedisServer,
};

fn connect(config: &RedisConfig) -> Result<RedisCatalog, CatalogError> {
    RedisCatalog::connect(config, Arc::new(policy()))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .expect("openssl must be installed; tests/run does that");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments}: {text}");
}

/// An authority, and certificates by it for the server (127.0.0.1) and for a client.
struct Certificates(TempDir);

impl Certificates {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(
            folder.path(),
            &format!("req -x509 {new_key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"),
        );
        fs::write(folder.path().join("san"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        for name in ["server", "client"] {
            openssl(
                folder.path(),
                &format!("req {new_key} -keyout {name}.key -out {name}.csr -subj /CN={name}"),
            );
            openssl(
                folder.path(),
                &format!(
                    "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 -extfile san"
                ),
            );
        }
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn server(&self, port: u16, client_certificates: &str) -> RedisServer {
        let file = |name| self.file(name).display().to_string();
        RedisServer::start_with(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &file("server.pem"),
            "--tls-key-file",
            &file("server.key"),
            "--tls-ca-cert-file",
            &file("ca.pem"),
            "--tls-auth-clients",
            client_certificates,
            "--requirepass",
            "s3cr3t",
        ])
    }
}

#[tokio::test]
async fn tls_is_verified_unless_asked_otherwise() {
    let certificates = Certificates::new();
    let port = free_port();
    let _server = certificates.server(port, "no");
    let config = RedisConfig::new(&format!("rediss://:s3cr3t@127.0.0.1:{port}/0"));
    let error = connect(&config).unwrap().ping().await.unwrap_err();
    assert!(matches!(error, CatalogError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(!format!("{error:?}").contains("s3cr3t"), "{error:?}");

    let with = |tls| RedisConfig {
        tls,
        ..config.clone()
    };
    let own_ca = with(TlsConfig {
        ca: Some(certificates.file("ca.pem")),
        ..TlsConfig::default()
    });
    connect(&own_ca).unwrap().ping().await.unwrap();
    let insecure = with(TlsConfig {
        insecure: true,
        ..TlsConfig::default()
    });
    connect(&insecure).unwrap().ping().await.unwrap();
    // A certificate for another name is no certificate.
    let other_name = RedisConfig {
        url: gigamerge::config::Secret(format!("rediss://:s3cr3t@localhost:{port}/0")),
        ..own_ca
    };
    connect(&other_name).unwrap().ping().await.unwrap_err();
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_ours() {
    let certificates = Certificates::new();
    let port = free_port();
    let _server = certificates.server(port, "yes");
    let mut config = RedisConfig::new(&format!("rediss://:s3cr3t@127.0.0.1:{port}/0"));
    config.tls.ca = Some(certificates.file("ca.pem"));
    connect(&config).unwrap().ping().await.unwrap_err();
    config.tls.cert = Some(certificates.file("client.pem"));
    config.tls.key = Some(certificates.file("client.key"));
    let catalog = connect(&config).unwrap();
    catalog.batch(&[entry("a.1", 100)], &[]).await.unwrap();
    assert_eq!(catalog.tables().await.unwrap().len(), 1);
}

#[test]
fn unusable_certificates_are_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let junk = folder.path().join("junk.pem");
    fs::write(&junk, "nothing").unwrap();
    let url = "rediss://host/0";
    let config = |url: &str, ca: Option<&Path>, cert: Option<&Path>| RedisConfig {
        tls: TlsConfig {
            ca: ca.map(Path::to_owned),
            cert: cert.map(Path::to_owned),
            ..TlsConfig::default()
        },
        ..RedisConfig::new(url)
    };
    let missing = folder.path().join("missing.pem");
    for (config, part) in [
        (config(url, Some(&junk), None), "junk.pem"),
        (config(url, Some(&missing), None), "missing.pem"),
        (config(url, None, Some(&junk)), "tls_key"),
        (config("redis://host/0", Some(&junk), None), "rediss://"),
    ] {
        let error = connect(&config).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn resp3_is_spoken_on_request() {
    let server = RedisServer::start();
    let config = RedisConfig::new(&format!("{}?protocol=resp3", server.url()));
    let catalog = connect(&config).unwrap();
    catalog.batch(&[entry("a.1", 100)], &[]).await.unwrap();
    assert_eq!(catalog.tables().await.unwrap().len(), 1);
    let due = catalog.due_merges(gigamerge::model::Iteration(1), 10).await;
    assert_eq!(due.unwrap().len(), 1);
    let clients: String = redis::cmd("CLIENT")
        .arg("LIST")
        .query(&mut server.connection())
        .unwrap();
    // Redis 6.2 does not tell what its clients speak.
    assert!(
        clients.contains("resp=3") || !clients.contains(" resp="),
        "{clients}"
    );
}

struct Sentinel {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Sentinel {
    fn start(master_port: u16) -> Self {
        let folder = TempDir::new().unwrap();
        let port = free_port();
        let file = folder.path().join("sentinel.conf");
        let text = format!(
            "port {port}\ndir {}\nsentinel monitor prime 127.0.0.1 {master_port} 2\n\
             sentinel auth-pass prime s3cr3t\nsentinel down-after-milliseconds prime 500\n\
             sentinel failover-timeout prime 3000\n",
            folder.path().display()
        );
        fs::write(&file, text).unwrap();
        let program = std::env::var("GIGAMERGE_TEST_REDIS_SERVER")
            .unwrap_or_else(|_| "redis-server".to_owned());
        let child = Command::new(program)
            .arg(&file)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            port,
            _folder: folder,
        }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A primary or replica that Sentinels can reach.
fn tcp_server(port: u16, replica_of: Option<u16>) -> RedisServer {
    let port = port.to_string();
    let mut arguments = vec![
        "--port",
        &port,
        "--requirepass",
        "s3cr3t",
        "--masterauth",
        "s3cr3t",
    ];
    let of = replica_of.map(|of| of.to_string());
    if let Some(of) = &of {
        arguments.extend([
            "--replicaof",
            "127.0.0.1",
            of,
            "--repl-diskless-sync-delay",
            "0",
        ]);
    }
    RedisServer::start_with(&arguments)
}

async fn until<F: AsyncFnMut() -> bool>(what: &str, mut is_so: F) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn after_a_failover_the_new_primary_is_found() {
    let (primary_port, replica_port) = (free_port(), free_port());
    let mut primary = tcp_server(primary_port, None);
    let _replica = tcp_server(replica_port, Some(primary_port));
    let sentinels = [(); 3].map(|()| Sentinel::start(primary_port));
    // The first one is down: the next one is asked.
    let config = RedisConfig::new(&format!(
        "redis+sentinel://:s3cr3t@127.0.0.1:{},127.0.0.1:{},127.0.0.1:{}/prime/0",
        free_port(),
        sentinels[0].port,
        sentinels[1].port
    ));
    let catalog = connect(&config).unwrap();
    until("the first answer", async || catalog.ping().await.is_ok()).await;
    let first = entry("a.1", 100);
    catalog
        .batch(std::slice::from_ref(&first), &[])
        .await
        .unwrap();

    let asked = |port: u16, command: &[&str]| -> redis::RedisResult<redis::Value> {
        let mut connection =
            redis::Client::open(format!("redis://127.0.0.1:{port}"))?.get_connection()?;
        redis::cmd(command[0])
            .arg(&command[1..])
            .query(&mut connection)
    };
    let replica = |command: &[&str]| -> redis::RedisResult<redis::Value> {
        let url = format!("redis://:s3cr3t@127.0.0.1:{replica_port}");
        let mut connection = redis::Client::open(url)?.get_connection()?;
        redis::cmd(command[0])
            .arg(&command[1..])
            .query(&mut connection)
    };
    until(
        "replication",
        async || matches!(replica(&["DBSIZE"]), Ok(redis::Value::Int(keys)) if keys >= 3),
    )
    .await;
    // Sentinels need to know of the replica and of each other.
    until("the Sentinels' agreement", async || {
        sentinels.iter().all(|sentinel| {
            asked(sentinel.port, &["SENTINEL", "ckquorum", "prime"]).is_ok()
                && matches!(asked(sentinel.port, &["SENTINEL", "replicas", "prime"]), Ok(redis::Value::Array(found)) if found.len() == 1)
        })
    })
    .await;

    primary.kill();
    let second = entry("b.1", 100);
    until("the failover", async || {
        match catalog.batch(std::slice::from_ref(&second), &[]).await {
            Ok(()) => true,
            Err(error) => {
                assert!(matches!(error, CatalogError::Unavailable { .. }), "{error}");
                assert!(!format!("{error:?}").contains("s3cr3t"), "{error:?}");
                false
            }
        }
    })
    .await;
    let found = catalog
        .entries(&first.table, &gigamerge::catalog::EntryFilter::default())
        .await
        .unwrap();
    assert_eq!(found, [first, second]);
}

#[tokio::test]
async fn a_master_that_no_sentinel_knows_is_named() {
    let port = free_port();
    let _primary = tcp_server(port, None);
    let sentinel = Sentinel::start(port);
    let url = format!("redis+sentinel://127.0.0.1:{}/other", sentinel.port);
    let catalog = connect(&RedisConfig::new(&url)).unwrap();
    until("the Sentinel's answer", async || {
        let error = catalog.ping().await.unwrap_err().to_string();
        error.contains("knows no master \"other\"")
    })
    .await;
}
