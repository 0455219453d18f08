//! What the Redis catalog does when the server is away, forgets, hangs or says no.

use std::{
    net::TcpListener,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use gigamerge::{
    catalog::{
        Catalog, CatalogError, CommitOutcome, EntryFilter, MergeCommit, redis::RedisCatalog,
    },
    config::RedisConfig,
    model::{Iteration, TableRef},
};

use crate::{
    catalog_suite::{entry, policy},
    support::{
        program::{config_file, run},
        proxy::{Fault, Proxy},
        redis_server::RedisServer,
    },
};

fn connect(config: &RedisConfig) -> RedisCatalog {
    RedisCatalog::connect(config, Arc::new(policy())).unwrap()
}

fn table() -> TableRef {
    TableRef::new("metrics", "cpu").unwrap()
}

/// Asks until the catalog answers; it must do so soon.
async fn answers_again(catalog: &RedisCatalog) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while let Err(error) = catalog.ping().await {
        assert!(
            matches!(error, CatalogError::Unavailable { .. }),
            "unexpected: {error}"
        );
        assert!(Instant::now() < deadline, "no answer any more: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn signal(server: &RedisServer, name: &str) {
    let status = Command::new("kill")
        .args(["-s", name, &server.process_id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_sent_again() {
    let server = RedisServer::start();
    let catalog = connect(&server.config());
    let entry = entry("a.1", 100);
    for round in 0..3 {
        catalog
            .batch(std::slice::from_ref(&entry), &[])
            .await
            .unwrap();
        let plans = catalog.due_merges(Iteration(1), 10).await;
        assert_eq!(plans.unwrap().len(), 1, "round {round}");
        redis::cmd("SCRIPT")
            .arg("FLUSH")
            .exec(&mut server.connection())
            .unwrap();
    }
}

#[tokio::test]
async fn the_same_catalog_works_on_after_the_server_was_killed_and_restarted() {
    let mut server = RedisServer::start();
    let catalog = connect(&server.config());
    let entry = entry("a.1", 100);
    catalog.batch(&[entry], &[]).await.unwrap();
    server.kill();
    for _ in 0..20 {
        let error = catalog.ping().await.unwrap_err();
        assert!(
            matches!(error, CatalogError::Unavailable { .. }),
            "unexpected: {error}"
        );
    }
    server.run();
    answers_again(&catalog).await;
    let all = catalog.entries(&table(), &EntryFilter::default()).await;
    assert_eq!(all.unwrap().len(), 1);
}

#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_found_later() {
    let mut server = RedisServer::start();
    server.kill();
    let catalog = connect(&server.config());
    let error = catalog.tables().await.unwrap_err();
    assert!(
        matches!(error, CatalogError::Unavailable { .. }),
        "unexpected: {error}"
    );
    server.run();
    answers_again(&catalog).await;
    assert!(catalog.tables().await.unwrap().is_empty());
}

#[test]
fn once_without_a_server_ends_with_a_line_that_names_it_and_hides_the_password() {
    let folder = tempfile::tempdir().unwrap();
    // Nobody listens any more where somebody just did.
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let text = format!(
        "[catalog]\ntype = \"redis\"\nurl = \"redis://me:s3cr3t@{address}/0\"\n\
         [[layers]]\nname = \"hot\"\ntype = \"fs\"\nurl = \"file://{}\"\n",
        folder.path().display()
    );
    let config = config_file(folder.path(), &text);
    let (code, out, log) = run(&["once", "--config", &config]);
    assert_eq!(code, 1, "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.contains("catalog is unavailable"), "{last}");
    let server = format!("redis://me:***@{address}/0");
    assert!(last.contains(&server), "{last}");
    assert!(!out.contains("s3cr3t") && !log.contains("s3cr3t"), "{log}");
}

#[tokio::test]
async fn a_server_that_hangs_costs_the_timeout_and_no_more() {
    let server = RedisServer::start();
    let config = RedisConfig {
        timeout: Duration::from_millis(300),
        ..server.config()
    };
    let catalog = connect(&config);
    catalog.ping().await.unwrap();
    signal(&server, "STOP");
    let started = Instant::now();
    let error = catalog.tables().await.unwrap_err();
    let waited = started.elapsed();
    signal(&server, "CONT");
    assert!(waited < Duration::from_secs(2), "waited {waited:?}");
    assert!(
        matches!(error, CatalogError::Unavailable { .. }),
        "unexpected: {error}"
    );
    answers_again(&catalog).await;
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_never_printed() {
    let server = RedisServer::start_with(&["--requirepass", "right-s3cret"]);
    let url = |password: &str| RedisConfig::new(&format!("{}?pass={password}", server.url()));
    let catalog = connect(&url("wrong-s3cret"));
    let error = catalog.ping().await.unwrap_err();
    assert!(
        matches!(error, CatalogError::Refused { .. }),
        "unexpected: {error}"
    );
    let printed = format!("{error} {error:?} {catalog:?} {:?}", url("wrong-s3cret"));
    assert!(!printed.contains("s3cret"), "{printed}");
    assert!(printed.contains("password in the URL"), "{printed}");
    connect(&url("right-s3cret")).ping().await.unwrap();
}

#[tokio::test]
async fn a_cluster_is_refused_with_the_reason() {
    let server = RedisServer::start_with(&[
        "--cluster-enabled",
        "yes",
        "--port",
        &free_port().to_string(),
    ]);
    let error = connect(&server.config()).ping().await.unwrap_err();
    assert!(
        matches!(error, CatalogError::Refused { .. }),
        "unexpected: {error}"
    );
    assert!(error.to_string().contains("Cluster"), "{error}");
}

/// Free a moment ago; a cluster's second port is 10,000 higher, below those of outgoing connections.
fn free_port() -> u16 {
    (12_000..20_000)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap()
}

#[tokio::test]
async fn a_commit_or_renewal_whose_answer_is_lost_is_not_lost() {
    let server = RedisServer::start();
    let proxy = Proxy::start(&server.socket());
    let catalog = connect(&RedisConfig::new(&proxy.url()));
    let files = ["a.1", "b.1"].map(|name| entry(name, 100));
    catalog.batch(&files, &[]).await.unwrap();
    let queue = catalog.due_merges(Iteration(1), 1).await.unwrap()[0]
        .queue
        .clone();
    let lease = Duration::from_mins(1);
    let mut claim = catalog.claim_merge(&queue, lease).await.unwrap().unwrap();
    // So that the server knows the script, and the answer that is lost is the renewal's.
    claim.lease = catalog.renew_merge(&claim, lease).await.unwrap();

    proxy.fail_next("EVALSHA", Fault::SwallowAnswer);
    let error = catalog.renew_merge(&claim, lease).await.unwrap_err();
    assert!(proxy.is_done());
    assert!(
        matches!(error, CatalogError::Unavailable { .. }),
        "unexpected: {error}"
    );
    answers_again(&catalog).await;
    claim.lease = catalog.renew_merge(&claim, lease).await.unwrap();

    let commit = MergeCommit {
        output: Some(entry("m.2", 180)),
        sources: claim.plan.paths.clone(),
        set_aside: Vec::new(),
        grace: Duration::ZERO,
    };
    // A refused commit makes the script known.
    let mut stale = claim.clone();
    stale.lease.token.push(' ');
    let outcome = catalog.commit_merge(&stale, &commit).await.unwrap();
    assert_eq!(outcome, CommitOutcome::LeaseLost);
    proxy.fail_next("EVALSHA", Fault::SwallowAnswer);
    let outcome = catalog.commit_merge(&claim, &commit).await.unwrap();
    assert!(proxy.is_done());
    assert_eq!(outcome, CommitOutcome::Committed);
    let all = catalog.entries(&table(), &EntryFilter::default()).await;
    assert_eq!(all.unwrap().len(), 1);
    let drops = catalog.claim_drops(10, lease).await.unwrap();
    assert_eq!(drops.len(), 2);
}
