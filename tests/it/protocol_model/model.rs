//! The whole state, who may do what in it, and what must hold in every one that can be reached.

use gigamerge::invariants::{self, Violation};
use stateright::{Model, Property};

use super::{
    catalog::{
        A, ATTEMPTS_MAX, B, C, FILE_COUNT, Files, INPUTS, Keyspace, OLD_OUTPUT, Place, Tick,
        output_of,
    },
    others::{Dropper, Old, files_with_row},
    worker::Worker,
};

/// What a broken variant of the protocol does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    CommitWithoutFence,
    CommitWithoutSources,
    CommitBeforeBytes,
    RenewWithoutTime,
    ReleaseWithoutProof,
    SilenceRemovesOutput,
    BelievesRefusalAfterSilence,
    OrphanRemovedUnasked,
    JanitorIgnoresInputs,
    JanitorTakesHeld,
    DropWithoutIndex,
    DropWithoutProof,
    DropBeforeGrace,
    UndeleteTakesClaimed,
}

/// The last moment: two leases, or a lease and an old compactor's work.
const TIME_MAX: Tick = 4;

/// How often what may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Left {
    /// Calls whose answer is lost, or that arrive late or never.
    pub unheard: u8,
    pub renewals: u8,
    pub crashes: u8,
    /// Jumps of Redis' clock.
    pub jumps: u8,
    /// Times that Redis comes back without its last writes.
    pub lost_writes: u8,
    /// Files that a writer removes, and puts back.
    pub removals: u8,
}

/// Who takes part, what befalls them, and with which flaw.
#[derive(Clone, Debug, Default)]
pub struct Protocol {
    pub worker_count: usize,
    pub dropper_count: usize,
    pub old_compactor: bool,
    pub janitor: bool,
    pub undelete: bool,
    pub left: Left,
    pub flaw: Option<Flaw>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Time as steady clocks count it, which all machines share.
    pub real: Tick,
    /// How far Redis' clock is ahead of it, and one more.
    skew: u8,
    pub keyspace: Keyspace,
    /// What Redis falls back to when it loses its last writes.
    pub before_commit: Option<Box<Keyspace>>,
    /// Whether it did.
    has_lost_writes: bool,
    /// Files that have their bytes.
    pub disk: Files,
    /// Which rows each file has, one bit each.
    pub rows: [u8; FILE_COUNT],
    /// Rows that readers must see.
    pub expected_rows: u8,
    pub workers: [Worker; 2],
    pub droppers: [Dropper; 2],
    pub old: Old,
    /// The attempt whose output it is about to remove; 0 for none.
    pub janitor: u8,
    pub left: Left,
    violation: Option<&'static str>,
}

impl State {
    pub fn redis_now(&self) -> Tick {
        (self.real + self.skew).saturating_sub(1)
    }

    /// A name that no other claim of the same item has.
    pub fn fresh_owner(&self) -> u32 {
        1 + u32::from(self.has_lost_writes)
    }

    pub fn note(&mut self, outcome: Result<(), Violation>) {
        if let Err(violation) = outcome {
            self.violation = Some(violation.invariant);
        }
    }

    /// Who could change the index now with what it holds of the plan.
    fn holders(&self) -> usize {
        let plan = self.keyspace.plan;
        let could = |worker: &&Worker| {
            let on_its_way = worker.on_its_way.map(|call| call.token);
            worker.may_commit() && plan.is_held_with(worker.token)
                || on_its_way.is_some_and(|token| plan.is_held_with(token))
        };
        self.workers.iter().filter(could).count() + usize::from(self.old.may_commit())
    }

    fn check(&self) -> Result<(), Violation> {
        for row in [1 << A, 1 << B, 1 << C] {
            let wanted = u64::from(self.expected_rows & row != 0);
            let seen = files_with_row(self, self.keyspace.index, row);
            invariants::rows_kept([wanted], seen)?;
            // Whatever Redis forgets, somebody has the bytes.
            let copies = files_with_row(self, self.disk, row);
            invariants::rows_kept([wanted], wanted * copies.min(1))?;
        }
        for file in 0..FILE_COUNT {
            let has_bytes = self.disk & 1 << file != 0;
            // A Redis that lost its last writes names files again that were deleted since.
            let is_indexed = self.keyspace.has(file) && !self.has_lost_writes;
            invariants::bytes_before_index(is_indexed, has_bytes)?;
        }
        invariants::one_holder(self.holders())
    }

    fn violates(&self, invariant: &str) -> bool {
        let here = self.check().err().map(|violation| violation.invariant);
        self.violation.or(here) == Some(invariant)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Tick,
    ClockJumps(bool),
    RedisLosesWrites,
    Work(usize),
    WorkUnheard(usize),
    Deliver(usize),
    Renew(usize),
    RenewUnheard(usize),
    Crash(usize),
    ClaimDelete(usize, usize),
    Delete(usize),
    DeleteFails(usize),
    DropperCrashes(usize),
    JanitorAsks(u8),
    JanitorRemoves,
    OldClaims,
    OldPatches,
    OldEnds,
    OldDies,
    WriterRemoves(usize),
    WriterRestores,
    Undelete(u8),
}

fn spend(left: &mut u8) -> Option<()> {
    *left = left.checked_sub(1)?;
    Some(())
}

impl Protocol {
    pub fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// States that go on alike are one: workers have no names, and what nobody reads any more is gone.
    fn forget_differences(&self, state: &mut State) {
        for worker in &mut state.workers {
            worker.forget_what_is_over();
        }
        state.workers[..self.worker_count].sort_unstable();
        state.droppers[..self.dropper_count].sort_unstable();
        if self.dropper_count == 0 && !self.undelete {
            state.keyspace.deletes = Default::default();
        }
        if state.left.lost_writes == 0 {
            state.before_commit = None;
        }
    }

    fn act(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Tick => {
                if state.real == TIME_MAX || state.old.must_end(state.real) {
                    return None;
                }
                state.real += 1;
                Some(())
            }
            Action::ClockJumps(is_ahead) => {
                spend(&mut state.left.jumps)?;
                state.skew = if is_ahead { 2 } else { 0 };
                Some(())
            }
            Action::RedisLosesWrites => {
                spend(&mut state.left.lost_writes)?;
                Self::lose_writes(state)?;
                state.has_lost_writes = true;
                Some(())
            }
            Action::Work(w) => self.work(state, w),
            Action::WorkUnheard(w) => {
                spend(&mut state.left.unheard)?;
                self.work_unheard(state, w)
            }
            Action::Deliver(w) => self.deliver(state, w),
            Action::Renew(w) => {
                spend(&mut state.left.renewals)?;
                self.renew(state, w, true)
            }
            Action::RenewUnheard(w) => {
                spend(&mut state.left.unheard)?;
                self.renew(state, w, false)
            }
            Action::Crash(w) => {
                spend(&mut state.left.crashes)?;
                Self::crash(state, w)
            }
            Action::ClaimDelete(d, file) => self.claim_delete(state, d, file),
            Action::Delete(d) => self.delete(state, d),
            Action::DeleteFails(d) => {
                spend(&mut state.left.unheard)?;
                Self::delete_fails(state, d)
            }
            Action::DropperCrashes(d) => {
                spend(&mut state.left.crashes)?;
                Self::dropper_crashes(state, d)
            }
            Action::JanitorAsks(attempt) => self.janitor_asks(state, attempt),
            Action::JanitorRemoves => Self::janitor_removes(state),
            Action::OldClaims => Self::old_claims(state),
            Action::OldPatches => Self::old_patches(state),
            Action::OldEnds => Self::old_ends(state),
            Action::OldDies => Self::old_dies(state),
            Action::WriterRemoves(file) => {
                spend(&mut state.left.removals)?;
                Self::writer_removes(state, file)
            }
            Action::WriterRestores => Self::writer_restores(state),
            Action::Undelete(attempt) => self.undelete(state, attempt),
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let files = 1 << A | 1 << B | 1 << C;
        let mut rows = [0; FILE_COUNT];
        (rows[A], rows[B], rows[C]) = (1 << A, 1 << B, 1 << C);
        vec![State {
            real: 0,
            skew: 1,
            keyspace: Keyspace::new(files),
            before_commit: None,
            has_lost_writes: false,
            disk: files,
            rows,
            expected_rows: files,
            workers: Default::default(),
            droppers: Default::default(),
            old: Old::default(),
            janitor: 0,
            left: self.left,
            violation: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // Nothing is learned from what comes after the first violation.
        if state.violation.is_some() {
            return;
        }
        actions.extend([
            Action::Tick,
            Action::ClockJumps(true),
            Action::ClockJumps(false),
        ]);
        actions.push(Action::RedisLosesWrites);
        for w in 0..self.worker_count {
            actions.extend([Action::Work(w), Action::WorkUnheard(w), Action::Deliver(w)]);
            actions.extend([Action::Renew(w), Action::RenewUnheard(w), Action::Crash(w)]);
        }
        for d in 0..self.dropper_count {
            actions.extend((0..FILE_COUNT).map(|file| Action::ClaimDelete(d, file)));
            actions.extend([Action::Delete(d), Action::DeleteFails(d)]);
            actions.push(Action::DropperCrashes(d));
        }
        if self.janitor {
            actions.extend((1..=ATTEMPTS_MAX).map(Action::JanitorAsks));
            actions.push(Action::JanitorRemoves);
        }
        if self.old_compactor {
            actions.extend([Action::OldClaims, Action::OldPatches]);
            actions.extend([Action::OldEnds, Action::OldDies]);
        }
        actions.extend(Self::REMOVABLE.map(Action::WriterRemoves));
        actions.push(Action::WriterRestores);
        if self.undelete {
            actions.extend((1..=ATTEMPTS_MAX).map(Action::Undelete));
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.act(&mut next, action)?;
        self.forget_differences(&mut next);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let holds = |name| -> Property<Self> {
            let holds: fn(&Self, &State) -> bool = match name {
                invariants::ROWS_KEPT => |_, state| !state.violates(invariants::ROWS_KEPT),
                invariants::BYTES_BEFORE_INDEX => {
                    |_, state| !state.violates(invariants::BYTES_BEFORE_INDEX)
                }
                invariants::ONE_HOLDER => |_, state| !state.violates(invariants::ONE_HOLDER),
                _ => |_, state| !state.violates(invariants::DROP_AFTER_COMMIT),
            };
            Property::always(name, holds)
        };
        let mut properties = vec![
            holds(invariants::ROWS_KEPT),
            holds(invariants::BYTES_BEFORE_INDEX),
            holds(invariants::ONE_HOLDER),
            holds(invariants::DROP_AFTER_COMMIT),
            Property::always("indexed inputs are in a plan", |_, state: &State| {
                let planned = state.keyspace.index & INPUTS & !state.keyspace.set_aside;
                planned == 0 || state.keyspace.plan != Place::Nowhere
            }),
            Property::sometimes("an attempt commits", |_, state: &State| {
                state.keyspace.has(output_of(1))
            }),
        ];
        let mut sometimes = |takes_part, name, is_so| {
            if takes_part {
                properties.push(Property::sometimes(name, is_so));
            }
        };
        sometimes(
            self.worker_count > 1,
            "a later attempt commits",
            |_, state: &State| state.keyspace.has(output_of(2)),
        );
        sometimes(
            self.old_compactor,
            "the old compactor commits",
            |_, state: &State| state.keyspace.has(OLD_OUTPUT),
        );
        sometimes(
            self.dropper_count > 0,
            "an input is deleted",
            |_, state: &State| INPUTS & !state.disk != 0,
        );
        sometimes(self.undelete, "a merge is undone", |_, state: &State| {
            state.keyspace.set_aside == INPUTS
        });
        sometimes(
            self.left.removals > 0,
            "a writer removes an input",
            |_, state: &State| state.expected_rows & INPUTS != INPUTS,
        );
        sometimes(
            self.left.lost_writes > 0,
            "an output has the only copy",
            |_, state: &State| {
                let is_gone = |file| state.keyspace.has(file) && state.disk & 1 << file == 0;
                state.has_lost_writes && is_gone(A) && is_gone(B)
            },
        );
        properties
    }
}
