//! What to do with one file, from what is known of it. Pure, because a wrong answer doubles rows.

/// How far the record of imports says that a file came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    /// Its copy was complete and about to get its final name.
    Begun,
    /// It stood in the index.
    Registered,
}

/// What is known of a file.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Facts {
    /// The index names it.
    pub(super) is_indexed: bool,
    /// Its bytes lie under their final name.
    pub(super) is_published: bool,
    /// A complete copy waits for its final name.
    pub(super) is_staged: bool,
    /// There is a file to copy from.
    pub(super) has_source: bool,
    /// No merge runs and no delete waits, so that every published file that the index does not
    /// name was never registered, or its catalog is lost.
    pub(super) is_quiet: bool,
    pub(super) recorded: Option<Recorded>,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing: the index names it.
    Indexed,
    /// Nothing: it was imported, and its rows were merged into another file since.
    ImportedBefore,
    /// Copy, publish, register.
    Copy,
    /// Publish what is staged, register.
    Publish,
    /// Register.
    Register,
    /// Nothing now: a merge may have replaced it.
    Wait,
    /// It cannot be imported: nobody has its bytes.
    NoBytes,
}

/// Copies are staged, recorded, renamed, registered, recorded again. A rename happens completely or
/// not at all, so "begun and no longer staged" proves that the file was published.
pub(super) fn decide(facts: Facts) -> Decision {
    match facts {
        Facts {
            is_indexed: true, ..
        } => Decision::Indexed,
        Facts {
            is_published: true,
            is_quiet: true,
            ..
        } => Decision::Register,
        Facts {
            recorded: Some(Recorded::Registered),
            ..
        } => Decision::ImportedBefore,
        Facts {
            is_published: true, ..
        } => Decision::Wait,
        Facts {
            recorded: Some(Recorded::Begun),
            is_staged,
            ..
        } => {
            if is_staged {
                Decision::Publish
            } else {
                Decision::ImportedBefore
            }
        }
        Facts {
            has_source: true, ..
        } => Decision::Copy,
        _ => Decision::NoBytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Facts = Facts {
        is_indexed: false,
        is_published: false,
        is_staged: false,
        has_source: true,
        is_quiet: true,
        recorded: None,
    };

    #[test]
    fn a_new_file_is_copied_and_one_that_is_there_registered() {
        assert_eq!(decide(NEW), Decision::Copy);
        let in_place = Facts {
            is_published: true,
            ..NEW
        };
        assert_eq!(decide(in_place), Decision::Register);
        let nowhere = Facts {
            has_source: false,
            ..NEW
        };
        assert_eq!(decide(nowhere), Decision::NoBytes);
    }

    #[test]
    fn an_import_that_was_cut_off_goes_on_where_it_stood() {
        let begun = Facts {
            recorded: Some(Recorded::Begun),
            ..NEW
        };
        let staged = Facts {
            is_staged: true,
            ..begun
        };
        let published = Facts {
            is_published: true,
            ..begun
        };
        assert_eq!(decide(staged), Decision::Publish);
        assert_eq!(decide(published), Decision::Register);
        // Published, registered, merged and deleted before anybody noted the second step.
        assert_eq!(decide(begun), Decision::ImportedBefore);
    }

    #[test]
    fn whatever_happens_a_file_whose_rows_may_be_merged_is_not_registered_again() {
        for recorded in [None, Some(Recorded::Begun), Some(Recorded::Registered)] {
            let replaced = Facts {
                is_published: true,
                is_quiet: false,
                recorded,
                ..NEW
            };
            assert!(matches!(
                decide(replaced),
                Decision::Wait | Decision::ImportedBefore
            ));
        }
        let merged_and_deleted = Facts {
            recorded: Some(Recorded::Registered),
            ..NEW
        };
        assert_eq!(decide(merged_and_deleted), Decision::ImportedBefore);
    }

    #[test]
    fn an_index_that_was_lost_is_filled_again() {
        let lost = Facts {
            is_published: true,
            recorded: Some(Recorded::Registered),
            ..NEW
        };
        assert_eq!(decide(lost), Decision::Register);
    }
}
