//! A model of how claims, renewals, commits and deletes go, checked in every order of events for
//! small bounds: two workers of ours, an old compactor that follows the original scripts, a janitor,
//! a writer and who undeletes, with crashes, lost and late calls, jumps of Redis' clock and a Redis
//! that comes back without its last writes. What must hold are the predicates of the code itself.
//!
//! What is taken for granted, because no program of ours can bring it about: an old compactor ends
//! within its 1,800 s; a writer that takes a removal back does so while the file's grace lasts.
//!
//! Broken variants show that the model can fail.

mod catalog;
mod model;
mod others;
mod worker;

use std::collections::BTreeSet;

use gigamerge::invariants::{BYTES_BEFORE_INDEX, DROP_AFTER_COMMIT, ONE_HOLDER, ROWS_KEPT};
use stateright::{Checker, DiscoveryClassification, HasDiscoveries, Model};

use self::model::{Flaw, Left, Protocol};

/// Two workers and an old compactor, everything that can befall them.
fn takeovers() -> Protocol {
    Protocol {
        worker_count: 2,
        old_compactor: true,
        janitor: true,
        left: Left {
            unheard: 1,
            renewals: 1,
            crashes: 1,
            jumps: 1,
            ..Left::default()
        },
        ..Protocol::default()
    }
}

/// Several answers of one worker are lost.
fn silence() -> Protocol {
    Protocol {
        worker_count: 2,
        janitor: true,
        left: Left {
            unheard: 2,
            renewals: 2,
            crashes: 1,
            ..Left::default()
        },
        ..Protocol::default()
    }
}

/// What a merge replaced is deleted, or brought back.
fn deletes() -> Protocol {
    Protocol {
        worker_count: 1,
        dropper_count: 2,
        undelete: true,
        left: Left {
            unheard: 1,
            crashes: 1,
            jumps: 1,
            ..Left::default()
        },
        ..Protocol::default()
    }
}

/// A writer removes an input under a merge, or a file that it then wants back.
fn writers() -> Protocol {
    Protocol {
        worker_count: 2,
        dropper_count: 1,
        left: Left {
            crashes: 1,
            removals: 1,
            ..Left::default()
        },
        ..Protocol::default()
    }
}

/// Redis forgets a commit, perhaps after what it replaced was deleted.
fn lost_writes() -> Protocol {
    Protocol {
        worker_count: 2,
        dropper_count: 1,
        janitor: true,
        left: Left {
            unheard: 1,
            crashes: 1,
            lost_writes: 1,
            ..Left::default()
        },
        ..Protocol::default()
    }
}

/// Goes through every state.
fn holds(protocol: Protocol) {
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    println!(
        "{} states, {} steps, the longest way {}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth()
    );
    for (name, way) in checker.discoveries() {
        let kind = checker.discovery_classification(name);
        let is_example = matches!(kind, DiscoveryClassification::Example);
        assert!(is_example, "{name}: {:#?}", way.into_actions());
    }
    // Otherwise it would say little that nothing went wrong.
    checker.assert_properties();
}

/// Finds a way to break this invariant.
fn fails(mut broken: Protocol, flaw: Flaw, invariant: &'static str) {
    broken.flaw = Some(flaw);
    let checker = broken
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyOf(BTreeSet::from([invariant])))
        .spawn_bfs()
        .join();
    let way = checker.discovery(invariant);
    let way = way.unwrap_or_else(|| panic!("{flaw:?} does not break {invariant}"));
    println!("{flaw:?} breaks {invariant}: {:?}", way.into_actions());
}

#[test]
fn two_workers_and_an_old_compactor_keep_every_row_once() {
    holds(takeovers());
}

#[test]
fn answers_that_are_lost_or_late_change_nothing() {
    holds(silence());
}

#[test]
fn deletes_take_nothing_that_is_named_or_comes_back() {
    holds(deletes());
}

#[test]
fn a_writer_may_remove_a_file_under_a_merge() {
    holds(writers());
}

#[test]
fn a_catalog_that_forgets_a_commit_loses_no_row() {
    holds(lost_writes());
}

#[test]
fn each_broken_variant_is_found_out() {
    use Flaw as F;
    let cases = [
        (takeovers(), F::CommitWithoutFence, BYTES_BEFORE_INDEX),
        (takeovers(), F::CommitBeforeBytes, BYTES_BEFORE_INDEX),
        (takeovers(), F::RenewWithoutTime, ONE_HOLDER),
        (takeovers(), F::ReleaseWithoutProof, ONE_HOLDER),
        (takeovers(), F::JanitorTakesHeld, BYTES_BEFORE_INDEX),
        (silence(), F::SilenceRemovesOutput, BYTES_BEFORE_INDEX),
        (deletes(), F::BelievesRefusalAfterSilence, DROP_AFTER_COMMIT),
        (deletes(), F::DropBeforeGrace, DROP_AFTER_COMMIT),
        (deletes(), F::UndeleteTakesClaimed, DROP_AFTER_COMMIT),
        (writers(), F::CommitWithoutSources, ROWS_KEPT),
        (writers(), F::DropWithoutIndex, DROP_AFTER_COMMIT),
        (lost_writes(), F::DropWithoutProof, DROP_AFTER_COMMIT),
        (lost_writes(), F::OrphanRemovedUnasked, ROWS_KEPT),
        (lost_writes(), F::JanitorIgnoresInputs, ROWS_KEPT),
    ];
    for (protocol, flaw, invariant) in cases {
        fails(protocol, flaw, invariant);
    }
}
