//! Which files of a partition are merged together, and when. Pure.

use crate::{
    catalog::Policy,
    model::{DataPath, Iteration, WriterId},
};

use super::records::FileRecord;

/// A group of files that may become one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PlannedMerge {
    pub(super) iteration: Iteration,
    pub(super) writer: WriterId,
    pub(super) paths: Vec<DataPath>,
    pub(super) size_bytes: u64,
    /// Unix seconds.
    pub(super) due_s: i64,
}

/// Groups the files of one partition as the Redis scripts do: in the order of registration,
/// a file joins the last plan of its iteration and writer while the sum stays within the level's
/// size; a plan is due `timeout` after its first file. `is_taken` leaves files out, `only` all
/// iterations but one.
pub(super) fn plan(
    files: &[FileRecord],
    policy: &Policy,
    only: Option<Iteration>,
    is_taken: impl Fn(&DataPath) -> bool,
) -> Vec<PlannedMerge> {
    let mut plans: Vec<PlannedMerge> = Vec::new();
    let mut ordered: Vec<&FileRecord> = files
        .iter()
        .filter(|file| {
            let iteration = file.entry.path.iteration();
            only.is_none_or(|only| only == iteration)
                && policy.level(iteration).is_some()
                && file.set_aside.is_none()
                && policy.serves(&file.entry.writer)
                && !is_taken(&file.entry.path)
        })
        .collect();
    ordered.sort_by_key(|file| (file.added_at_s, file.id));
    for file in ordered {
        let iteration = file.entry.path.iteration();
        let Some(level) = policy.level(iteration) else {
            continue;
        };
        let open = plans
            .iter_mut()
            .rev()
            .find(|plan| plan.iteration == iteration && plan.writer == file.entry.writer);
        match open {
            Some(plan)
                if plan.size_bytes.saturating_add(file.entry.size_bytes)
                    <= level.max_size_bytes =>
            {
                plan.paths.push(file.entry.path.clone());
                plan.size_bytes += file.entry.size_bytes;
            }
            _ => plans.push(PlannedMerge {
                iteration,
                writer: file.entry.writer.clone(),
                paths: vec![file.entry.path.clone()],
                size_bytes: file.entry.size_bytes,
                due_s: file
                    .added_at_s
                    .saturating_add(i64::try_from(level.timeout.as_secs()).unwrap_or(i64::MAX)),
            }),
        }
    }
    plans
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::records::Aside, *};
    use crate::{
        catalog::Level,
        model::{IndexEntry, LayerName, TableRef},
    };

    fn file(name: &str, size_bytes: u64, added_at_s: i64) -> FileRecord {
        FileRecord {
            id: 0,
            entry: IndexEntry {
                layer: LayerName::default(),
                table: TableRef::new("db", "t").unwrap(),
                path: DataPath::parse(&format!("h/{name}.parquet")).unwrap(),
                size_bytes,
                row_count: 1,
                chunk_time_ns: 0,
                min_time_ns: 0,
                max_time_ns: 0,
                min: serde_json::Map::new(),
                max: serde_json::Map::new(),
                writer: WriterId::default(),
                extra: serde_json::Map::new(),
            },
            added_at_s,
            set_aside: None,
            found_size_bytes: None,
        }
    }

    fn policy() -> Policy {
        let level = |iteration, max_size_bytes| Level {
            iteration: Iteration(iteration),
            timeout: Duration::from_secs(10),
            max_size_bytes,
        };
        Policy {
            levels: vec![level(1, 100), level(2, 1000)],
            layers: vec![],
            writers: None,
        }
    }

    #[test]
    fn a_plan_is_filled_to_its_size_and_due_after_its_first_file() {
        let files = [
            file("a.1", 60, 5),
            file("b.1", 40, 6),
            file("c.1", 1, 7),
            file("d.2", 999, 8),
            file("e.3", 1, 9),
        ];
        let plans = plan(&files, &policy(), None, |_| false);
        let shapes: Vec<(u32, usize, u64, i64)> = plans
            .iter()
            .map(|p| (p.iteration.0, p.paths.len(), p.size_bytes, p.due_s))
            .collect();
        assert_eq!(shapes, [(1, 2, 100, 15), (1, 1, 1, 17), (2, 1, 999, 18)]);
    }

    #[test]
    fn a_file_larger_than_the_level_stands_alone_and_taken_or_set_aside_files_do_not_stand_at_all()
    {
        let mut files = vec![
            file("a.1", 500, 5),
            file("b.1", 40, 6),
            file("c.1", 10, 7),
            file("d.1", 10, 7),
        ];
        files[3].set_aside = Some(Aside {
            reason: "truncated".to_owned(),
            at_s: 0,
            plan: None,
        });
        let plans = plan(&files, &policy(), None, |path| {
            path.as_str() == "h/b.1.parquet"
        });
        let paths: Vec<Vec<&str>> = plans
            .iter()
            .map(|p| p.paths.iter().map(DataPath::as_str).collect())
            .collect();
        assert_eq!(paths, [vec!["h/a.1.parquet"], vec!["h/c.1.parquet"]]);
    }
}
