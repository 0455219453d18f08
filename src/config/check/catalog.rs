//! Where the index is.

use std::time::Duration;

use crate::config::{CatalogConfig, RedisConfig, Secret, problem::Report, raw::Section};

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
    CatalogConfig::Redis(RedisConfig {
        url: url.value,
        timeout: timeout.map_or(5 * SECOND, |timeout| timeout.value),
    })
}

/// Refuses what cannot be a server; no message repeats any of it.
fn check_redis_url(url: &Secret) -> Result<(), &'static str> {
    const SHAPE: &str = "is not a Redis URL; write redis://[user:password@]host[:port][/database]";
    let (scheme, rest) = url.0.split_once("://").ok_or(SHAPE)?;
    match scheme {
        "redis" | "rediss" => {}
        "unix" | "redis+unix" if rest.starts_with('/') => return Ok(()),
        "redis+sentinel" => {
            return Err(
                "Sentinel is not supported by this version; name the primary itself with redis://host:port/0",
            );
        }
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
    let (name, port) = match host.strip_prefix('[') {
        // An IPv6 address has colons of its own.
        Some(address) => address.split_once(']').ok_or(SHAPE)?,
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
    let database = database.trim_end_matches('/');
    if !database.is_empty() && database.parse::<u32>().is_err() {
        return Err("has a database that is not a number; write for example redis://host:6379/0");
    }
    Ok(())
}
