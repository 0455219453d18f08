//! What can differ between index, queues and storage.

use crate::invariants;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal, $invariant:expr;)*) => {
        /// A kind of difference.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// Its name, as it is printed.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// The invariant that it breaks, if any.
            pub fn invariant(self) -> Option<&'static str> {
                match self {
                    $(Self::$kind => $invariant,)*
                }
            }
        }
    };
}

kinds! {
    /// The index names a file that is not there.
    MissingFile = "missing_file", Some(invariants::BYTES_BEFORE_INDEX);
    /// The index names a file that no reader can open.
    UnreadableFile = "unreadable_file", Some(invariants::BYTES_BEFORE_INDEX);
    /// The index names a link, or a file behind a link out of the table.
    OutsideTable = "outside_table", Some(invariants::INSIDE_TABLE);
    /// Size, rows or times of an entry are not those of its file.
    EntryDiffers = "entry_differs", Some(invariants::ROWS_KEPT);
    /// An entry names a layer that is not configured.
    UnknownLayer = "unknown_layer", None;
    /// An entry that cannot be used.
    MalformedEntry = "malformed_entry", None;
    /// A file that neither index nor queues know.
    UnknownFile = "unknown_file", None;
    /// An output that was announced long ago and never committed.
    DeadOutput = "dead_output", None;
    /// The file of an entry lies in another layer too.
    SecondCopy = "second_copy", None;
    /// The count of a folder is not the number of its files.
    FolderCount = "folder_count", None;
    /// A `metadata.json` says something else than its files.
    PartitionSums = "partition_sums", None;
    /// A file that is to be merged and is in no plan.
    UnplannedFile = "unplanned_file", None;
    /// A file that is in two plans.
    PlannedTwice = "planned_twice", Some(invariants::ONE_HOLDER);
    /// An overdue plan names a file that is not in the index.
    PlanOfUnknownFile = "plan_of_unknown_file", None;
    /// An item that cannot be used.
    BrokenItem = "broken_item", None;
    /// A claim that ran out and that nobody took over.
    StaleClaim = "stale_claim", None;
    /// An overdue item that this configuration does not serve.
    UnservedItem = "unserved_item", None;
    /// A merge that was given up though its files are still there.
    GivenUp = "given_up", None;
    /// A delete of a file that the index names.
    DropOfIndexedFile = "drop_of_indexed_file", Some(invariants::DROP_AFTER_COMMIT);
    /// A move of a file that is not in the index.
    MoveOfUnknownFile = "move_of_unknown_file", None;
    /// An announcement that nobody will make good.
    StaleAnnouncement = "stale_announcement", None;
    /// A key or file that is not what its name says.
    StrangeKey = "strange_key", None;
    /// Scratch of a process that is gone.
    Scratch = "scratch", None;
    /// Rows that cannot be decoded, or are not as many as the footer says.
    WrongRows = "wrong_rows", Some(invariants::ROWS_KEPT);
    /// Rows that are not in the order that the file declares.
    WrongOrder = "wrong_order", Some(invariants::ORDER_KEPT);
    /// Statistics that leave values out.
    WrongStatistics = "wrong_statistics", None;
}
