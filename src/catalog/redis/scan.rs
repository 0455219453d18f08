//! Which keys there are.

use std::collections::HashSet;

use super::RedisCatalog;
use crate::catalog::CatalogError;

/// Keys that one `SCAN` looks at.
const SCAN_COUNT: usize = 5000;
/// Rounds of one `SCAN`, so that it ends even while keys are made faster than they are read.
pub(super) const SCAN_ROUNDS_MAX: usize = 100_000;

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
        let mut cursor = 0_u64;
        for _ in 0..SCAN_ROUNDS_MAX {
            let (next, page): (u64, Vec<Vec<u8>>) = self
                .connection
                .query(
                    context,
                    redis::cmd("SCAN")
                        .arg(cursor)
                        .arg("MATCH")
                        .arg(pattern)
                        .arg("COUNT")
                        .arg(SCAN_COUNT),
                )
                .await?;
            found.extend(page.into_iter().filter_map(|key| self.text_of(key)));
            cursor = next;
            if cursor == 0 {
                return Ok(each_once(found, |key| key));
            }
        }
        Err(scan_never_ends(context))
    }

    pub(super) fn text_of(&self, key: Vec<u8>) -> Option<String> {
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

pub(super) fn scan_never_ends(context: &str) -> CatalogError {
    CatalogError::Unavailable {
        context: context.to_owned(),
        reason: "keys are made faster than they can be listed".to_owned(),
    }
}
