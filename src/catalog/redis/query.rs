//! Entries of a table as they come: one page of one hash at a time.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
};

use futures_util::{StreamExt, stream};

use super::{
    RedisCatalog,
    index::{HSCAN_ROUNDS_MAX, grows_too_fast, stored_entry},
    keys,
};
use crate::{
    catalog::{CatalogError, EntryFilter, EntryStream},
    model::{IndexEntry, TableRef},
};

const CONTEXT: &str = "listing files";

/// Where a query stands.
struct Query<'a> {
    catalog: &'a RedisCatalog,
    table: TableRef,
    filter: EntryFilter,
    /// Hashes that are still to be read; `None` before they are known.
    hashes: Option<VecDeque<String>>,
    current: Option<Hash>,
    page: std::vec::IntoIter<IndexEntry>,
}

/// One `files:…` hash, half read.
struct Hash {
    key: String,
    cursor: u64,
    rounds: usize,
    /// Two hashes of each path that was seen: `HSCAN` may return a field twice. 128 bits do not
    /// collide by chance.
    seen: HashSet<(u64, u64)>,
    hashers: [RandomState; 2],
}

impl RedisCatalog {
    pub(super) fn stream_entries<'a>(
        &'a self,
        table: &TableRef,
        filter: &EntryFilter,
    ) -> EntryStream<'a> {
        let query = Query {
            catalog: self,
            table: table.clone(),
            filter: filter.clone(),
            hashes: None,
            current: None,
            page: Vec::new().into_iter(),
        };
        stream::try_unfold(query, |mut query| async move {
            let entry = query.next().await?;
            Ok(entry.map(|entry| (entry, query)))
        })
        .boxed()
    }
}

impl Query<'_> {
    async fn next(&mut self) -> Result<Option<IndexEntry>, CatalogError> {
        loop {
            if let Some(entry) = self.page.next() {
                return Ok(Some(entry));
            }
            let Some(mut hash) = self.next_hash().await? else {
                return Ok(None);
            };
            self.page = self.read_page(&mut hash).await?.into_iter();
            self.current = (hash.cursor != 0).then_some(hash);
        }
    }

    async fn next_hash(&mut self) -> Result<Option<Hash>, CatalogError> {
        if let Some(hash) = self.current.take() {
            return Ok(Some(hash));
        }
        if self.hashes.is_none() {
            self.hashes = Some(self.find_hashes().await?);
        }
        let key = self.hashes.as_mut().and_then(VecDeque::pop_front);
        Ok(key.map(|key| Hash {
            key,
            cursor: 0,
            rounds: 0,
            seen: HashSet::new(),
            hashers: [RandomState::new(), RandomState::new()],
        }))
    }

    /// A folder filter names the hash; otherwise every hash of the table. The keys are looked
    /// for, not the folders' counts: other programs make those wrong.
    async fn find_hashes(&self) -> Result<VecDeque<String>, CatalogError> {
        let folder = self.filter.folder.as_deref().unwrap_or_default();
        match folder.trim_matches('/').split('/').next() {
            Some(first) if !first.is_empty() => Ok([keys::files(&self.table, first)].into()),
            _ => {
                let pattern = keys::files_pattern(&self.table);
                Ok(self.catalog.scan(CONTEXT, &pattern).await?.into())
            }
        }
    }

    async fn read_page(&self, hash: &mut Hash) -> Result<Vec<IndexEntry>, CatalogError> {
        hash.rounds += 1;
        if hash.rounds > HSCAN_ROUNDS_MAX {
            let connection = &self.catalog.connection;
            return Err(grows_too_fast(connection, CONTEXT, &hash.key));
        }
        let (next, page) = self.catalog.page(CONTEXT, &hash.key, hash.cursor).await?;
        hash.cursor = next;
        let mut entries = Vec::new();
        for (path, text) in page {
            match stored_entry(&self.table, &path, &text) {
                Ok(entry) => {
                    let path = entry.path.as_str();
                    let id = (
                        hash.hashers[0].hash_one(path),
                        hash.hashers[1].hash_one(path),
                    );
                    if self.filter.matches(&entry) && hash.seen.insert(id) {
                        entries.push(entry);
                    }
                }
                Err(reason) => {
                    let place = format!("{} {}", hash.key, String::from_utf8_lossy(&path));
                    self.catalog.reports.warn_once(&place, &reason);
                }
            }
        }
        Ok(entries)
    }
}
