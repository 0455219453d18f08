//! Gathers what is known of each file, so that [`decide`] can decide.

use std::{collections::HashSet, sync::Arc};

use super::{
    super::{
        ImportError,
        decide::{Decision, Facts, decide},
    },
    Import, Item,
};
use crate::{
    catalog::EntryFilter,
    model::{DataPath, Iteration},
    worker::WorkContext,
};

impl Import<'_> {
    /// Which of these files are not in the index, while no merge or move runs and no delete waits. Asked before the first
    /// is registered: afterwards a daemon merges what came in, and something always is under way.
    pub(super) async fn free_of(
        &self,
        paths: Vec<DataPath>,
    ) -> Result<HashSet<DataPath>, ImportError> {
        if paths.is_empty() {
            return Ok(HashSet::new());
        }
        let catalog = &self.context.catalog;
        let before = catalog.resolve(&self.table, &paths).await?;
        let depths = catalog.queue_depths().await?;
        let under_way = depths.merges_processing_count
            + depths.moves_processing_count
            + depths.drops_idle_count
            + depths.drops_processing_count;
        if under_way > 0 {
            return Ok(HashSet::new());
        }
        // Again: a merge may have committed between the two questions.
        let after = catalog.resolve(&self.table, &paths).await?;
        let free = paths.into_iter().zip(before.iter().zip(&after));
        Ok(free
            .filter(|(_, (before, after))| before.is_none() && after.is_none())
            .map(|(path, _)| path)
            .collect())
    }

    pub(super) async fn decide_all(
        &mut self,
        items: &[Item],
    ) -> Result<Vec<Decision>, ImportError> {
        let context = Arc::clone(&self.context);
        let catalog = &context.catalog;
        let paths: Vec<DataPath> = items.iter().map(|item| item.entry.path.clone()).collect();
        let indexed = catalog.resolve(&self.table, &paths).await?;
        let unknown = items
            .iter()
            .zip(&indexed)
            .filter(|(item, entry)| {
                entry.is_none() && !self.free.contains(&item.entry.path) && is_there(&context, item)
            })
            .map(|(item, _)| item.entry.path.clone());
        let free = self.free_of(unknown.collect()).await?;
        let mut decisions = Vec::with_capacity(items.len());
        for (item, entry) in items.iter().zip(indexed) {
            let path = &item.entry.path;
            if entry.is_some() {
                decisions.push(Decision::Indexed);
                continue;
            }
            let is_quiet = self.free.contains(path) || free.contains(path);
            let ledger = self.ledger(&item.entry.layer)?;
            decisions.push(decide(Facts {
                is_indexed: false,
                is_staged: ledger.staged(path).exists(),
                recorded: ledger.state(path),
                has_source: item.source.is_some(),
                is_quiet,
                // Last: what was deleted meanwhile is not there any more.
                is_published: is_published(&context, item)?,
            }));
        }
        Ok(decisions)
    }

    /// Why a file in the table's folder may be what a merge left behind. Programs that merge without
    /// deleting exist, and so do catalogs that were lost.
    pub(super) async fn doubt(&mut self, item: &Item) -> Result<Option<String>, ImportError> {
        if item.is_vouched || self.args.assume_live {
            return Ok(None);
        }
        let dir = item.entry.path.dir();
        let mut highest = self.iterations.get(&dir).copied().unwrap_or(Iteration(0));
        // Once: later the index also holds what was merged of this import's own files.
        if self.asked.insert(dir.clone()) {
            let filter = EntryFilter {
                folder: Some(dir.to_string()),
                ..EntryFilter::default()
            };
            let indexed = self.context.catalog.entries(&self.table, &filter).await?;
            let here = indexed.iter().filter(|entry| entry.path.dir() == dir);
            highest = here
                .map(|entry| entry.path.iteration())
                .fold(highest, Ord::max);
            self.iterations.insert(dir, highest);
        }
        Ok((highest > item.entry.path.iteration()).then(|| {
            format!("a file of iteration {highest} lies beside it and may hold its rows already; if you know that it does not, import with --assume-live")
        }))
    }
}

fn is_there(context: &WorkContext, item: &Item) -> bool {
    is_published(context, item).unwrap_or(true)
}

fn is_published(context: &WorkContext, item: &Item) -> Result<bool, ImportError> {
    let layer = context.layers.get(&item.entry.layer)?;
    let file = layer.checked_file(&item.entry.table, &item.entry.path)?;
    Ok(file.exists())
}
