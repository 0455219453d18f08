//! Which lists need to be looked at, so that a tick costs in proportion to what may be due.
//!
//! One `SCAN` serves all levels that come soon after each other. Of each waiting list is
//! remembered how long it was and when its first item is due: no claim takes an item before its
//! time, so until then only a longer list can hold something new. Lists of handed out plans are
//! always looked at: there, one item may have replaced another. The first scan of a process reads
//! the [heads](super::heads) of the waiting lists along with their names, while the server has both at hand.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

use super::{
    RedisCatalog,
    heads::Pace,
    keys::{self, ListState},
    scan::{ScanCursor, each_once},
    scripts::{self, Waiting},
};
use crate::{
    catalog::{CatalogError, Policy},
    model::Iteration,
};

/// Lists that one call looks into.
const PEEK_LISTS_MAX: usize = 500;
/// Commands in one round trip.
const LENGTHS_MAX: usize = 2000;
/// Whoever changes items by hand is seen after this many timeouts of the level, and after
/// [`TRUST_MAX`] at the latest.
const TRUST_TIMEOUTS: u32 = 10;
const TRUST_MAX: Duration = Duration::from_mins(10);
/// A level takes the scan of another one that is younger than this part of its own timeout.
const SHARE_PART: u32 = 10;
/// Older scans are not shared.
const SHARE_MAX: Duration = Duration::from_secs(10);

/// What was seen of one list without due items.
#[derive(Debug, Clone, Copy)]
struct Quiet {
    items_count: u64,
    soonest_s: i64,
    trusted_until: Instant,
}

/// What was found out, so that the next tick need not.
#[derive(Debug, Default)]
pub(super) struct Finder {
    scanned_at: Option<Instant>,
    /// The lists of the last scan by iteration; each level takes its own once.
    lists: HashMap<Iteration, Vec<String>>,
    taken: HashSet<Iteration>,
    /// Whether the last scan was the first one, which also looked into the lists.
    has_looked: bool,
    /// By hash of the key: a collision looks at a list once more or once less, until
    /// [`TRUST_MAX`] at the latest.
    quiet: HashMap<Iteration, HashMap<u64, Quiet>>,
    hasher: RandomState,
}

impl Finder {
    fn is_fresh(&self, iteration: Iteration, timeout: Duration) -> bool {
        let age_max = (timeout / SHARE_PART).min(SHARE_MAX);
        self.scanned_at.is_some_and(|at| at.elapsed() < age_max) && !self.taken.contains(&iteration)
    }

    fn keep(&mut self, scanned_at: Instant, keys: Vec<String>) {
        self.scanned_at = Some(scanned_at);
        self.has_looked = false;
        self.taken.clear();
        self.lists.clear();
        for key in keys {
            if let Some(iteration) = keys::iteration_of(&key) {
                self.lists.entry(iteration).or_default().push(key);
            }
        }
    }

    fn keep_first(&mut self, scanned_at: Instant, found: Vec<(String, Waiting)>, policy: &Policy) {
        for (key, seen) in &found {
            if let Some(iteration) = keys::iteration_of(key)
                && let Some(level) = policy.level(iteration)
                && let Some(quiet) = Quiet::of(key, *seen, scanned_at + trusted_for(level.timeout))
            {
                let hash = self.hasher.hash_one(key);
                self.quiet.entry(iteration).or_default().insert(hash, quiet);
            }
        }
        self.keep(scanned_at, found.into_iter().map(|(key, _)| key).collect());
        self.has_looked = true;
    }
}

impl Quiet {
    /// Only of waiting lists, and only of those that are worth remembering.
    fn of(key: &str, seen: Waiting, trusted_until: Instant) -> Option<Self> {
        let (soonest_s, items_count) = seen?;
        (keys::merge_list_state(key) == Some(ListState::Idle) && trusted_until > Instant::now())
            .then_some(Self {
                items_count,
                soonest_s,
                trusted_until,
            })
    }
}

fn trusted_for(timeout: Duration) -> Duration {
    timeout.saturating_mul(TRUST_TIMEOUTS).min(TRUST_MAX)
}

impl RedisCatalog {
    /// Key and text of due items of one level, at most `per_list` of each list. Keys that name no
    /// usable queue are among them.
    pub(super) async fn find_due_items(
        &self,
        iteration: Iteration,
        per_list: usize,
    ) -> Result<Vec<(String, String)>, CatalogError> {
        let timeout = self
            .rules()
            .policy
            .level(iteration)
            .map_or(Duration::ZERO, |level| level.timeout);
        let policy = self.rules().policy.clone();
        // Held while Redis is asked: levels that start together share one scan.
        let mut finder = self.finder.lock().await;
        if !finder.is_fresh(iteration, timeout) {
            let started = Instant::now();
            let context = "looking for merge queues";
            // Lists of other writers are nothing to look into.
            if finder.scanned_at.is_none() && policy.writers.is_none() {
                let found = self.first_scan(context, &policy).await?;
                finder.keep_first(started, found, &policy);
            } else {
                let found = self.scan_as_stored(context, keys::MERGE_PATTERN).await?;
                finder.keep(started, found);
            }
        }
        finder.taken.insert(iteration);
        let mut lists = finder.lists.remove(&iteration).unwrap_or_default();
        let mut remembered = finder.quiet.remove(&iteration).unwrap_or_default();
        let (hasher, has_looked) = (finder.hasher.clone(), finder.has_looked);
        drop(finder);

        lists.retain(|key| match keys::merge_list_state(key) {
            None | Some(ListState::Failed) => false,
            Some(_) => policy.writers.is_none() || keys::is_served(key, &policy),
        });
        let mut still_quiet = HashMap::new();
        let lists = self
            .without_quiet(
                lists,
                &mut remembered,
                has_looked,
                &mut still_quiet,
                &hasher,
            )
            .await?;
        let mut due = Vec::new();
        let mut rest = lists.as_slice();
        while !rest.is_empty() {
            let part = &rest[..rest.len().min(PEEK_LISTS_MAX)];
            let trusted_until = Instant::now() + trusted_for(timeout);
            let (found, seen) = scripts::peek_plans(&self.connection, part, per_list).await?;
            due.extend(found);
            for (key, seen) in part.iter().zip(&seen) {
                if let Some(quiet) = Quiet::of(key, *seen, trusted_until) {
                    still_quiet.insert(hasher.hash_one(key), quiet);
                }
            }
            rest = &rest[seen.len().clamp(1, part.len())..];
        }
        self.finder
            .lock()
            .await
            .quiet
            .insert(iteration, still_quiet);
        Ok(due)
    }

    /// Every merge list with what was seen of it, in the order in which the server has them.
    async fn first_scan(
        &self,
        context: &str,
        policy: &Policy,
    ) -> Result<Vec<(String, Waiting)>, CatalogError> {
        let (mut found, mut seen) = (Vec::new(), Vec::new());
        let (mut cursor, mut pace) = (ScanCursor::start(context), Pace::new());
        while let Some(page) = self.next_page(&mut cursor, keys::MERGE_PATTERN).await? {
            seen.extend(self.read_waiting(context, &page, policy, &mut pace).await?);
            found.extend(page);
        }
        let found = found.into_iter().zip(seen).collect();
        Ok(each_once(found, |(key, _)| key))
    }

    /// Looks only into waiting lists of levels that are merged.
    async fn read_waiting(
        &self,
        context: &str,
        page: &[String],
        policy: &Policy,
        pace: &mut Pace,
    ) -> Result<Vec<Waiting>, CatalogError> {
        let is_wanted = |key: &str| {
            keys::merge_list_state(key) == Some(ListState::Idle)
                && keys::iteration_of(key).is_some_and(|of| policy.level(of).is_some())
        };
        let (places, wanted): (Vec<usize>, Vec<&str>) = page
            .iter()
            .enumerate()
            .filter(|(_, key)| is_wanted(key))
            .map(|(place, key)| (place, key.as_str()))
            .unzip();
        let mut seen = vec![None; page.len()];
        for (place, waiting) in places
            .into_iter()
            .zip(self.read_heads(context, &wanted, pace).await?)
        {
            seen[place] = waiting;
        }
        Ok(seen)
    }

    /// Leaves out the lists that are as long as they were and whose first item's time has not come.
    /// How long they are is not asked of lists into which the scan looked that told of them.
    async fn without_quiet(
        &self,
        lists: Vec<String>,
        remembered: &mut HashMap<u64, Quiet>,
        has_looked: bool,
        still_quiet: &mut HashMap<u64, Quiet>,
        hasher: &RandomState,
    ) -> Result<Vec<String>, CatalogError> {
        if remembered.is_empty() {
            return Ok(lists);
        }
        let context = "looking for changed merge queues";
        let clock: (i64, i64) = self.connection.query(context, &redis::cmd("TIME")).await?;
        let now = Instant::now();
        remembered.retain(|_, quiet| quiet.trusted_until > now && quiet.soonest_s > clock.0 + 1);
        let (known, mut changed): (Vec<String>, Vec<String>) = lists
            .into_iter()
            .partition(|key| remembered.contains_key(&hasher.hash_one(key)));
        if has_looked {
            still_quiet.extend(remembered.drain());
            return Ok(changed);
        }
        let mut known = known.into_iter();
        loop {
            let part: Vec<String> = known.by_ref().take(LENGTHS_MAX).collect();
            if part.is_empty() {
                return Ok(changed);
            }
            let mut pipeline = redis::pipe();
            for key in &part {
                pipeline.cmd("LLEN").arg(key);
            }
            // A key that is no list any more is passed over by a look.
            let lengths: Vec<u64> = match self.connection.query_all(context, &pipeline).await {
                Ok(lengths) => lengths,
                Err(CatalogError::Refused { .. }) => Vec::new(),
                Err(error) => return Err(error),
            };
            let mut lengths = lengths.into_iter();
            for key in part {
                let hash = hasher.hash_one(&key);
                match (lengths.next(), remembered.get(&hash)) {
                    (Some(length), Some(quiet)) if length == quiet.items_count => {
                        still_quiet.insert(hash, *quiet);
                    }
                    _ => changed.push(key),
                }
            }
        }
    }
}
