//! Everybody else: those who delete, the janitor, an old compactor, writers, who undeletes.

use super::{
    catalog::{
        A, ATTEMPTS_MAX, C, Files, INPUTS, Item, LEASE, OLD_LEASE, OLD_OUTPUT, Place, Tick,
        files_in, output_of,
    },
    model::{Flaw, Protocol, State},
};
use gigamerge::invariants;

/// How long an old compactor works at most: it knows no fence, so it must end before its claim does,
/// also when Redis' clock jumps meanwhile.
const OLD_WORK: Tick = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dropper {
    #[default]
    Free,
    Claimed(Held),
    /// The index does not name the file.
    Checked(Held),
    /// Its bytes are gone, or stay for good.
    Ended(Held),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Held {
    file: usize,
    token: Item,
    ours_until: Tick,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Old {
    #[default]
    Waits,
    Works {
        until: Tick,
    },
    /// Its output is in the index; the plan is not ended.
    Patched,
    Gone,
}

impl Protocol {
    /// Claims the delete of one file.
    pub fn claim_delete(&self, state: &mut State, d: usize, file: usize) -> Option<()> {
        let (real, now) = (state.real, state.redis_now());
        if state.droppers[d] != Dropper::Free {
            return None;
        }
        let owner = state.fresh_owner();
        let asked = if self.has(Flaw::DropBeforeGrace) {
            now + 1
        } else {
            now
        };
        let place = &mut state.keyspace.deletes[file].place;
        let waiting = *place;
        let mut token = place.claim(asked, LEASE, Some(owner))?;
        token.time = now + LEASE;
        *place = Place::Processing(token);
        if let Place::Idle(item) | Place::Processing(item) = waiting {
            let due = invariants::drop_after_commit(false, i64::from(item.time), i64::from(now));
            state.note(due);
        }
        state.droppers[d] = Dropper::Claimed(Held {
            file,
            token,
            ours_until: real + LEASE,
        });
        // Three claims of one delete show all that more would.
        (token.attempts <= ATTEMPTS_MAX).then_some(())
    }

    /// The next step of a delete, answered.
    pub fn delete(&self, state: &mut State, d: usize) -> Option<()> {
        let (real, now) = (state.real, state.redis_now());
        state.droppers[d] = match state.droppers[d] {
            Dropper::Free => return None,
            Dropper::Claimed(mut held) => {
                let place = &mut state.keyspace.deletes[held.file].place;
                if held.ours_until < real + LEASE / 2
                    && let Some(renewed) = place.renew(held.token, now, true)
                {
                    (held.token, held.ours_until) = (renewed, real + LEASE);
                }
                // One call asks for both: a claim that Redis has forgotten says nothing any more.
                if !place.is_held_with(held.token) && !self.has(Flaw::DropWithoutProof) {
                    Dropper::Free
                } else if state.keyspace.has(held.file) && !self.has(Flaw::DropWithoutIndex) {
                    Dropper::Ended(held)
                } else {
                    Dropper::Checked(held)
                }
            }
            Dropper::Checked(held) if real >= held.ours_until => Dropper::Free,
            Dropper::Checked(held) => {
                state.remove_bytes(held.file);
                Dropper::Ended(held)
            }
            Dropper::Ended(held) => {
                state.keyspace.deletes[held.file].place.finish(held.token);
                Dropper::Free
            }
        };
        Some(())
    }

    /// The disk refuses: the delete goes back, its attempts stay.
    pub fn delete_fails(state: &mut State, d: usize) -> Option<()> {
        let Dropper::Checked(held) = state.droppers[d] else {
            return None;
        };
        let now = state.redis_now();
        let place = &mut state.keyspace.deletes[held.file].place;
        place.release(held.token, now, true);
        state.droppers[d] = Dropper::Free;
        Some(())
    }

    pub fn dropper_crashes(state: &mut State, d: usize) -> Option<()> {
        let dropper = std::mem::take(&mut state.droppers[d]);
        (dropper != Dropper::Free).then_some(())
    }

    /// The janitor asks about an announced output: can nobody commit it any more?
    pub fn janitor_asks(&self, state: &mut State, attempt: u8) -> Option<()> {
        let keyspace = &mut state.keyspace;
        if state.janitor != 0 || keyspace.announced & 1 << attempt == 0 {
            return None;
        }
        let is_held = matches!(keyspace.plan, Place::Processing(item) if item.attempts == attempt);
        if is_held && !self.has(Flaw::JanitorTakesHeld) {
            return None;
        }
        if keyspace.has(output_of(attempt)) {
            keyspace.announced &= !(1 << attempt);
            return Some(());
        }
        let sources = keyspace.index & INPUTS;
        if sources & !state.disk != 0 && !self.has(Flaw::JanitorIgnoresInputs) {
            return None;
        }
        state.janitor = attempt;
        Some(())
    }

    pub fn janitor_removes(state: &mut State) -> Option<()> {
        let attempt = std::mem::take(&mut state.janitor);
        if attempt == 0 {
            return None;
        }
        state.remove_bytes(output_of(attempt));
        state.keyspace.announced &= !(1 << attempt);
        Some(())
    }

    /// The old compactor takes what is due, for long, and changes nothing but its time.
    pub fn old_claims(state: &mut State) -> Option<()> {
        if state.old != Old::Waits {
            return None;
        }
        let now = state.redis_now();
        state.keyspace.plan.claim(now, OLD_LEASE, None)?;
        state.old = Old::Works {
            until: state.real + OLD_WORK,
        };
        Some(())
    }

    /// It registers its output and removes its inputs in one call, and asks nobody.
    pub fn old_patches(state: &mut State) -> Option<()> {
        let Old::Works { .. } = state.old else {
            return None;
        };
        let now = state.redis_now();
        let sources = state.keyspace.index & INPUTS;
        state.old = Old::Gone;
        if sources & state.disk == sources {
            state.old = Old::Patched;
            if sources != 0 {
                state.write(OLD_OUTPUT, sources);
                state.keyspace.index |= 1 << OLD_OUTPUT;
                state.keyspace.remove(sources, now);
            }
        }
        Some(())
    }

    /// It ends the plan by its id, whoever holds it by now.
    pub fn old_ends(state: &mut State) -> Option<()> {
        if state.old != Old::Patched {
            return None;
        }
        if let Place::Processing(_) = state.keyspace.plan {
            state.keyspace.plan = Place::Nowhere;
        }
        state.old = Old::Gone;
        Some(())
    }

    /// It dies, or has worked for too long.
    pub fn old_dies(state: &mut State) -> Option<()> {
        if matches!(state.old, Old::Waits | Old::Gone) {
            return None;
        }
        state.old = Old::Gone;
        Some(())
    }

    /// A writer removes a file, and its rows with it.
    pub fn writer_removes(state: &mut State, file: usize) -> Option<()> {
        if !state.keyspace.has(file) {
            return None;
        }
        let now = state.redis_now();
        state.keyspace.remove(1 << file, now);
        state.expected_rows &= !state.rows[file];
        Some(())
    }

    /// It takes that back while the grace lasts.
    pub fn writer_restores(state: &mut State) -> Option<()> {
        let doomed = state.keyspace.deletes[C].place;
        let is_waiting = matches!(doomed, Place::Idle(item) if item.attempts == 0);
        if state.keyspace.has(C) || !is_waiting || doomed.is_due(state.redis_now()) {
            return None;
        }
        state.keyspace.index |= 1 << C;
        state.expected_rows |= state.rows[C];
        Some(())
    }

    pub fn undelete(&self, state: &mut State, attempt: u8) -> Option<()> {
        let now = state.redis_now();
        let takes_claimed = self.has(Flaw::UndeleteTakesClaimed);
        state
            .keyspace
            .undelete(attempt, now, takes_claimed)
            .then_some(())
    }

    /// Redis comes back as it was before the last commit, on new connections: what was on its way is
    /// lost. No delete is at its call: the instant since its last question is shorter than any restart.
    pub fn lose_writes(state: &mut State) -> Option<()> {
        if (state.droppers.iter()).any(|dropper| matches!(dropper, Dropper::Checked(_))) {
            return None;
        }
        state.keyspace = *state.before_commit.take()?;
        for worker in &mut state.workers {
            worker.on_its_way = None;
        }
        Some(())
    }

    /// Files that a writer may remove here.
    pub const REMOVABLE: [usize; 2] = [A, C];
}

impl Old {
    pub fn must_end(self, real: Tick) -> bool {
        matches!(self, Self::Works { until } if until <= real)
    }

    pub fn may_commit(self) -> bool {
        matches!(self, Self::Works { .. })
    }
}

/// Of a set of files, those that hold a row.
pub fn files_with_row(state: &State, files: Files, row: u8) -> u64 {
    files_in(files)
        .filter(|&file| state.rows[file] & row != 0)
        .count() as u64
}
