//! Where the index is.

use std::{path::PathBuf, time::Duration};

use crate::config::{CatalogConfig, RedisConfig, Secret, TlsConfig, problem::Report, raw::Section};

use super::SECOND;

/// What the Redis client reads as "do not verify the certificate".
const INSECURE: &str = "insecure";

#[derive(Clone, Copy, PartialEq)]
enum CatalogKind {
    Json,
    Redis,
}

pub(super) fn check(mut section: Section<'_>, report: &Report) -> CatalogConfig {
    let is_kind_set = section.has("type");
    let kind = section
        .choice(
            "type",
            &[("json", CatalogKind::Json), ("redis", CatalogKind::Redis)],
        )
        .map(|kind| kind.value)
        .or((!is_kind_set).then_some(CatalogKind::Json));
    if kind == Some(CatalogKind::Redis) {
        section.require("url", "\"redis://localhost:6379/0\"");
    }
    let url = section.secret("url");
    let timeout = section.duration("timeout", Duration::from_millis(100)..=300 * SECOND);
    let (tls, first_tls_key) = tls(&mut section, report);
    section.finish();
    let Some(url) = url else {
        return CatalogConfig::Json;
    };
    if kind == Some(CatalogKind::Json) {
        // GigAPI does not look at its URL when its type is json; a URL of ours is meant.
        if !url.place.is_gigapi() {
            report.problem(
                url.place,
                "is set, but the catalog is \"json\"; write type = \"redis\" as well, or remove the URL",
            );
        }
        return CatalogConfig::Json;
    }
    if let Err(message) = check_redis_url(&url.value) {
        report.problem(&url.place, message);
    }
    if url.value.0.ends_with(&format!("#{INSECURE}")) {
        report.warning(
            &url.place,
            "ends in #insecure: the server's certificate is not verified, so anybody on the way can read the password",
        );
    }
    if let Some(key) = first_tls_key
        && !url.value.0.starts_with("rediss")
    {
        report.problem(
            format!("catalog.{key}"),
            "is set, but the URL asks for no TLS; write rediss:// (or rediss+sentinel://) in catalog.url, or remove it",
        );
    }
    CatalogConfig::Redis(RedisConfig {
        tls,
        url: url.value,
        timeout: timeout.map_or(5 * SECOND, |timeout| timeout.value),
    })
}

/// The certificates, and the first setting that says anything of TLS.
fn tls(section: &mut Section<'_>, report: &Report) -> (TlsConfig, Option<&'static str>) {
    let first = ["tls_ca", "tls_cert", "tls_key"]
        .into_iter()
        .find(|key| section.has(key));
    let written = ["tls_cert", "tls_key"].map(|key| section.has(key));
    let mut file = |key| {
        let setting = section.text(key)?;
        let path = PathBuf::from(&setting.value);
        // Read, because a key that the daemon's user may not see is the usual mistake.
        match std::fs::read(&path) {
            Ok(_) => Some(path),
            Err(error) => {
                report.problem(
                    setting.place,
                    format!(
                        "{} cannot be read: {error}; name a PEM file",
                        path.display()
                    ),
                );
                None
            }
        }
    };
    let (ca, cert, key) = (file("tls_ca"), file("tls_cert"), file("tls_key"));
    let missing = match written {
        [true, false] => Some(("tls_cert", "tls_key")),
        [false, true] => Some(("tls_key", "tls_cert")),
        _ => None,
    };
    if let Some((one, other)) = missing {
        report.problem(
            section.place_of(other),
            format!("is missing; {one} needs it"),
        );
    }
    let insecure = section
        .boolean("tls_insecure")
        .filter(|insecure| insecure.value);
    if let Some(insecure) = &insecure {
        if ca.is_some() {
            report.problem(
                &insecure.place,
                "verifies nothing, so that tls_ca has no effect; remove one of them",
            );
        } else {
            report.warning(
                &insecure.place,
                "the server's certificate is not verified, so anybody on the way can read the password; set tls_ca instead",
            );
        }
    }
    let first = first.or(insecure.is_some().then_some("tls_insecure"));
    let tls = TlsConfig {
        ca,
        cert,
        key,
        insecure: insecure.is_some(),
    };
    (tls, first)
}

/// Refuses what cannot be a server; no message repeats any of it.
fn check_redis_url(url: &Secret) -> Result<(), &'static str> {
    const SHAPE: &str = "is not a Redis URL; write redis://[user:password@]host[:port][/database]";
    let (scheme, rest) = url.0.split_once("://").ok_or(SHAPE)?;
    match scheme {
        "redis" | "rediss" => {}
        "unix" | "redis+unix" if rest.starts_with('/') => return Ok(()),
        "redis+sentinel" | "rediss+sentinel" => return check_sentinel_url(rest),
        _ => return Err(SHAPE),
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (server, database) = rest.split_once('/').unwrap_or((rest, ""));
    // The first of these characters ends the server's part, so a password cannot hold them.
    if [fragment, query, database]
        .iter()
        .any(|part| part.contains('@'))
    {
        return Err("has a password with /, ? or # in it; write them as %2F, %3F and %23");
    }
    if !fragment.is_empty() && (scheme, fragment) != ("rediss", INSECURE) {
        return Err("has a part after # that means nothing; remove it, or write # as %23");
    }
    let host = server.rsplit_once('@').map_or(server, |(_, host)| host);
    check_host(host)?;
    let database = database.trim_end_matches('/');
    if !database.is_empty() && database.parse::<u32>().is_err() {
        return Err("has a database that is not a number; write for example redis://host:6379/0");
    }
    Ok(())
}

/// `[user:password@]host[:port],host[:port]/master[/database]`.
fn check_sentinel_url(rest: &str) -> Result<(), &'static str> {
    const SHAPE: &str = "is not a Sentinel URL; write redis+sentinel://[user:password@]host[:port],host[:port]/master[/database]";
    let (credentials, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
    if credentials.contains(['/', '?', '#', ',']) {
        return Err(
            "has a password with /, comma, ? or # in it; write them as %2F, %2C, %3F and %23",
        );
    }
    let (hosts, path) = rest.split_once('/').ok_or(SHAPE)?;
    let (master, database) = path.split_once('/').unwrap_or((path, ""));
    if master.is_empty() || master.contains(['?', '#']) {
        return Err(SHAPE);
    }
    for host in hosts.split(',') {
        check_host(host)?;
    }
    if !database.is_empty() && database.parse::<u32>().is_err() {
        return Err("has a database that is not a number; write for example /mymaster/0");
    }
    Ok(())
}

/// `host`, `host:port`, `[address]` or `[address]:port`.
fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) = match host.strip_prefix('[') {
        // An IPv6 address has colons of its own.
        Some(address) => address
            .split_once(']')
            .ok_or("has an address without its closing bracket; write [::1]:6379")?,
        None => host
            .find(':')
            .map_or((host, ""), |colon| host.split_at(colon)),
    };
    if name.is_empty() {
        return Err("names no host; write redis://host:port/0");
    }
    if name == "0.0.0.0" || name == "::" {
        return Err(
            "names an address to listen on; write the server's own, such as redis://127.0.0.1:6379/0",
        );
    }
    let is_port = match port.strip_prefix(':') {
        Some(digits) => digits.parse::<u16>().is_ok_and(|port| port > 0),
        None => port.is_empty(),
    };
    if !is_port {
        return Err("has a port that is not a number from 1 to 65535");
    }
    Ok(())
}
