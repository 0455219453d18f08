//! The scripts of `lua/`, each through one typed method.

use std::time::Duration;

use super::{
    connection::Connection,
    keys::ScriptKeys,
    planning_rules::PlanningRules,
    script_texts::{
        ANNOUNCE_OUTPUT, CLAIM_DROPS, DEAD_OUTPUT, DROP_QUARANTINED, END_MERGE, FAIL_PLAN,
        GET_MERGE_PLAN, MEND, PATCH_INDEX, PEEK_PLANS, RELEASE_PLAN, RENEW_LEASE, RETRY_FAILED,
        RETRY_QUARANTINED, SPLIT_PLAN, UNDELETE,
    },
};
use crate::{
    catalog::{CatalogError, CommitOutcome, Undeleted},
    model::TableRef,
};

pub use super::script_texts::{Script, all};

/// Longer leases, delays and graces make no sense, and must not overflow a time.
const DURATION_MAX_S: u64 = 100 * 365 * 86_400;

/// A list's key and an item's text.
pub(super) type DueItem = (String, String);

/// A commit as `end_merge` takes it.
#[derive(Debug)]
pub(super) struct CommitCall<'a> {
    pub(super) plan_id: &'a str,
    pub(super) token: &'a str,
    pub(super) grace: Duration,
    pub(super) rules: &'a PlanningRules,
    /// The output's entry as JSON; empty for none.
    pub(super) output: &'a str,
    pub(super) sources: &'a [&'a str],
    /// Path and reason of each.
    pub(super) set_aside: &'a [(&'a str, &'a str)],
}

/// Which end of the waiting list an item goes back to.
#[derive(Debug, Clone, Copy)]
pub(super) enum ListEnd {
    Head,
    Tail,
}

pub(super) async fn patch_index(
    connection: &Connection,
    rules: &PlanningRules,
    entries: &[String],
) -> Result<u64, CatalogError> {
    let keys = [
        rules.levels_json.clone(),
        rules.layers_json.clone(),
        nonce(),
    ];
    let arguments: Vec<&str> = entries.iter().map(String::as_str).collect();
    PATCH_INDEX
        .call(connection, "registering files", &keys, &arguments)
        .await
}

/// The claimed item's text; `None` when nothing is due.
pub(super) async fn get_merge_plan(
    connection: &Connection,
    queue: &ScriptKeys,
    lease: Duration,
) -> Result<Option<String>, CatalogError> {
    let text: Vec<u8> = GET_MERGE_PLAN
        .call(
            connection,
            "claiming a merge plan",
            queue,
            &[&seconds(lease), &nonce()],
        )
        .await?;
    Ok(as_text(text).filter(|text| !text.is_empty()))
}

/// A claimed item that is not UTF-8 is nobody's work: it stays in `processing` and blocks nothing.
fn as_text(item: Vec<u8>) -> Option<String> {
    String::from_utf8(item)
        .inspect_err(|error| tracing::error!(%error, "an item that is not UTF-8 is left in its processing list; remove it by hand"))
        .ok()
}

/// `served_json`: of moves, the values of `layer_to` that may be claimed; `None` for all.
pub(super) async fn claim_drops(
    connection: &Connection,
    queue: &ScriptKeys,
    lease: Duration,
    limit: usize,
    layers_json: &str,
    served_json: Option<&str>,
) -> Result<Vec<String>, CatalogError> {
    let (lease, nonce, limit) = (seconds(lease), nonce(), limit.to_string());
    let mut arguments = vec![lease.as_str(), &nonce, &limit, layers_json];
    arguments.extend(served_json);
    let items: Vec<Vec<u8>> = CLAIM_DROPS
        .call(connection, "claiming deletes or moves", queue, &arguments)
        .await?;
    Ok(items.into_iter().filter_map(as_text).collect())
}

/// The item's new text; `None` when the claim was lost.
pub(super) async fn renew_lease(
    connection: &Connection,
    queue: &ScriptKeys,
    token: &str,
    lease: Duration,
) -> Result<Option<String>, CatalogError> {
    let text: String = RENEW_LEASE
        .call(
            connection,
            "renewing a lease",
            queue,
            &[token, &seconds(lease)],
        )
        .await?;
    Ok((!text.is_empty()).then_some(text))
}

/// What an attempt that was given back counts as.
#[derive(Debug, Clone, Copy)]
pub(super) enum CountAs {
    /// Its files are not to blame.
    Forgiven,
    /// They may be.
    Failed,
    /// Nothing is counted.
    Nothing,
}

/// Whether the claim was still ours.
pub(super) async fn release_plan(
    connection: &Connection,
    queue: &ScriptKeys,
    token: &str,
    delay: Duration,
    end: ListEnd,
    count_as: CountAs,
) -> Result<bool, CatalogError> {
    let end = match end {
        ListEnd::Head => "head",
        ListEnd::Tail => "tail",
    };
    let delay = seconds(delay);
    let mut arguments = vec![token, &delay, end];
    arguments.extend(match count_as {
        CountAs::Forgiven => Some("forgiven"),
        CountAs::Failed => Some("failed"),
        CountAs::Nothing => None,
    });
    RELEASE_PLAN
        .call(connection, "giving a claim back", queue, &arguments)
        .await
}

/// Whether the claim was still ours. `parts` are plans as [`wire::part_to_json`](super::wire::part_to_json) makes them.
pub(super) async fn split_plan(
    connection: &Connection,
    queue: &ScriptKeys,
    token: &str,
    parts: &[String],
) -> Result<bool, CatalogError> {
    let nonce = nonce();
    let mut arguments = vec![token, &nonce];
    arguments.extend(parts.iter().map(String::as_str));
    SPLIT_PLAN
        .call(connection, "splitting a plan", queue, &arguments)
        .await
}

/// Whether the claim was still ours.
pub(super) async fn fail_plan(
    connection: &Connection,
    queue: &ScriptKeys,
    token: &str,
    reason: &str,
) -> Result<bool, CatalogError> {
    FAIL_PLAN
        .call(connection, "giving a plan up", queue, &[token, reason])
        .await
}

/// Whether the claim was still ours. `layer`: of a move, the one that gets the bytes.
pub(super) async fn announce_output(
    connection: &Connection,
    queue: &ScriptKeys,
    token: &str,
    output: &str,
    layer: Option<&str>,
) -> Result<bool, CatalogError> {
    let mut arguments = vec![token, output];
    arguments.extend(layer);
    ANNOUNCE_OUTPUT
        .call(connection, "announcing an output", queue, &arguments)
        .await
}

/// Brings back what `output` replaced.
pub(super) async fn undelete(
    connection: &Connection,
    keys: &[String],
    output: &str,
    grace: Duration,
    reason: &str,
) -> Result<Undeleted, CatalogError> {
    let context = "bringing replaced files back";
    let reply: String = UNDELETE
        .call(
            connection,
            context,
            keys,
            &[output, &seconds(grace), &nonce(), reason],
        )
        .await?;
    match reply.as_str() {
        "done" => Ok(Undeleted::Done),
        "output_gone" => Ok(Undeleted::OutputGone),
        "being_deleted" => Ok(Undeleted::BeingDeleted),
        _ => Err(CatalogError::Refused {
            context: context.to_owned(),
            reason: format!("undelete gave an unknown reply {reply:?}"),
        }),
    }
}

/// What an announcement is good for (see [`dead_output`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Announced {
    /// Nobody can commit it any more.
    Dead,
    /// The index names it.
    Indexed,
    /// It may still be committed, or nothing is known of it.
    Open,
}

/// Judges an announced output by the text of its announcement, and forgets it if that is asked for.
pub(super) async fn dead_output(
    connection: &Connection,
    queue: &ScriptKeys,
    announcement: &str,
    age_min: Duration,
    forget: bool,
) -> Result<Announced, CatalogError> {
    let mode = if forget { "forget" } else { "look" };
    let reply: String = DEAD_OUTPUT
        .call(
            connection,
            "looking for outputs of dead workers",
            queue,
            &[announcement, &seconds(age_min), mode],
        )
        .await?;
    Ok(match reply.as_str() {
        "dead" => Announced::Dead,
        "indexed" => Announced::Indexed,
        _ => Announced::Open,
    })
}

pub(super) async fn end_merge(
    connection: &Connection,
    queue: &ScriptKeys,
    commit: &CommitCall<'_>,
) -> Result<CommitOutcome, CatalogError> {
    let context = "committing a merge";
    let [_, database, table, suffix, layer, writer] = queue.clone();
    let keys = [
        database,
        table,
        suffix,
        layer,
        writer,
        commit.plan_id.to_owned(),
    ];
    let (grace, nonce, count) = (
        seconds(commit.grace),
        nonce(),
        commit.sources.len().to_string(),
    );
    let mut arguments = vec![
        commit.token,
        &grace,
        &commit.rules.levels_json,
        &commit.rules.layers_json,
        commit.output,
        &nonce,
        &count,
    ];
    arguments.extend(commit.sources);
    for (path, reason) in commit.set_aside {
        arguments.extend([path, reason]);
    }
    let reply: Vec<String> = END_MERGE
        .call(connection, context, &keys, &arguments)
        .await?;
    commit_outcome(context, &reply)
}

/// What `end_merge` and `end_move` say.
pub(super) fn commit_outcome(
    context: &str,
    reply: &[String],
) -> Result<CommitOutcome, CatalogError> {
    match reply.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["committed"] => Ok(CommitOutcome::Committed),
        ["lease_lost"] => Ok(CommitOutcome::LeaseLost),
        ["output_exists"] => Ok(CommitOutcome::OutputExists),
        ["source_gone", path] => Ok(CommitOutcome::SourceGone(path.to_owned())),
        _ => Err(CatalogError::Refused {
            context: context.to_owned(),
            reason: format!("the script gave an unknown reply {reply:?}"),
        }),
    }
}

/// Of a list in which nothing is due: when its first item is, and how many it holds.
pub(super) type Waiting = Option<(i64, u64)>;

fn waiting(seen: i64) -> Waiting {
    (seen > 0).then_some((seen / 256, (seen % 256).unsigned_abs()))
}

/// Due items, and what was seen of the first lists: of all of them, or of fewer when there was much to read.
pub(super) async fn peek_plans(
    connection: &Connection,
    lists: &[String],
    limit: usize,
) -> Result<(Vec<DueItem>, Vec<Waiting>), CatalogError> {
    let (due, seen): (Vec<Vec<u8>>, Vec<i64>) = PEEK_PLANS
        .call(
            connection,
            "looking for due plans",
            lists,
            &[&limit.to_string()],
        )
        .await?;
    // Bytes that are not text are no JSON either; a claim will set them aside.
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let due = due
        .chunks_exact(2)
        .map(|pair| (text(&pair[0]), text(&pair[1])))
        .collect();
    Ok((due, seen.into_iter().map(waiting).collect()))
}

/// Brings a file back that was set aside; see the script for what it says.
pub(super) async fn retry_quarantined(
    connection: &Connection,
    table: &TableRef,
    rules: &PlanningRules,
    path: &str,
) -> Result<String, CatalogError> {
    let keys = [table.database().to_owned(), table.table().to_owned()];
    let arguments = [path, &rules.levels_json, &nonce()];
    RETRY_QUARANTINED
        .call(connection, "retrying a file", &keys, &arguments)
        .await
}

/// Whether `failed`, the text of an item that was given up, was still there.
pub(super) async fn retry_failed(
    connection: &Connection,
    queue: &ScriptKeys,
    failed: &str,
) -> Result<bool, CatalogError> {
    RETRY_FAILED
        .call(connection, "retrying what was given up", queue, &[failed])
        .await
}

/// The number of files that left the index; `None` when something is not there any more and nothing changed.
pub(super) async fn drop_quarantined(
    connection: &Connection,
    queue: &ScriptKeys,
    grace: Duration,
    failed: &str,
    paths: &[&str],
) -> Result<Option<u64>, CatalogError> {
    let (grace, nonce) = (seconds(grace), nonce());
    let mut arguments: Vec<&str> = vec![&grace, &nonce, failed];
    arguments.extend(paths);
    let removed: i64 = DROP_QUARANTINED
        .call(connection, "dropping files", queue, &arguments)
        .await?;
    Ok(u64::try_from(removed).ok())
}

/// One repair: whether it was made.
pub(super) async fn mend(
    connection: &Connection,
    table: &TableRef,
    arguments: &[&str],
) -> Result<bool, CatalogError> {
    let keys = mend_keys(table);
    let count: u64 = MEND
        .call(connection, "making a repair", &keys, arguments)
        .await?;
    Ok(count > 0)
}

/// One look that `mend` takes in one step; `None` when there is too much to look at.
pub(super) async fn mend_look(
    connection: &Connection,
    table: &TableRef,
    arguments: &[&str],
) -> Result<Option<Vec<String>>, CatalogError> {
    let keys = mend_keys(table);
    let found: Vec<String> = MEND
        .call(connection, "looking in one step", &keys, arguments)
        .await?;
    Ok((found != ["too_large"]).then_some(found))
}

fn mend_keys(table: &TableRef) -> [String; 3] {
    [
        table.database().to_owned(),
        table.table().to_owned(),
        nonce(),
    ]
}

pub(super) fn nonce() -> String {
    uuid::Uuid::new_v4().to_string()
}

pub(super) fn seconds(duration: Duration) -> String {
    let duration = duration.min(Duration::from_secs(DURATION_MAX_S));
    format!("{}.{:03}", duration.as_secs(), duration.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_goes_out_in_seconds() {
        assert_eq!(seconds(Duration::from_millis(1500)), "1.500");
        assert_eq!(seconds(Duration::ZERO), "0.000");
        assert!(seconds(Duration::MAX).len() < 15);
    }
}
