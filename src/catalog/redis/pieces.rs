//! A plan of many files is cut before it is merged: its commit is one call, in which Redis answers
//! nobody else, and takes time in proportion to the files and to the bytes of their entries.

use super::{RedisCatalog, keys, wire};
use crate::model::{DataPath, MergePlan, PlanPart};

/// Files of one commit.
const FILES_MAX: usize = 2000;
/// Plans of so few files are not cut, whatever their entries are.
const FILES_MIN: usize = 100;
/// What a commit may weigh: about 20 ms, twice as much on a busy machine. A file weighs what its entry has, and
/// [`FILE_BYTES`] for what is done with each.
const COMMIT_BYTES_MAX: u64 = 1_500_000;
const FILE_BYTES: u64 = 360;
/// Entries that are measured; those of one plan resemble each other.
const SAMPLES: usize = 64;

impl RedisCatalog {
    /// The pieces of a plan that is too large for one commit; none of one that is not.
    pub(super) async fn pieces_of(&self, plan: &MergePlan) -> Vec<String> {
        let files_count = plan.paths.len();
        if files_count <= FILES_MIN {
            return Vec::new();
        }
        let count = pieces_count(files_count, self.entry_bytes(plan).await);
        if count == 1 {
            return Vec::new();
        }
        let parts = equal_parts(plan, count);
        for (path, reason) in &plan.refused_paths {
            tracing::error!(plan = %plan.queue, path, reason, "a plan names a path that is not touched");
        }
        tracing::info!(plan = %plan.queue, files = files_count, plans = parts.len(), "a plan has too many files for one commit and is split");
        // An attempt that died blames each of them: then they run alone, as halves do.
        parts
            .iter()
            .map(|part| wire::part_to_json(part, plan.runs_alone()))
            .collect()
    }

    /// The mean size of an entry; 0 when it cannot be learned, for the plan is claimed already.
    async fn entry_bytes(&self, plan: &MergePlan) -> u64 {
        let Some(first_folder) = plan.paths.first().map(DataPath::first_folder) else {
            return 0;
        };
        let key = keys::files(&plan.queue.table, first_folder);
        let mut pipeline = redis::pipe();
        for path in plan
            .paths
            .iter()
            .step_by(plan.paths.len().div_ceil(SAMPLES))
        {
            pipeline.cmd("HSTRLEN").arg(&key).arg(path.as_str());
        }
        let sizes = self
            .connection
            .query_all::<Vec<u64>>("measuring entries", &pipeline);
        // Of files that are gone nothing is committed.
        let mut sizes = sizes.await.unwrap_or_default();
        sizes.retain(|&bytes| bytes > 0);
        sizes.iter().sum::<u64>() / (sizes.len() as u64).max(1)
    }
}

fn pieces_count(files_count: usize, entry_bytes: u64) -> usize {
    // A piece is measured, too: what differs by chance only must not cut it again.
    if files_count <= files_of_commit(entry_bytes / 8 * 7) {
        return 1;
    }
    files_count.div_ceil(files_of_commit(entry_bytes))
}

fn files_of_commit(entry_bytes: u64) -> usize {
    let fit = COMMIT_BYTES_MAX / FILE_BYTES.saturating_add(entry_bytes);
    usize::try_from(fit).map_or(FILES_MAX, |fit| fit.clamp(FILES_MIN, FILES_MAX))
}

/// Splits the files of a plan; each part is said to have its share of the size, which is not known by file.
fn equal_parts(plan: &MergePlan, count: usize) -> Vec<PlanPart> {
    plan.paths
        .chunks(plan.paths.len().div_ceil(count))
        .map(|paths| PlanPart {
            paths: paths.to_vec(),
            size_bytes: plan.size_bytes / count as u64,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_entries_are_the_fewer_files_one_commit_takes() {
        assert_eq!(files_of_commit(0), FILES_MAX);
        assert_eq!(files_of_commit(390), FILES_MAX);
        assert_eq!(files_of_commit(1640), 750);
        assert_eq!(files_of_commit(1 << 30), FILES_MIN);
        assert_eq!(files_of_commit(u64::MAX), FILES_MIN);
    }

    #[test]
    fn a_piece_is_not_cut_again_when_its_entries_are_a_little_larger() {
        assert_eq!(pieces_count(2000, 0), 1);
        assert_eq!(pieces_count(2001, 0), 2);
        for (files_count, entry_bytes) in [(10_000, 400), (10_000, 2000), (250_000, 777)] {
            let count = pieces_count(files_count, entry_bytes);
            let piece = files_count.div_ceil(count);
            assert_eq!(pieces_count(piece, entry_bytes + entry_bytes / 8), 1);
        }
    }
}
