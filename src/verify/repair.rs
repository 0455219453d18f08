//! What is mended, and how much of a table at most.
//!
//! Each step changes only what is still as it was seen. Bytes are never deleted here: a delete is
//! queued, with its grace, and the daemon asks the index again before it acts. What touches files
//! or their entries counts against the table's share; beyond it nothing of that sort is done, for
//! so much damage has another cause than the things that repairs are made for.

use std::time::Duration;

use super::{Difference, Fix, Outcome, Repair, VerifyError, walk::Walk};
use crate::{
    catalog::audit::{ItemFate, Mend},
    model::TableRef,
    storage::Workspace,
};

/// Repairs of one table that a run keeps until the table's size is known; the next run does more.
const KEPT_MAX: usize = 20_000;

/// Repairs of the table that is looked at.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    kept: Vec<Difference>,
    entries_before: u64,
}

impl Repairs {
    pub(super) fn takes(&self, difference: &Difference) -> bool {
        !difference.mends.is_empty() && difference.table.is_some() && self.kept.len() < KEPT_MAX
    }

    pub(super) fn keep(&mut self, difference: Difference) {
        self.kept.push(difference);
    }
}

/// Whether a step touches a file or its entry.
fn is_weighty(fix: &Fix) -> bool {
    matches!(fix, Fix::Catalog(Mend::Entry { .. } | Mend::Drop { .. }))
}

/// The files that may be touched: at least one, so that small tables can be mended.
pub(super) fn share(entries: u64, percent: f64) -> u64 {
    if percent <= 0.0 {
        return 0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share between 0 and all of a number of files"
    )]
    let files = (entries as f64 * percent.min(100.0) / 100.0).floor() as u64;
    files.max(1)
}

fn told(fix: &Fix) -> String {
    let seconds = |grace: &Duration| format!("{} s", grace.as_secs());
    match fix {
        Fix::RemoveScratch(_) => "remove the folder".to_owned(),
        Fix::Catalog(mend) => match mend {
            Mend::Entry { new: Some(_), .. } => "write the entry as the file is".to_owned(),
            Mend::Entry { new: None, .. } => "forget the entry, keep its text aside".to_owned(),
            Mend::Folder(_) => "count again".to_owned(),
            Mend::Plan { .. } => "put it into a plan".to_owned(),
            Mend::Drop { grace, .. } => format!("queue its deletion, due in {}", seconds(grace)),
            Mend::Announced { .. } => "forget the announcement".to_owned(),
            Mend::Item { fate, .. } => match fate {
                ItemFate::Remove => "remove the item".to_owned(),
                ItemFate::Fail(_) => "move the item to the failed list".to_owned(),
                ItemFate::Release => "let the next worker have it at once".to_owned(),
                ItemFate::WithoutPaths(paths) => {
                    format!("take {} paths out of the plan", paths.len())
                }
            },
        },
    }
}

impl Walk<'_> {
    /// Mends what was kept of a table, or says what would be done.
    pub(super) async fn finish_table(&mut self, table: &TableRef) -> Result<(), VerifyError> {
        let kept = std::mem::take(&mut self.repairs.kept);
        let entries = self.summary.entries - self.repairs.entries_before;
        self.repairs.entries_before = self.summary.entries;
        let share = share(entries, self.options.share_max_percent);
        let is_weighty = |difference: &Difference| difference.mends.iter().any(is_weighty);
        let weighty = kept.iter().filter(|one| is_weighty(one)).count() as u64;
        for mut difference in kept {
            let steps: Vec<String> = difference.mends.iter().map(told).collect();
            let steps = steps.join(", ");
            difference.outcome = if weighty > share && is_weighty(&difference) {
                Outcome::NotRepaired(format!(
                    "{weighty} files of {entries} would be touched, more than the {share} that --max-share allows"
                ))
            } else if self.options.repair == Repair::Act {
                self.mend(table, &difference, steps).await
            } else {
                Outcome::WouldRepair(steps)
            };
            if matches!(difference.outcome, Outcome::Repaired(_)) {
                self.summary.repaired += 1;
            }
            self.show(&difference)?;
        }
        Ok(())
    }

    async fn mend(&self, table: &TableRef, difference: &Difference, steps: String) -> Outcome {
        for fix in &difference.mends {
            let done = match fix {
                Fix::Catalog(mend) => self
                    .audit
                    .mend(table, mend)
                    .await
                    .map_err(|error| error.to_string()),
                Fix::RemoveScratch(folder) => {
                    let folder = folder.clone();
                    tokio::task::spawn_blocking(move || Workspace::remove_abandoned(&folder))
                        .await
                        .map_err(|error| error.to_string())
                }
            };
            match done {
                // Of several steps, those that follow may be done already.
                Ok(is_done) if is_done || difference.mends.len() > 1 => {}
                Ok(_) => {
                    return Outcome::NotRepaired("it is not as it was seen any more".to_owned());
                }
                Err(reason) => return Outcome::NotRepaired(reason),
            }
        }
        tracing::info!(%table, kind = difference.kind.name(), place = difference.place, steps, "repaired");
        Outcome::Repaired(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_a_small_table_is_one_file_and_of_a_large_one_what_was_asked_for() {
        assert_eq!(share(5, 5.0), 1);
        assert_eq!(share(1000, 5.0), 50);
        assert_eq!(share(1000, 250.0), 1000);
        assert_eq!(share(1000, 0.0), 0);
    }
}
