//! The inputs of a plan: which of them are in the index, where they lie, and which are really bad.
//!
//! A file is set aside for good only when it is certain that the file, and not the disk, the
//! mount or the limits of this process, is at fault.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
};

use super::{
    WorkContext,
    merge_run::Attempt,
    run_error::{RunError, blocking},
};
use crate::{
    catalog::CatalogError,
    merge::BadInput,
    model::{IndexEntry, MergePlan, SetAside},
    no_links,
    storage::StorageError,
};

/// The plan's inputs that the index still has in the plan's layer, each once; and those whose entries are no
/// entries, set aside.
pub(super) async fn resolve(
    context: &WorkContext,
    plan: &MergePlan,
) -> Result<(Vec<IndexEntry>, Vec<SetAside>), RunError> {
    let table = &plan.queue.table;
    let found = match context.catalog.resolve(table, &plan.paths).await {
        Ok(found) => found.into_iter().map(Ok).collect(),
        Err(CatalogError::Malformed { .. }) => one_by_one(context, plan).await?,
        Err(error) => return Err(error.into()),
    };
    // The commit compares names too: an entry under another name of the same layer is another one's.
    let is_here = |entry: &IndexEntry| entry.layer == plan.queue.layer;
    let (mut seen, mut entries, mut set_aside) = (HashSet::new(), Vec::new(), Vec::new());
    for found in found {
        match found {
            Ok(Some(entry)) if is_here(&entry) && seen.insert(entry.path.clone()) => {
                entries.push(entry);
            }
            Ok(_) => {}
            Err(bad) => set_aside.push(bad),
        }
    }
    Ok((entries, set_aside))
}

/// One unusable entry must not keep its neighbours from being merged.
async fn one_by_one(
    context: &WorkContext,
    plan: &MergePlan,
) -> Result<Vec<Result<Option<IndexEntry>, SetAside>>, CatalogError> {
    let mut found = Vec::with_capacity(plan.paths.len());
    for path in &plan.paths {
        let paths = std::slice::from_ref(path);
        found.push(
            match context.catalog.resolve(&plan.queue.table, paths).await {
                Ok(entries) => Ok(entries.into_iter().flatten().next()),
                Err(CatalogError::Malformed { reason, .. }) => Err(SetAside {
                    path: path.clone(),
                    reason: format!("its index entry cannot be used: {reason}"),
                }),
                Err(error) => return Err(error),
            },
        );
    }
    Ok(found)
}

/// Whether every source has its bytes. A catalog that forgot its last seconds names files again whose bytes a
/// forgotten commit replaced: then the dead attempt's output holds the only copy of their rows.
pub(super) async fn are_all_there(attempt: &Attempt<'_>) -> Result<bool, RunError> {
    let (layer, table) = (attempt.layer.clone(), attempt.plan.queue.table.clone());
    let files: Vec<PathBuf> = attempt
        .sources
        .iter()
        .map(|source| layer.data_file(&table, &source.path))
        .collect();
    blocking(move || {
        files
            .iter()
            .all(|file| matches!(file.try_exists(), Ok(true)))
    })
    .await
}

/// Where each source lies. Sources that cannot be used leave the attempt and come back as set aside.
///
/// A file that is not there may only be late (a slow mount), so the plan waits until its last attempt;
/// when the whole partition is not there, it waits for ever.
pub(super) async fn locate(
    attempt: &mut Attempt<'_>,
) -> Result<(Vec<PathBuf>, Vec<SetAside>), RunError> {
    let (layer, table) = (attempt.layer.clone(), attempt.plan.queue.table.clone());
    let sources = attempt.sources.clone();
    let looked = blocking(move || -> Result<_, StorageError> {
        let mut looked = Vec::with_capacity(sources.len());
        for source in sources {
            let (file, found) = match layer.checked_file(&table, &source.path) {
                Ok(file) => (file.clone(), file.try_exists()),
                Err(StorageError::Outside { path }) => {
                    (path, Err(io::ErrorKind::Unsupported.into()))
                }
                Err(error) => return Err(error),
            };
            looked.push((source, file, found));
        }
        Ok(looked)
    })
    .await??;
    let is_last = attempt.plan.counted_attempts() >= attempt.context.config.worker.max_attempts;
    let (mut sources, mut files, mut missing, mut set_aside) = (vec![], vec![], vec![], vec![]);
    for (source, file, found) in looked {
        match found {
            Ok(true) => {
                sources.push(source);
                files.push(file);
            }
            Ok(false) if is_last && file.parent().is_some_and(Path::exists) => {
                set_aside.push(SetAside {
                    path: source.path,
                    reason: "the file is not there".to_owned(),
                });
            }
            Ok(false) if file.parent().is_some_and(Path::exists) => missing.push(file),
            Ok(false) => return Err(RunError::FolderAway(file)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => set_aside.push(SetAside {
                path: source.path,
                reason: "it is a link, or leads out of its table's folder".to_owned(),
            }),
            Err(source) => return Err(RunError::Unreadable { path: file, source }),
        }
    }
    if !missing.is_empty() {
        return Err(RunError::MissingInputs(missing));
    }
    attempt.sources = sources;
    Ok((files, set_aside))
}

/// What kept an input from being read has nothing to do with it: the plan is handed back, and no attempt is blamed.
pub(super) fn lacking(bad: &BadInput) -> RunError {
    RunError::Unreadable {
        path: bad.path.clone(),
        source: io::Error::other(bad.reason.clone()),
    }
}

/// Sets inputs aside that were bad twice, after every byte of each could be read: then the files are bad.
pub(super) async fn set_aside(
    attempt: &mut Attempt<'_>,
    files: &mut Vec<PathBuf>,
    bad: Vec<BadInput>,
) -> Result<Vec<SetAside>, RunError> {
    let paths: Vec<PathBuf> = bad.iter().map(|bad| bad.path.clone()).collect();
    blocking(move || paths.into_iter().try_for_each(|path| read_all(&path))).await??;
    let places: HashSet<usize> = bad.iter().map(|bad| bad.index).collect();
    let set_aside = bad
        .into_iter()
        .filter_map(|bad| {
            Some(SetAside {
                path: attempt.sources.get(bad.index)?.path.clone(),
                reason: bad.reason,
            })
        })
        .collect();
    retain_places(&mut attempt.sources, &places);
    retain_places(files, &places);
    Ok(set_aside)
}

fn retain_places<T>(items: &mut Vec<T>, without: &HashSet<usize>) {
    let mut place = 0;
    items.retain(|_| {
        place += 1;
        !without.contains(&(place - 1))
    });
}

fn read_all(path: &Path) -> Result<(), RunError> {
    no_links::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut io::sink()))
        .map(drop)
        .map_err(|source| RunError::Unreadable {
            path: path.to_owned(),
            source,
        })
}
