//! What the scripts do to the keyspace, reduced to one merge plan over two files and the deletes
//! that follow from it. Each method is one script: one atomic step.

/// Time in ticks, small enough for all of them to be looked at.
pub type Tick = u8;

/// Of a claim of ours.
pub const LEASE: Tick = 2;
/// Of a claim by the original script: many of ours.
pub const OLD_LEASE: Tick = 4;
/// Between a file's removal from the index and its delete.
pub const GRACE: Tick = 1;

/// A set of files, one bit each.
pub type Files = u8;

/// The plan's first input; a writer may remove it.
pub const A: usize = 0;
/// The plan's second input.
pub const B: usize = 1;
/// In no plan; a writer may remove it and put it back.
pub const C: usize = 2;
/// The output of the old compactor.
pub const OLD_OUTPUT: usize = 3;
/// Attempts of the plan that are looked at; each has an output of its own.
pub const ATTEMPTS_MAX: u8 = 3;
/// All files.
pub const FILE_COUNT: usize = 4 + ATTEMPTS_MAX as usize;
pub const INPUTS: Files = 1 << A | 1 << B;

/// The name that an attempt's output has.
pub fn output_of(attempt: u8) -> usize {
    3 + usize::from(attempt)
}

pub fn files_in(files: Files) -> impl Iterator<Item = usize> {
    (0..FILE_COUNT).filter(move |file| files & 1 << file != 0)
}

/// An item's text: two are equal when all of this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Item {
    pub attempts: u8,
    /// Who claimed, or the hash of the text before a renewal.
    pub owner: u32,
    /// The other half of an owner that a renewal set.
    pub owner_time: Tick,
    pub time: Tick,
}

impl Item {
    /// Stands for the SHA1 of the text: no two texts that occur have the same one.
    fn hash(self) -> u32 {
        assert!(self.owner < 1 << 28, "too many renewals for this hash");
        self.owner << 4 | u32::from(self.time)
    }
}

/// In which list an item stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Place {
    Idle(Item),
    Processing(Item),
    #[default]
    Nowhere,
}

impl Place {
    pub fn is_held_with(self, token: Item) -> bool {
        self == Self::Processing(token)
    }

    pub fn is_due(self, now: Tick) -> bool {
        match self {
            Self::Idle(item) | Self::Processing(item) => item.time <= now,
            Self::Nowhere => false,
        }
    }

    /// `get_merge_plan` and `claim_drops`: what is due goes to whoever asks. Without an owner
    /// (the original) only the time changes.
    pub fn claim(&mut self, now: Tick, lease: Tick, owner: Option<u32>) -> Option<Item> {
        if !self.is_due(now) {
            return None;
        }
        let (Self::Idle(mut item) | Self::Processing(mut item)) = *self else {
            return None;
        };
        item.time = now + lease;
        if let Some(owner) = owner {
            item.attempts += 1;
            (item.owner, item.owner_time) = (owner, 0);
        }
        *self = Self::Processing(item);
        Some(item)
    }

    /// `renew_lease`.
    pub fn renew(&mut self, token: Item, now: Tick, compares_time: bool) -> Option<Item> {
        let Self::Processing(item) = *self else {
            return None;
        };
        let time = now + LEASE;
        let is_of_this_time = if compares_time {
            item.owner_time == item.time
        } else {
            item.time <= time
        };
        if item != token && !(item.owner == token.hash() && is_of_this_time) {
            return None;
        }
        let renewed = Item {
            attempts: item.attempts,
            owner: token.hash(),
            owner_time: time,
            time,
        };
        *self = Self::Processing(renewed);
        Some(renewed)
    }

    /// `release_plan`.
    pub fn release(&mut self, token: Item, now: Tick, asks_proof: bool) -> bool {
        match *self {
            Self::Processing(item) if item == token || !asks_proof => {
                *self = Self::Idle(Item { time: now, ..item });
                true
            }
            _ => false,
        }
    }

    /// `LREM` of the text.
    pub fn finish(&mut self, token: Item) {
        if self.is_held_with(token) {
            *self = Self::Nowhere;
        }
    }
}

/// A waiting delete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Doomed {
    pub place: Place,
    /// The attempt whose output replaced the file; 0 for none.
    pub replaced_by: u8,
    pub replaced_count: u8,
}

/// Arguments of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Commit {
    pub token: Item,
    pub sources: Files,
}

impl Commit {
    /// `None` when no source is left: the plan just ends.
    pub fn output(&self) -> Option<usize> {
        (self.sources != 0).then(|| output_of(self.token.attempts))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    LeaseLost,
    SourceGone,
    OutputExists,
}

/// What a flawed `end_merge` leaves out.
#[derive(Clone, Copy, Default)]
pub struct CommitFlaws {
    pub no_fence: bool,
    pub no_look_at_sources: bool,
}

/// Everything that is in Redis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keyspace {
    pub index: Files,
    pub plan: Place,
    pub deletes: [Doomed; FILE_COUNT],
    /// Attempts whose output was announced, one bit each.
    pub announced: u8,
    /// Files that are in no plan any more, on purpose.
    pub set_aside: Files,
}

impl Keyspace {
    pub fn new(index: Files) -> Self {
        Self {
            index,
            plan: Place::Idle(Item::default()),
            deletes: Default::default(),
            announced: 0,
            set_aside: 0,
        }
    }

    pub fn has(&self, file: usize) -> bool {
        self.index & 1 << file != 0
    }

    /// `announce_output`.
    pub fn announce(&mut self, token: Item) -> bool {
        let is_held = self.plan.is_held_with(token);
        if is_held {
            self.announced |= 1 << token.attempts;
        }
        is_held
    }

    /// `release_plan`, with its announcement.
    pub fn release(&mut self, token: Item, now: Tick, asks_proof: bool) {
        if self.plan.release(token, now, asks_proof) {
            self.announced &= !(1 << token.attempts);
        }
    }

    /// `end_merge` with arguments.
    pub fn commit(&mut self, call: Commit, now: Tick, flaws: CommitFlaws) -> Outcome {
        let is_held = self.plan.is_held_with(call.token);
        if call.output().is_some_and(|output| self.has(output)) {
            return if is_held {
                Outcome::OutputExists
            } else {
                Outcome::Committed
            };
        }
        if !is_held && !flaws.no_fence {
            return Outcome::LeaseLost;
        }
        if self.index & call.sources != call.sources && !flaws.no_look_at_sources {
            return Outcome::SourceGone;
        }
        if let Some(output) = call.output() {
            self.index |= 1 << output;
            self.replace(call.sources, call.token.attempts, now);
        }
        self.announced &= !(1 << call.token.attempts);
        self.plan = Place::Nowhere;
        Outcome::Committed
    }

    /// `patch_index` with the removal of these files.
    pub fn remove(&mut self, files: Files, now: Tick) {
        self.replace(files, 0, now);
    }

    fn replace(&mut self, files: Files, replaced_by: u8, now: Tick) {
        for file in files_in(files & self.index) {
            self.deletes[file] = Doomed {
                place: Place::Idle(Item {
                    time: now + GRACE,
                    ..Item::default()
                }),
                replaced_by,
                replaced_count: u8::try_from(files.count_ones()).unwrap(),
            };
        }
        self.index &= !files;
    }

    /// `undelete`: all that this attempt's output replaced, or nothing.
    pub fn undelete(&mut self, attempt: u8, now: Tick, takes_claimed: bool) -> bool {
        let output = output_of(attempt);
        let waits = |doomed: &Doomed| {
            doomed.replaced_by == attempt
                && matches!(doomed.place, Place::Idle(item) if item.attempts == 0 || takes_claimed)
        };
        let waiting: Files = files_in(Files::MAX)
            .filter(|&file| waits(&self.deletes[file]))
            .map(|file| 1 << file)
            .sum();
        let wanted = files_in(waiting).map(|file| self.deletes[file].replaced_count);
        if !self.has(output) || wanted.max() != u8::try_from(waiting.count_ones()).ok() {
            return false;
        }
        for file in files_in(waiting) {
            self.deletes[file] = Doomed::default();
        }
        self.index |= waiting;
        self.set_aside |= waiting;
        self.remove(1 << output, now);
        true
    }
}
