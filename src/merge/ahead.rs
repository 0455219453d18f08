//! Loads inputs that are sorted in memory before their turn comes, so that both processors
//! have work while the first rows are read and whenever writing is quicker than reading.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use super::{
    context::{Context, Stop},
    keys::KeySpace,
    load::{SortedRows, load_sorted},
};

/// Runs that are loaded, in the order in which their turn comes.
pub(super) struct Ahead<K: KeySpace> {
    /// The parts of each run.
    runs: Vec<Vec<usize>>,
    /// The place of a run by its first part.
    place_of: HashMap<usize, usize>,
    /// Runs that may be in memory before their turn.
    early_max: usize,
    state: Mutex<State<K>>,
    changed: Condvar,
}

struct State<K: KeySpace> {
    runs: Vec<Progress<K>>,
    /// None of the runs ahead of this one waits.
    first_waiting: usize,
    /// Runs that are being loaded or are ready.
    early_count: usize,
    is_stopped: bool,
}

enum Progress<K: KeySpace> {
    Waiting,
    Loading,
    Ready(Box<Result<SortedRows<K>, Stop>>),
    Taken,
}

/// Ends the loading when it goes out of scope.
pub(super) struct StopOnDrop<'a, K: KeySpace>(pub(super) &'a Ahead<K>);

impl<K: KeySpace> Drop for StopOnDrop<'_, K> {
    fn drop(&mut self) {
        self.0.state().is_stopped = true;
        self.0.changed.notify_all();
    }
}

impl<K: KeySpace> Ahead<K> {
    /// Nothing is loaded yet. `early_max`: runs that may be in memory before their turn.
    pub(super) fn new(runs: Vec<Vec<usize>>, early_max: usize) -> Self {
        let waiting = runs.iter().map(|_| Progress::Waiting).collect();
        let places = runs.iter().enumerate();
        let place_of = places.filter_map(|(place, run)| Some((*run.first()?, place)));
        Self {
            place_of: place_of.collect(),
            runs,
            early_max,
            state: Mutex::new(State {
                runs: waiting,
                first_waiting: 0,
                early_count: 0,
                is_stopped: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Whether a thread of its own has anything to do.
    pub(super) fn is_useful(&self) -> bool {
        self.early_max > 0 && self.runs.len() > 1
    }

    /// The rows of a run whose turn it is.
    pub(super) fn take(
        &self,
        context: &Context<'_>,
        space: &K,
        parts: &[usize],
    ) -> Result<SortedRows<K>, Stop> {
        let own = parts.first().and_then(|first| self.place_of.get(first));
        let Some(&own) = own.filter(|own| self.runs[**own] == parts) else {
            return load_sorted(context, space, parts, context.shares.runs_bytes);
        };
        let mut state = self.state();
        loop {
            match std::mem::replace(&mut state.runs[own], Progress::Taken) {
                Progress::Ready(rows) => {
                    state.early_count -= 1;
                    self.changed.notify_all();
                    return *rows;
                }
                Progress::Waiting => {
                    drop(state);
                    return load_sorted(context, space, parts, context.shares.runs_bytes);
                }
                Progress::Loading => state.runs[own] = Progress::Loading,
                Progress::Taken => {
                    let reason = "a run was taken twice".to_owned();
                    return Err(context.invariant("ROWS-KEPT", reason).into());
                }
            }
            // Somebody is at it: meanwhile the next one can be loaded.
            state = match self.next(&mut state) {
                Some(next) => self.load(state, next, context, space),
                None => self.wait(state),
            };
        }
    }

    /// Loads what comes next, for as long as anybody may want it.
    pub(super) fn load_until_stopped(&self, context: &Context<'_>, space: &K) {
        let mut state = self.state();
        while !state.is_stopped {
            state = match self.next(&mut state) {
                Some(next) => self.load(state, next, context, space),
                None => self.wait(state),
            };
        }
    }

    /// The run to load next, if there is room for one.
    fn next(&self, state: &mut State<K>) -> Option<usize> {
        if state.is_stopped || state.early_count >= self.early_max {
            return None;
        }
        let done = state.runs.iter().skip(state.first_waiting);
        let done = done.take_while(|run| !matches!(run, Progress::Waiting));
        state.first_waiting += done.count();
        (state.first_waiting < state.runs.len()).then_some(state.first_waiting)
    }

    fn load<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<K>>,
        run: usize,
        context: &Context<'_>,
        space: &K,
    ) -> MutexGuard<'a, State<K>> {
        state.runs[run] = Progress::Loading;
        state.early_count += 1;
        drop(state);
        // Somebody may be waiting, so that a panic must not end this thread.
        let load = || load_sorted(context, space, &self.runs[run], context.shares.runs_bytes);
        let rows = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|_| {
            let reason = "sorting a file ended the thread".to_owned();
            Err(context.invariant("ROWS-KEPT", reason).into())
        });
        let mut state = self.state();
        state.runs[run] = Progress::Ready(Box::new(rows));
        self.changed.notify_all();
        state
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        // Nothing panics while it holds this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<K>>) -> MutexGuard<'a, State<K>> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}
