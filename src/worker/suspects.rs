//! Plans that may have ended a process, and how the file that does so is found.
//!
//! An attempt of which nobody heard again (memory ran out, a decoder aborted, somebody pulled the
//! plug) blames all files of its plan alike. So the plan is split in two before it is tried again,
//! each half starts with no attempts of its own, and a half runs alone in its process. What goes
//! well is merged; what dies is split again, until one file is left. That one is set aside after
//! `worker.max_attempts`: the culprit among n files costs log2(n) + max_attempts deaths.

use std::{collections::HashSet, sync::Arc};

use super::WorkContext;
use crate::{
    catalog::{CatalogError, MergeCommit},
    model::{ClaimedMerge, DataPath, IndexEntry, MergePlan, PlanPart, SetAside},
};

/// What is done with a plan instead of merging it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its halves are tried by themselves.
    Split(Vec<PlanPart>),
    /// Its only file is to blame.
    SetAside(SetAside),
}

/// Judges a plan by the attempts that died, before another one starts; `None` when it may run.
pub(super) fn judge(
    plan: &MergePlan,
    sources: &[IndexEntry],
    malformed: &[SetAside],
    max_attempts: u32,
) -> Option<Verdict> {
    if plan.deaths() == 0 {
        return None;
    }
    let sources = sources.iter().map(|source| &source.path);
    let there: HashSet<&DataPath> = sources
        .chain(malformed.iter().map(|bad| &bad.path))
        .collect();
    let paths: Vec<&DataPath> = plan
        .paths
        .iter()
        .filter(|path| there.contains(path))
        .collect();
    match paths[..] {
        [path] if plan.deaths() >= max_attempts => Some(Verdict::SetAside(SetAside {
            path: path.clone(),
            reason: format!(
                "the process ended each of the {} times when it was merged",
                plan.deaths()
            ),
        })),
        [] | [_] => None,
        _ => Some(Verdict::Split(halves(&paths, plan.size_bytes))),
    }
}

/// Judges a plan by an attempt that failed and said why, when its files may be to blame; `None`
/// when it may be tried again. A suspect is split at once.
pub(super) fn judge_failure(plan: &MergePlan, reason: &str, max_attempts: u32) -> Option<Verdict> {
    let paths: Vec<&DataPath> = plan.paths.iter().collect();
    let is_exhausted = plan.counted_attempts() >= max_attempts;
    match paths[..] {
        [path] if is_exhausted => Some(Verdict::SetAside(SetAside {
            path: path.clone(),
            reason: reason.to_owned(),
        })),
        [] | [_] => None,
        _ if is_exhausted || plan.is_suspect => {
            Some(Verdict::Split(halves(&paths, plan.size_bytes)))
        }
        _ => None,
    }
}

fn halves(paths: &[&DataPath], size_bytes: u64) -> Vec<PlanPart> {
    let (first, second) = paths.split_at(paths.len().div_ceil(2));
    [first, second]
        .into_iter()
        .map(|half| PlanPart {
            paths: half.iter().copied().cloned().collect(),
            size_bytes: size_bytes / 2,
        })
        .collect()
}

/// Carries a verdict out; the claim ends.
pub(super) async fn execute(
    context: &Arc<WorkContext>,
    claim: &ClaimedMerge,
    verdict: &Verdict,
) -> Result<(), CatalogError> {
    let plan = &claim.plan;
    match verdict {
        Verdict::Split(parts) => {
            context.catalog.split_merge(claim, parts).await?;
            tracing::warn!(plan = %plan.queue, id = %plan.id, files = plan.paths.len(), deaths = plan.deaths(),
                "plan did not end well; its halves are tried one by one, alone");
        }
        Verdict::SetAside(bad) => {
            let commit = MergeCommit {
                output: None,
                sources: Vec::new(),
                set_aside: vec![bad.clone()],
                grace: context.config.drops.grace,
            };
            context.catalog.commit_merge(claim, &commit).await?;
            tracing::error!(table = %plan.queue.table, file = %bad.path, reason = bad.reason,
                "file set aside: it stays readable and is not merged");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Iteration, LayerName, MergeQueue, PartitionDir, PlanId, TableRef, WriterId,
    };

    fn plan(files: usize, attempts: u32, is_suspect: bool) -> MergePlan {
        let dir = PartitionDir::parse("a").unwrap();
        MergePlan {
            id: PlanId::random(),
            paths: (0..files)
                .map(|n| dir.file(&n.to_string(), Iteration(1)).unwrap())
                .collect(),
            queue: MergeQueue {
                table: TableRef::new("db", "t").unwrap(),
                iteration: Iteration(1),
                dir,
                layer: LayerName::default(),
                writer: WriterId::default(),
            },
            refused_paths: Vec::new(),
            size_bytes: 0,
            due_s: 0,
            attempts,
            forgiven: 0,
            failed: 0,
            is_suspect,
        }
    }

    fn sources(plan: &MergePlan) -> Vec<IndexEntry> {
        let entry = |path: &DataPath| IndexEntry {
            layer: LayerName::default(),
            table: plan.queue.table.clone(),
            path: path.clone(),
            size_bytes: 1,
            row_count: 1,
            chunk_time_ns: 0,
            min_time_ns: 0,
            max_time_ns: 0,
            min: serde_json::Map::new(),
            max: serde_json::Map::new(),
            writer: WriterId::default(),
            extra: serde_json::Map::new(),
        };
        plan.paths.iter().map(entry).collect()
    }

    /// Plays the game: a plan with the culprit dies, any other one succeeds.
    fn deaths_until_set_aside(file_count: usize, culprit: &str, max_attempts: u32) -> (u32, usize) {
        let (mut deaths, mut merged) = (0, 0);
        let mut waiting = vec![plan(file_count, 1, false)];
        while let Some(mut next) = waiting.pop() {
            match judge(&next, &sources(&next), &[], max_attempts) {
                Some(Verdict::SetAside(bad)) => {
                    assert_eq!(bad.path.as_str(), culprit);
                    assert!(waiting.is_empty() || merged + waiting.len() < file_count);
                }
                Some(Verdict::Split(parts)) => waiting.extend(parts.into_iter().map(|part| {
                    let mut half = plan(0, 1, true);
                    half.paths = part.paths;
                    half
                })),
                None if next.paths.iter().any(|path| path.as_str() == culprit) => {
                    deaths += 1;
                    next.attempts += 1;
                    waiting.push(next);
                }
                None => merged += next.paths.len(),
            }
        }
        (deaths, merged)
    }

    #[test]
    fn one_culprit_among_a_thousand_costs_ten_splits_and_its_own_attempts() {
        assert_eq!(
            deaths_until_set_aside(1000, "a/617.1.parquet", 5),
            (10 + 5, 999)
        );
        assert_eq!(deaths_until_set_aside(1, "a/0.1.parquet", 5), (5, 0));
        assert_eq!(deaths_until_set_aside(2, "a/1.1.parquet", 1), (1 + 1, 1));
    }

    #[test]
    fn attempts_that_were_forgiven_or_failed_with_a_word_are_no_deaths() {
        let mut tried = plan(4, 4, false);
        (tried.forgiven, tried.failed) = (2, 1);
        assert_eq!(judge(&tried, &sources(&tried), &[], 5), None);
        assert!(!tried.runs_alone());
        tried.attempts += 1;
        assert!(tried.runs_alone());
        let verdict = judge(&tried, &sources(&tried), &[], 5);
        assert!(matches!(verdict, Some(Verdict::Split(parts)) if parts.len() == 2));
    }

    #[test]
    fn a_plan_that_fails_with_a_word_is_split_after_its_attempts_a_suspect_at_once() {
        assert_eq!(judge_failure(&plan(3, 4, false), "panic", 5), None);
        let split = |verdict| matches!(verdict, Some(Verdict::Split(_)));
        assert!(split(judge_failure(&plan(3, 5, false), "panic", 5)));
        assert!(split(judge_failure(&plan(3, 1, true), "panic", 5)));
        assert_eq!(judge_failure(&plan(1, 4, true), "panic", 5), None);
        let aside = judge_failure(&plan(1, 5, true), "panic", 5);
        assert!(matches!(aside, Some(Verdict::SetAside(bad)) if bad.reason == "panic"));
    }

    #[test]
    fn files_that_are_gone_are_in_neither_half() {
        let dead = plan(5, 2, false);
        let there = sources(&dead).split_off(2);
        let Some(Verdict::Split(parts)) = judge(&dead, &there, &[], 5) else {
            panic!("not split");
        };
        let sizes: Vec<usize> = parts.iter().map(|part| part.paths.len()).collect();
        assert_eq!(sizes, [2, 1]);
    }
}
