//! Merge plans: does each name files that are there, and each file stand in one of them?

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
};

use futures_util::TryStreamExt;

use super::{Difference, Kind, VerifyError, accounts::Accounts, entries::Folder, walk::Walk};
use crate::{
    catalog::audit::{ItemFate, ItemState, Mend, Record, Work},
    invariants,
    model::{DataPath, IndexEntry, MergePlan, MergeQueue, TableRef},
};

/// Files of one queue that are asked for in one step.
const ASKED_MAX: usize = 100;
/// Paths that one difference names.
const SHOWN_MAX: usize = 3;
/// Files in two plans that are followed at once; the next run finds the others.
const TWICE_MAX: usize = 100_000;

/// Where a path was seen.
struct Sight {
    identity: u32,
    place: String,
    state: ItemState,
    text: String,
}

/// Id and paths: ids of the original repeat. A claim changes neither.
fn identity(plan: &MergePlan) -> u32 {
    let mut hasher = DefaultHasher::new();
    plan.id.as_str().hash(&mut hasher);
    for path in &plan.paths {
        path.as_str().hash(&mut hasher);
    }
    u32::try_from(hasher.finish() >> 32).unwrap_or(0)
}

fn shown(paths: &[String]) -> String {
    let first = paths[..paths.len().min(SHOWN_MAX)].join(", ");
    match paths.len().saturating_sub(SHOWN_MAX) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

impl Walk<'_> {
    pub(super) async fn plans(
        &mut self,
        table: &TableRef,
        first: &str,
        folder: &mut Folder,
        accounts: &Accounts,
    ) -> Result<(), VerifyError> {
        let mut twice = BTreeSet::new();
        let audit = self.audit;
        let mut merges = audit.merges(table, first);
        while let Some(record) = merges.try_next().await? {
            let Record::Item {
                place,
                state,
                text,
                work,
                reason,
            } = record
            else {
                continue;
            };
            self.summary.items += 1;
            let plan = match work {
                Ok(Work::Merge(plan)) => plan,
                Ok(_) => continue,
                Err(_) if state == ItemState::Failed => continue,
                Err(reason) => {
                    let fate = ItemFate::Fail(reason.clone());
                    let difference = Difference::new(Kind::BrokenItem, table, &place, reason);
                    self.emit(difference.mended_by(Mend::Item {
                        place,
                        seen: text,
                        fate,
                    }))?;
                    continue;
                }
            };
            let unknown = self.count(folder, &plan, state, &mut twice);
            if state == ItemState::Failed {
                self.given_up(table, &place, &plan, unknown.len(), reason.as_deref())?;
                continue;
            }
            if self.is_overdue(plan.due_s) {
                self.overdue(table, place, state, text, &plan, unknown)
                    .await?;
            }
        }
        drop(merges);
        if !twice.is_empty() {
            self.planned_twice(table, first, &twice).await?;
        }
        self.unplanned(table, first, folder, accounts).await
    }

    /// Notes what a plan names; returns the paths that are not in the index.
    fn count(
        &self,
        folder: &mut Folder,
        plan: &MergePlan,
        state: ItemState,
        twice: &mut BTreeSet<String>,
    ) -> Vec<String> {
        let identity = identity(plan);
        let is_idle = state == ItemState::Idle;
        let mut unknown = Vec::new();
        for path in &plan.paths {
            let Some(seen) = folder.seen.get_mut(&self.keys.path(path.as_str())) else {
                unknown.push(path.to_string());
                continue;
            };
            // A plan that was claimed meanwhile is seen in both of its lists.
            let is_moved = seen.plan.0 == identity && seen.plan.1 != is_idle;
            if seen.is_planned && !is_moved && state != ItemState::Failed && twice.len() < TWICE_MAX
            {
                twice.insert(path.to_string());
            }
            seen.is_planned = true;
            if state != ItemState::Failed {
                seen.plan = (identity, is_idle);
            }
        }
        unknown
    }

    fn given_up(
        &mut self,
        table: &TableRef,
        place: &str,
        plan: &MergePlan,
        unknown_count: usize,
        reason: Option<&str>,
    ) -> Result<(), VerifyError> {
        let left = plan.paths.len().saturating_sub(unknown_count);
        if left == 0 {
            return Ok(());
        }
        let reason = reason.unwrap_or_default();
        let detail = format!("plan {}: {left} files stay unmerged: {reason}", plan.id);
        self.emit(Difference::new(Kind::GivenUp, table, place, detail))
    }

    /// A plan that somebody should have worked on by now.
    async fn overdue(
        &mut self,
        table: &TableRef,
        place: String,
        state: ItemState,
        text: String,
        plan: &MergePlan,
        unknown: Vec<String>,
    ) -> Result<(), VerifyError> {
        let queue = &plan.queue;
        let mend = |fate| Mend::Item {
            place: place.clone(),
            seen: text.clone(),
            fate,
        };
        let mut gone: Vec<String> = Vec::new();
        for path in unknown {
            if self.audit.stored(table, &path).await?.is_none() {
                gone.push(path);
            }
        }
        let new = |kind, detail: String| {
            Difference::new(kind, table, &place, detail).in_layer(&queue.layer)
        };
        if state == ItemState::Processing {
            let files = plan.paths.len();
            let detail = format!(
                "the claim on plan {} ({files} files) ran out, and nobody took over",
                plan.id
            );
            return self.emit(new(Kind::StaleClaim, detail).mended_by(mend(ItemFate::Release)));
        }
        if !gone.is_empty() {
            let detail = format!("plan {} names {}", plan.id, shown(&gone));
            let fate = ItemFate::WithoutPaths(gone);
            self.emit(new(Kind::PlanOfUnknownFile, detail).mended_by(mend(fate)))?;
        }
        let policy = self.config.policy();
        let why = if !policy.serves(&queue.writer) {
            format!("worker.writers does not name {:?}", queue.writer.as_str())
        } else if policy.level(queue.iteration).is_none() {
            format!("merge.levels has no iteration {}", queue.iteration)
        } else {
            return Ok(());
        };
        self.emit(new(Kind::UnservedItem, format!("plan {}: {why}", plan.id)))
    }

    /// Looks again: what was claimed, split or merged meanwhile is in one plan or none.
    async fn planned_twice(
        &mut self,
        table: &TableRef,
        first: &str,
        suspects: &BTreeSet<String>,
    ) -> Result<(), VerifyError> {
        let mut sights: HashMap<String, Vec<Sight>> = HashMap::new();
        let audit = self.audit;
        let mut merges = audit.merges(table, first);
        while let Some(record) = merges.try_next().await? {
            let Record::Item {
                place,
                state,
                text,
                work: Ok(Work::Merge(plan)),
                ..
            } = record
            else {
                continue;
            };
            if state == ItemState::Failed {
                continue;
            }
            let identity = identity(&plan);
            for path in &plan.paths {
                if suspects.contains(path.as_str()) {
                    sights.entry(path.to_string()).or_default().push(Sight {
                        identity,
                        place: place.clone(),
                        state,
                        text: text.clone(),
                    });
                }
            }
        }
        drop(merges);
        // By the item that can lose them: the last one that waits.
        let mut by_item: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        for (path, seen) in sights {
            let is_two = |a: &Sight, b: &Sight| a.identity != b.identity || a.place == b.place;
            let is_twice = seen
                .iter()
                .enumerate()
                .any(|(place, a)| seen[place + 1..].iter().any(|b| is_two(a, b)));
            let holders = if is_twice { seen.len() } else { 1 };
            if invariants::one_holder(holders).is_ok()
                || self.audit.stored(table, &path).await?.is_none()
            {
                continue;
            }
            let waits = seen.iter().rfind(|sight| sight.state == ItemState::Idle);
            let (place, text) = waits.map_or_else(
                || (seen[0].place.clone(), String::new()),
                |sight| (sight.place.clone(), sight.text.clone()),
            );
            by_item.entry((place, text)).or_default().push(path);
        }
        for ((place, text), mut paths) in by_item {
            paths.sort_unstable();
            let detail = format!("{} stands in two plans", shown(&paths));
            let mut difference = Difference::new(Kind::PlannedTwice, table, &place, detail);
            if !text.is_empty() {
                difference = difference.mended_by(Mend::Item {
                    place,
                    seen: text,
                    fate: ItemFate::WithoutPaths(paths),
                });
            }
            self.emit(difference)?;
        }
        Ok(())
    }

    /// Files below the last iteration that no plan names: nobody would ever merge them.
    async fn unplanned(
        &mut self,
        table: &TableRef,
        first: &str,
        folder: &Folder,
        accounts: &Accounts,
    ) -> Result<(), VerifyError> {
        let is_suspect = |entry: &IndexEntry, walk: &Self| {
            let key = walk.keys.path(entry.path.as_str());
            let seen = folder.seen.get(&key);
            seen.is_some_and(|seen| seen.is_mergeable && !seen.is_planned)
                && !accounts.set_aside.contains(&key)
                && !accounts.moves.contains(&key)
        };
        if !folder
            .seen
            .values()
            .any(|seen| seen.is_mergeable && !seen.is_planned)
        {
            return Ok(());
        }
        let audit = self.audit;
        let mut waiting: BTreeMap<MergeQueue, Vec<DataPath>> = BTreeMap::new();
        let mut entries = audit.entries(table, first);
        while let Some(stored) = entries.try_next().await? {
            let Ok(entry) = stored.entry else { continue };
            if !is_suspect(&entry, self) {
                continue;
            }
            let queue = MergeQueue {
                table: table.clone(),
                iteration: entry.path.iteration(),
                dir: entry.path.dir(),
                layer: entry.layer,
                writer: entry.writer,
            };
            let paths = waiting.entry(queue.clone()).or_default();
            paths.push(entry.path);
            if paths.len() >= ASKED_MAX {
                let paths = waiting.remove(&queue).unwrap_or_default();
                self.ask_unplanned(table, queue, paths).await?;
            }
        }
        drop(entries);
        for (queue, paths) in waiting {
            self.ask_unplanned(table, queue, paths).await?;
        }
        Ok(())
    }

    async fn ask_unplanned(
        &mut self,
        table: &TableRef,
        queue: MergeQueue,
        paths: Vec<DataPath>,
    ) -> Result<(), VerifyError> {
        let Some(unplanned) = self.audit.unplanned(&queue, &paths).await? else {
            self.summary.unjudged.push(format!(
                "{table} {}: whether {} files are in plans, of which there are too many",
                queue.dir,
                paths.len()
            ));
            return Ok(());
        };
        for path in unplanned {
            let detail = format!("of iteration {}, in no plan", queue.iteration);
            let difference = Difference::new(Kind::UnplannedFile, table, path.as_str(), detail);
            self.emit(difference.in_layer(&queue.layer).mended_by(Mend::Plan {
                queue: queue.clone(),
                paths: vec![path],
            }))?;
        }
        Ok(())
    }
}
