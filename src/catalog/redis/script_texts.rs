//! The texts of `lua/`. Shared parts are put in front of each script when this is compiled, so that one
//! text is complete.

use std::sync::LazyLock;

use redis::{ErrorKind, FromRedisValue, ServerErrorKind};

use super::connection::Connection;
use crate::catalog::CatalogError;

macro_rules! script {
    ($name:literal $(, $lib:literal)*) => {
        LazyLock::new(|| Script::new(
            $name,
            concat!(
                include_str!("../../../lua/lib/base.lua"),
                $(include_str!(concat!("../../../lua/lib/", $lib, ".lua")),)*
                include_str!(concat!("../../../lua/", $name, ".lua")),
            ),
        ))
    };
}

/// A script's complete text and the SHA1 by which servers know it.
#[derive(Debug)]
pub struct Script {
    /// Its name, as in `lua/<name>.lua`.
    pub name: &'static str,
    /// The complete text, ready for `SCRIPT LOAD`.
    pub text: &'static str,
    /// SHA1 of the text, lower-case hexadecimal.
    pub sha1: String,
}

impl Script {
    fn new(name: &'static str, text: &'static str) -> Self {
        Self {
            name,
            text,
            sha1: redis::Script::new(text).get_hash().to_owned(),
        }
    }

    /// By SHA1; a server that does not know the script (any more) is sent the text.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        connection: &Connection,
        context: &str,
        keys: &[String],
        arguments: &[&str],
    ) -> Result<T, CatalogError> {
        let command = |name: &str, script: &str| {
            let mut command = redis::cmd(name);
            command.arg(script).arg(keys.len()).arg(keys).arg(arguments);
            command
        };
        let by_sha1 = command("EVALSHA", &self.sha1);
        let answer = match connection.ask(context, &by_sha1).await? {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                connection.ask(context, &command("EVAL", self.text)).await?
            }
            answer => answer,
        };
        answer.map_err(|error| connection.refusal(context, &error))
    }
}

pub(super) static PATCH_INDEX: LazyLock<Script> = script!("patch_index", "entry", "index");
pub(super) static GET_MERGE_PLAN: LazyLock<Script> = script!("get_merge_plan", "queue");
pub(super) static END_MERGE: LazyLock<Script> = script!("end_merge", "queue", "entry", "index");
pub(super) static END_MOVE: LazyLock<Script> = script!("end_move", "queue", "entry", "index");
pub(super) static CLAIM_DROPS: LazyLock<Script> = script!("claim_drops", "queue");
pub(super) static RENEW_LEASE: LazyLock<Script> = script!("renew_lease", "queue");
pub(super) static RELEASE_PLAN: LazyLock<Script> = script!("release_plan", "queue");
pub(super) static SPLIT_PLAN: LazyLock<Script> = script!("split_plan", "queue");
pub(super) static FAIL_PLAN: LazyLock<Script> = script!("fail_plan", "queue");
pub(super) static ANNOUNCE_OUTPUT: LazyLock<Script> = script!("announce_output", "queue");
pub(super) static DEAD_OUTPUT: LazyLock<Script> = script!("dead_output", "queue");
pub(super) static UNDELETE: LazyLock<Script> = script!("undelete", "entry", "index");
pub(super) static RETRY_QUARANTINED: LazyLock<Script> =
    script!("retry_quarantined", "entry", "index");
pub(super) static RETRY_FAILED: LazyLock<Script> = script!("retry_failed", "queue");
pub(super) static DROP_QUARANTINED: LazyLock<Script> =
    script!("drop_quarantined", "queue", "entry", "index");
pub(super) static PEEK_PLANS: LazyLock<Script> = script!("peek_plans");
pub(super) static MEND: LazyLock<Script> = script!("mend", "queue", "entry", "index");

/// Every script, those of the contract first.
pub fn all() -> [&'static Script; 17] {
    [
        &PATCH_INDEX,
        &GET_MERGE_PLAN,
        &END_MERGE,
        &END_MOVE,
        &CLAIM_DROPS,
        &RENEW_LEASE,
        &RELEASE_PLAN,
        &SPLIT_PLAN,
        &FAIL_PLAN,
        &ANNOUNCE_OUTPUT,
        &DEAD_OUTPUT,
        &UNDELETE,
        &PEEK_PLANS,
        &RETRY_QUARANTINED,
        &RETRY_FAILED,
        &DROP_QUARANTINED,
        &MEND,
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SOURCES: [(&str, &str); 17] = [
        ("patch_index", include_str!("../../../lua/patch_index.lua")),
        (
            "get_merge_plan",
            include_str!("../../../lua/get_merge_plan.lua"),
        ),
        ("end_merge", include_str!("../../../lua/end_merge.lua")),
        ("end_move", include_str!("../../../lua/end_move.lua")),
        ("claim_drops", include_str!("../../../lua/claim_drops.lua")),
        ("renew_lease", include_str!("../../../lua/renew_lease.lua")),
        (
            "release_plan",
            include_str!("../../../lua/release_plan.lua"),
        ),
        ("split_plan", include_str!("../../../lua/split_plan.lua")),
        ("fail_plan", include_str!("../../../lua/fail_plan.lua")),
        (
            "announce_output",
            include_str!("../../../lua/announce_output.lua"),
        ),
        ("dead_output", include_str!("../../../lua/dead_output.lua")),
        ("undelete", include_str!("../../../lua/undelete.lua")),
        ("peek_plans", include_str!("../../../lua/peek_plans.lua")),
        (
            "retry_quarantined",
            include_str!("../../../lua/retry_quarantined.lua"),
        ),
        (
            "retry_failed",
            include_str!("../../../lua/retry_failed.lua"),
        ),
        (
            "drop_quarantined",
            include_str!("../../../lua/drop_quarantined.lua"),
        ),
        ("mend", include_str!("../../../lua/mend.lua")),
    ];

    /// `KEYS[2]`, `ARGV[8...]` and so on.
    fn parameters(text: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for name in ["KEYS[", "ARGV["] {
            for (at, _) in text.match_indices(name) {
                let rest = &text[at + name.len()..];
                let inside = rest.split(']').next().unwrap_or_default();
                if inside.starts_with(|c: char| c.is_ascii_digit()) {
                    found.insert(format!("{name}{inside}]"));
                }
            }
        }
        found
    }

    #[test]
    fn a_scripts_header_names_the_keys_and_arguments_that_its_body_uses() {
        for (name, text) in SOURCES {
            let header: String = text
                .lines()
                .take_while(|line| line.starts_with("--"))
                .flat_map(|line| [line, "\n"])
                .collect();
            let body: String = text[header.len()..]
                .lines()
                .flat_map(|line| [line, "\n"])
                .collect();
            assert!(header.starts_with(&format!("-- {name}: ")), "{name}");
            assert!(header.contains("Reply"), "{name} says nothing of replies");
            let declared: BTreeSet<String> = header
                .lines()
                .filter_map(|line| line.strip_prefix("-- "))
                .filter(|line| line.starts_with("KEYS[") || line.starts_with("ARGV["))
                .flat_map(|line| parameters(line.split_whitespace().next().unwrap_or_default()))
                .collect();
            let (many, single): (BTreeSet<_>, BTreeSet<_>) =
                declared.into_iter().partition(|name| name.contains("..."));
            for name_many in &many {
                let kind = &name_many[..4];
                assert!(
                    body.contains(&format!("#{kind}")) || body.contains(&format!("ipairs({kind})")),
                    "{name}: the body does not count {kind}"
                );
            }
            assert_eq!(single, parameters(&body), "{name}: header and body differ");
        }
    }

    #[test]
    fn a_complete_text_holds_what_it_shares() {
        for (script, (name, source)) in all().into_iter().zip(SOURCES) {
            assert_eq!(script.name, name);
            assert!(script.text.ends_with(source));
            assert_eq!(script.sha1.len(), 40);
            assert!(script.text.contains("local now_s"), "{name}");
        }
    }
}
