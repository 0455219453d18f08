//! A worker of ours: from the claim to the commit, and how it gives up. Each step is one call to
//! the catalog, or one look at or change of the disk; anything may happen between two of them.

use gigamerge::invariants;

use super::{
    catalog::{
        ATTEMPTS_MAX, Commit, CommitFlaws, Files, INPUTS, Item, LEASE, Outcome, Place, Tick,
        files_in, output_of,
    },
    model::{Flaw, Protocol, State},
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    #[default]
    Free,
    Claimed,
    /// Outputs of dead attempts that the index does not name are about to be removed.
    Asked(Files),
    Resolved,
    Announced,
    Published,
    /// A commit was sent and not answered.
    Unsure,
    /// The claim is lost: is the output named?
    Leaving,
    /// It is not: its bytes are about to be removed.
    Removing,
    GivingBack,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Worker {
    pub step: Step,
    pub token: Item,
    /// By the clock of its own machine.
    ours_until: Tick,
    /// A renewal was sent and not answered.
    is_unheard: bool,
    sources: Files,
    /// A commit that may still arrive, also when its sender has died.
    pub on_its_way: Option<Commit>,
}

impl Worker {
    /// Whether it would commit with its token.
    pub fn may_commit(&self) -> bool {
        !matches!(
            self.step,
            Step::Free | Step::Leaving | Step::Removing | Step::GivingBack
        )
    }

    pub fn may_renew(&self, real: Tick) -> bool {
        self.may_commit()
            && self.step != Step::Unsure
            && (self.is_unheard || self.ours_until < real + LEASE)
    }

    /// Leaves nothing that no later step reads.
    pub fn forget_what_is_over(&mut self) {
        if !self.may_commit() || self.step == Step::Unsure {
            (self.ours_until, self.is_unheard) = (0, false);
        }
        if !self.may_commit() {
            self.sources = 0;
        }
    }

    fn output(&self) -> usize {
        output_of(self.token.attempts)
    }

    /// Forgets everything; what it sent is on its way.
    fn free(&mut self) {
        *self = Self {
            on_its_way: self.on_its_way,
            ..Self::default()
        };
    }
}

impl Protocol {
    /// The next step of worker `w`, answered. `None` when it has none now.
    pub fn work(&self, state: &mut State, w: usize) -> Option<()> {
        let now = state.redis_now();
        let worker = state.workers[w];
        let attempts = worker.token.attempts;
        let mut next = worker;
        match worker.step {
            Step::Free => return Self::claim(state, w, true),
            Step::Claimed => {
                next.sources = INPUTS & state.keyspace.index;
                let all_there = next.sources & !state.disk == 0;
                next.step = Step::Resolved;
                if all_there || self.has(Flaw::OrphanRemovedUnasked) {
                    let dead: Files = (1..attempts).map(|earlier| 1 << output_of(earlier)).sum();
                    let dead = dead & state.disk & !state.keyspace.index;
                    if dead != 0 {
                        next.step = Step::Asked(dead);
                    }
                }
            }
            Step::Asked(dead) => {
                files_in(dead).for_each(|file| state.remove_bytes(file));
                next.step = Step::Resolved;
            }
            Step::Resolved if next.sources == 0 => return self.commit(state, w, true),
            // Merges before it announces: an input that is not there is a failure.
            Step::Resolved if next.sources & !state.disk != 0 => next.step = Step::GivingBack,
            Step::Resolved if next.is_unheard => return None,
            Step::Resolved if self.has(Flaw::CommitBeforeBytes) => {
                state.rows[worker.output()] = state.rows_of(worker.sources);
                next.step = match state.commit(self, worker) {
                    Outcome::Committed => Step::Announced,
                    _ => Step::GivingBack,
                };
            }
            Step::Resolved if state.keyspace.announce(worker.token) => next.step = Step::Announced,
            Step::Resolved => next.step = Step::GivingBack,
            Step::Announced if state.real >= worker.ours_until => next.step = Step::GivingBack,
            Step::Announced => {
                state.write(worker.output(), worker.sources);
                next.step = Step::Published;
                if self.has(Flaw::CommitBeforeBytes) {
                    next.free();
                }
            }
            Step::Published => return self.commit(state, w, true),
            Step::Unsure => {
                let believes = self.has(Flaw::BelievesRefusalAfterSilence);
                match state.commit(self, worker) {
                    Outcome::Committed => next.free(),
                    Outcome::LeaseLost if believes => next.step = Step::Removing,
                    // It may have succeeded, and the output been merged on since: it stays.
                    Outcome::LeaseLost if state.keyspace.has(worker.output()) => next.free(),
                    Outcome::LeaseLost | Outcome::OutputExists => next.step = Step::GivingBack,
                    Outcome::SourceGone => next.step = Step::Leaving,
                }
            }
            Step::Leaving if state.keyspace.has(worker.output()) => next.step = Step::GivingBack,
            Step::Leaving => next.step = Step::Removing,
            Step::Removing => {
                state.remove_bytes(worker.output());
                next.step = Step::GivingBack;
            }
            Step::GivingBack => {
                let asks_proof = !self.has(Flaw::ReleaseWithoutProof);
                state.keyspace.release(worker.token, now, asks_proof);
                next.free();
            }
        }
        state.workers[w] = next;
        Some(())
    }

    /// The same step, whose answer is not heard: whether it was done is not known.
    pub fn work_unheard(&self, state: &mut State, w: usize) -> Option<()> {
        let worker = &mut state.workers[w];
        match worker.step {
            Step::Free => Self::claim(state, w, false),
            Step::Published => self.commit(state, w, false),
            Step::Resolved if worker.sources == 0 => self.commit(state, w, false),
            // It gives up asking, and tells that it does.
            Step::Unsure if self.has(Flaw::SilenceRemovesOutput) => {
                worker.step = Step::Removing;
                Some(())
            }
            Step::Unsure => {
                worker.step = Step::GivingBack;
                Some(())
            }
            Step::GivingBack => {
                worker.free();
                Some(())
            }
            _ => None,
        }
    }

    fn claim(state: &mut State, w: usize, is_heard: bool) -> Option<()> {
        let (real, now) = (state.real, state.redis_now());
        let owner = state.fresh_owner();
        let mut plan = state.keyspace.plan;
        let token = plan.claim(now, LEASE, Some(owner))?;
        if token.attempts > ATTEMPTS_MAX {
            return None;
        }
        state.keyspace.plan = plan;
        if is_heard {
            let worker = &mut state.workers[w];
            (worker.step, worker.token) = (Step::Claimed, token);
            worker.ours_until = real + LEASE;
        }
        Some(())
    }

    fn commit(&self, state: &mut State, w: usize, is_heard: bool) -> Option<()> {
        let worker = state.workers[w];
        let mut next = worker;
        if is_heard {
            match state.commit(self, worker) {
                Outcome::Committed => next.free(),
                Outcome::LeaseLost | Outcome::SourceGone if worker.step == Step::Published => {
                    next.step = Step::Leaving;
                }
                _ => next.step = Step::GivingBack,
            }
        } else if worker.on_its_way.is_none() {
            next.on_its_way = Some(worker.commit_call());
            next.step = Step::Unsure;
        } else {
            return None;
        }
        state.workers[w] = next;
        Some(())
    }

    /// An unanswered commit reaches the catalog after all.
    pub fn deliver(&self, state: &mut State, w: usize) -> Option<()> {
        let call = state.workers[w].on_its_way.take()?;
        state.apply(self, call);
        Some(())
    }

    pub fn renew(&self, state: &mut State, w: usize, is_heard: bool) -> Option<()> {
        let (real, now) = (state.real, state.redis_now());
        if !state.workers[w].may_renew(real) {
            return None;
        }
        let compares_time = !self.has(Flaw::RenewWithoutTime);
        let token = state.workers[w].token;
        let renewed = state.keyspace.plan.renew(token, now, compares_time);
        let worker = &mut state.workers[w];
        match renewed {
            _ if !is_heard => worker.is_unheard = true,
            Some(renewed) => {
                (worker.token, worker.is_unheard) = (renewed, false);
                worker.ours_until = real + LEASE;
            }
            None if worker.step == Step::Published => worker.step = Step::Leaving,
            None => worker.step = Step::GivingBack,
        }
        Some(())
    }

    pub fn crash(state: &mut State, w: usize) -> Option<()> {
        (state.workers[w].step != Step::Free).then(|| state.workers[w].free())
    }
}

impl Worker {
    fn commit_call(&self) -> Commit {
        Commit {
            token: self.token,
            sources: self.sources,
        }
    }
}

impl State {
    fn commit(&mut self, protocol: &Protocol, worker: Worker) -> Outcome {
        self.apply(protocol, worker.commit_call())
    }

    fn apply(&mut self, protocol: &Protocol, call: Commit) -> Outcome {
        let flaws = CommitFlaws {
            no_fence: protocol.has(Flaw::CommitWithoutFence),
            no_look_at_sources: protocol.has(Flaw::CommitWithoutSources),
        };
        let now = self.redis_now();
        let before = (self.left.lost_writes > 0).then(|| Box::new(self.keyspace.clone()));
        let outcome = self.keyspace.commit(call, now, flaws);
        if outcome == Outcome::Committed && before.as_deref() != Some(&self.keyspace) {
            self.before_commit = before;
        }
        outcome
    }

    /// A file's bytes appear, with the rows of these files.
    pub fn write(&mut self, file: usize, of: Files) {
        self.disk |= 1 << file;
        self.rows[file] = self.rows_of(of);
    }

    fn rows_of(&self, files: Files) -> u8 {
        files_in(files).fold(0, |rows, file| rows | self.rows[file])
    }

    /// Bytes go that the caller found to be in nobody's way. What a commit once named, only a due
    /// delete may remove.
    pub fn remove_bytes(&mut self, file: usize) {
        let due = match self.keyspace.deletes[file].place {
            Place::Idle(item) => item.time,
            Place::Processing(_) | Place::Nowhere => 0,
        };
        self.note(invariants::drop_after_commit(
            self.keyspace.has(file),
            i64::from(due),
            i64::from(self.redis_now()),
        ));
        self.disk &= !(1 << file);
    }
}
