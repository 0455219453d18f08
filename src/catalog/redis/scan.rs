//! Which keys there are.

use std::collections::HashSet;

use super::RedisCatalog;
use crate::catalog::CatalogError;

/// Keys that one `SCAN` looks at.
const SCAN_COUNT: usize = 5000;
/// Rounds of one `SCAN`, so that it ends even while keys are made faster than they are read.
const SCAN_ROUNDS_MAX: usize = 100_000;

/// How far a `SCAN` is.
#[derive(Debug)]
pub(super) struct ScanCursor<'a> {
    context: &'a str,
    /// `None` at the end.
    at: Option<u64>,
    rounds: usize,
}

impl<'a> ScanCursor<'a> {
    pub(super) fn start(context: &'a str) -> Self {
        Self {
            context,
            at: Some(0),
            rounds: 0,
        }
    }
}

impl RedisCatalog {
    /// Every key that matches, each once, sorted. Keys that are not text are none of ours.
    pub(super) async fn scan(
        &self,
        context: &str,
        pattern: &str,
    ) -> Result<Vec<String>, CatalogError> {
        let mut found = self.scan_as_stored(context, pattern).await?;
        found.sort_unstable();
        Ok(found)
    }

    /// In the order in which the server has them: so they are also read fastest.
    pub(super) async fn scan_as_stored(
        &self,
        context: &str,
        pattern: &str,
    ) -> Result<Vec<String>, CatalogError> {
        let mut found = Vec::new();
        let mut cursor = ScanCursor::start(context);
        while let Some(page) = self.next_page(&mut cursor, pattern).await? {
            found.extend(page);
        }
        Ok(each_once(found, |key| key))
    }

    /// The next keys of a `SCAN`, some of which it may have told before; `None` after the last ones.
    pub(super) async fn next_page(
        &self,
        cursor: &mut ScanCursor<'_>,
        pattern: &str,
    ) -> Result<Option<Vec<String>>, CatalogError> {
        let Some(at) = cursor.at else { return Ok(None) };
        if cursor.rounds == SCAN_ROUNDS_MAX {
            let reason = "keys are made faster than they can be listed".to_owned();
            return Err(self.connection.unavailable(cursor.context, reason));
        }
        let mut command = redis::cmd("SCAN");
        command
            .arg(at)
            .arg("MATCH")
            .arg(pattern)
            .arg("COUNT")
            .arg(SCAN_COUNT);
        let (next, page): (u64, Vec<Vec<u8>>) =
            self.connection.query(cursor.context, &command).await?;
        cursor.at = (next != 0).then_some(next);
        cursor.rounds += 1;
        let page = page.into_iter().filter_map(|key| self.text_of(key));
        Ok(Some(page.collect()))
    }

    fn text_of(&self, key: Vec<u8>) -> Option<String> {
        String::from_utf8(key)
            .inspect_err(|error| {
                self.reports
                    .warn_once(&error.to_string(), "the key is not UTF-8");
            })
            .ok()
    }
}

/// Leaves out what `SCAN` told twice.
pub(super) fn each_once<T>(found: Vec<T>, key: impl Fn(&T) -> &String) -> Vec<T> {
    let mut seen = HashSet::with_capacity(found.len());
    let is_first: Vec<bool> = found.iter().map(|one| seen.insert(key(one))).collect();
    let mut is_first = is_first.into_iter();
    let mut found = found;
    found.retain(|_| is_first.next().unwrap_or(true));
    found
}
