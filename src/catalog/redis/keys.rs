//! Every key of the keyspace that Rust reads: built and parsed here only. (The scripts build
//! the same names in `lua/lib/`.)

use crate::{
    catalog::Policy,
    model::{Iteration, LayerName, MergeQueue, ModelError, PartitionDir, TableRef, WriterId},
};

/// Which of a queue's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ListState {
    /// Waiting.
    Idle,
    /// Handed out.
    Processing,
    /// Given up.
    Failed,
}

impl ListState {
    fn suffix(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Processing => "processing",
            Self::Failed => "failed",
        }
    }

    /// Splits a list's name into its queue and which list it is.
    pub(super) fn split(key: &str) -> Option<(&str, Self)> {
        let (queue, suffix) = key.rsplit_once(':')?;
        [Self::Idle, Self::Processing, Self::Failed]
            .into_iter()
            .find(|state| state.suffix() == suffix)
            .map(|state| (queue, state))
    }
}

/// Work on single files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum FileWork {
    Drop,
    Move,
}

impl FileWork {
    fn prefix(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Move => "move",
        }
    }

    /// Finds every list of this work.
    pub(super) fn pattern(self) -> &'static str {
        match self {
            Self::Drop => "drop:*",
            Self::Move => "move:*",
        }
    }
}

/// Where deletes or moves of one table, layer and writer wait.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FileQueue {
    pub(super) work: FileWork,
    pub(super) table: TableRef,
    pub(super) layer: LayerName,
    pub(super) writer: WriterId,
}

/// A queue as the scripts take it: prefix, database, table, suffix, layer, writer id.
pub(super) type ScriptKeys = [String; 6];

/// `files:{db}:{table}:{first folder}`.
pub(super) fn files(table: &TableRef, first_folder: &str) -> String {
    format!(
        "files:{}:{}:{first_folder}",
        table.database(),
        table.table()
    )
}

/// A pattern that finds the files hashes of one table and of no other.
pub(super) fn files_pattern(table: &TableRef) -> String {
    table_pattern("files", table)
}

/// A pattern that finds what has a prefix and belongs to one table and no other.
pub(super) fn table_pattern(prefix: &str, table: &TableRef) -> String {
    format!(
        "{prefix}:{}:{}:*",
        escape_glob(table.database()),
        escape_glob(table.table())
    )
}

/// A pattern that finds the folders below a first folder.
pub(super) fn below(first_folder: &str) -> String {
    format!("{}*", escape_glob(first_folder))
}

/// The table and first folder of `files:{db}:{table}:{first folder}`.
pub(super) fn parse_files(key: &str) -> Option<(TableRef, &str)> {
    let mut parts = key.strip_prefix("files:")?.splitn(3, ':');
    let table = TableRef::new(parts.next()?, parts.next()?).ok()?;
    Some((table, parts.next()?))
}

/// The table of `announced:{db}:{table}` or `quarantine:{db}:{table}`.
pub(super) fn parse_own_hash(key: &str) -> Option<TableRef> {
    let (_, names) = key.split_once(':')?;
    let (database, table) = names.split_once(':')?;
    TableRef::new(database, table).ok()
}

/// `announced:{db}:{table}`.
pub(super) fn announced(table: &TableRef) -> String {
    format!("announced:{}:{}", table.database(), table.table())
}

/// `kept:{db}:{table}`.
pub(super) fn kept(table: &TableRef) -> String {
    format!("kept:{}:{}", table.database(), table.table())
}

/// `quarantine:{db}:{table}`.
pub(super) fn quarantine(table: &TableRef) -> String {
    format!("quarantine:{}:{}", table.database(), table.table())
}

/// Finds every table.
pub(super) const FOLDERS_PATTERN: &str = "folders:*";
/// Finds every list of merges.
pub(super) const MERGE_PATTERN: &str = "merge:*";

/// Finds what was set aside.
pub(super) const QUARANTINE_PATTERN: &str = "quarantine:*";
/// Find what was given up.
pub(super) const FAILED_PATTERNS: [&str; 3] = ["merge:*:failed", "drop:*:failed", "move:*:failed"];

/// The table of `quarantine:{db}:{table}`.
pub(super) fn parse_quarantine(key: &str) -> Option<TableRef> {
    let (database, table) = key.strip_prefix("quarantine:")?.split_once(':')?;
    TableRef::new(database, table).ok()
}

/// The table of a `:failed` list, and its queue for the scripts.
pub(super) fn parse_failed(key: &str) -> Option<(TableRef, ScriptKeys)> {
    let (table, state, keys) = match (parse_merge_list(key), parse_file_list(key)) {
        (Some((queue, state)), _) => (queue.table.clone(), state, merge_keys(&queue)),
        (_, Some((queue, state))) => (queue.table.clone(), state, file_keys(&queue)),
        _ => return None,
    };
    (state == ListState::Failed).then_some((table, keys))
}

/// `folders:{db}:{table}`.
pub(super) fn folders(table: &TableRef) -> String {
    format!("folders:{}:{}", table.database(), table.table())
}

/// Finds the announced outputs of every table.
pub(super) const ANNOUNCED_PATTERN: &str = "announced:*";

/// The table of `announced:{db}:{table}`.
pub(super) fn parse_announced(key: &str) -> Option<TableRef> {
    let (database, table) = key.strip_prefix("announced:")?.split_once(':')?;
    TableRef::new(database, table).ok()
}

/// The table of `folders:{db}:{table}`.
pub(super) fn parse_folders(key: &str) -> Option<TableRef> {
    let (database, table) = key.strip_prefix("folders:")?.split_once(':')?;
    TableRef::new(database, table).ok()
}

/// `merge:{db}:{table}:{iteration}:{dir}:{layer}:{writer}:{state}`.
pub(super) fn merge_list(queue: &MergeQueue, state: ListState) -> String {
    format!(
        "merge:{}:{}:{}:{}:{}:{}:{}",
        queue.table.database(),
        queue.table.table(),
        queue.iteration,
        queue.dir,
        queue.layer,
        queue.writer,
        state.suffix()
    )
}

/// The queue of a merge list. The folder may hold colons, the other parts may not.
pub(super) fn parse_merge_list(key: &str) -> Option<(MergeQueue, ListState)> {
    let (queue, state) = ListState::split(key)?;
    let mut front = queue.strip_prefix("merge:")?.splitn(4, ':');
    let (database, table, iteration) = (front.next()?, front.next()?, front.next()?);
    let mut back = front.next()?.rsplitn(3, ':');
    let (writer, layer, dir) = (back.next()?, back.next()?, back.next()?);
    let parse = || -> Result<MergeQueue, ModelError> {
        Ok(MergeQueue {
            table: TableRef::new(database, table)?,
            // Zero is no iteration, and is refused below.
            iteration: Iteration(iteration.parse().unwrap_or(0)),
            dir: PartitionDir::parse(dir)?,
            layer: LayerName::parse(layer)?,
            writer: WriterId::parse(writer)?,
        })
    };
    let queue = parse().ok()?;
    // Another spelling of a number would be another key.
    (queue.iteration.0 > 0 && queue.iteration.to_string() == iteration).then_some((queue, state))
}

/// The iteration of a merge list, without a look at the rest of its name.
pub(super) fn iteration_of(key: &str) -> Option<Iteration> {
    let number = key.strip_prefix("merge:")?.split(':').nth(2)?;
    number.parse().ok().map(Iteration)
}

/// Which list of a queue this is.
pub(super) fn merge_list_state(key: &str) -> Option<ListState> {
    ListState::split(key).map(|(_, state)| state)
}

/// Whether the writer in a list's name is served.
pub(super) fn is_served(key: &str, policy: &Policy) -> bool {
    ListState::split(key)
        .and_then(|(queue, _)| queue.rsplit_once(':'))
        .and_then(|(_, writer)| WriterId::parse(writer).ok())
        .is_some_and(|writer| policy.serves(&writer))
}

/// A merge queue for the scripts.
pub(super) fn merge_keys(queue: &MergeQueue) -> ScriptKeys {
    [
        "merge".to_owned(),
        queue.table.database().to_owned(),
        queue.table.table().to_owned(),
        format!("{}:{}", queue.iteration, queue.dir),
        queue.layer.as_str().to_owned(),
        queue.writer.as_str().to_owned(),
    ]
}

/// `drop:{db}:{table}:{layer}:{writer}:{state}`, or `move:…`.
pub(super) fn file_list(queue: &FileQueue, state: ListState) -> String {
    format!(
        "{}:{}:{}:{}:{}:{}",
        queue.work.prefix(),
        queue.table.database(),
        queue.table.table(),
        queue.layer,
        queue.writer,
        state.suffix()
    )
}

/// The queue of a list of deletes or moves.
pub(super) fn parse_file_list(key: &str) -> Option<(FileQueue, ListState)> {
    let (queue, state) = ListState::split(key)?;
    let parts: Vec<&str> = queue.split(':').collect();
    let [prefix, database, table, layer, writer] = parts[..] else {
        return None;
    };
    let work = [FileWork::Drop, FileWork::Move]
        .into_iter()
        .find(|work| work.prefix() == prefix)?;
    Some((
        FileQueue {
            work,
            table: TableRef::new(database, table).ok()?,
            layer: LayerName::parse(layer).ok()?,
            writer: WriterId::parse(writer).ok()?,
        },
        state,
    ))
}

/// A queue of deletes or moves for the scripts.
pub(super) fn file_keys(queue: &FileQueue) -> ScriptKeys {
    [
        queue.work.prefix().to_owned(),
        queue.table.database().to_owned(),
        queue.table.table().to_owned(),
        String::new(),
        queue.layer.as_str().to_owned(),
        queue.writer.as_str().to_owned(),
    ]
}

/// Takes the special meaning from a name that goes into a SCAN pattern.
fn escape_glob(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for c in name.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '^' | '-' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATES: [ListState; 3] = [ListState::Idle, ListState::Processing, ListState::Failed];

    fn name() -> impl Strategy<Value = String> {
        "[A-Za-z0-9_*?\\[\\]^. é-]{1,12}".prop_filter("folder references are no names", |name| {
            name != "." && name != ".."
        })
    }

    fn maybe_name() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), name()]
    }

    proptest! {
        #[test]
        fn a_merge_list_reads_back_as_it_was_built(
            (database, table) in (name(), name()),
            iteration in 1..u32::MAX,
            dir in "[a-z]{1,4}=[0-9:]{1,6}(/[a-z=0-9:]{1,8}){0,2}",
            (layer, writer) in (maybe_name(), maybe_name()),
            state in proptest::sample::select(&STATES[..]),
        ) {
            let queue = MergeQueue {
                table: TableRef::new(&database, &table).unwrap(),
                iteration: Iteration(iteration),
                dir: PartitionDir::parse(&dir).unwrap(),
                layer: LayerName::parse(&layer).unwrap(),
                writer: WriterId::parse(&writer).unwrap(),
            };
            let key = merge_list(&queue, state);
            prop_assert_eq!(parse_merge_list(&key), Some((queue, state)), "{}", key);
        }

        #[test]
        fn a_list_of_deletes_or_moves_reads_back_as_it_was_built(
            work in proptest::sample::select(&[FileWork::Drop, FileWork::Move][..]),
            (database, table) in (name(), name()),
            (layer, writer) in (maybe_name(), maybe_name()),
            state in proptest::sample::select(&STATES[..]),
        ) {
            let queue = FileQueue {
                work,
                table: TableRef::new(&database, &table).unwrap(),
                layer: LayerName::parse(&layer).unwrap(),
                writer: WriterId::parse(&writer).unwrap(),
            };
            let key = file_list(&queue, state);
            prop_assert_eq!(parse_file_list(&key), Some((queue, state)), "{}", key);
        }

        #[test]
        fn no_key_makes_parsing_fail_hard(key in "(merge|drop|folders)?[:a-z0-9/.]{0,30}(:idle)?") {
            let _ = (parse_merge_list(&key), parse_file_list(&key), parse_folders(&key));
        }
    }

    #[test]
    fn empty_layer_and_writer_are_legal() {
        let (queue, state) =
            parse_merge_list("merge:db:t:1:date=2024-01-15/hour=14:::idle").unwrap();
        assert_eq!((queue.layer.as_str(), queue.writer.as_str()), ("", ""));
        assert_eq!(queue.dir.as_str(), "date=2024-01-15/hour=14");
        assert_eq!(state, ListState::Idle);
        assert!(parse_file_list("drop:db:t:::processing").is_some());
    }

    #[test]
    fn keys_of_other_shapes_are_not_ours() {
        for key in [
            "merge:db:t:0:a:l:w:idle",
            "merge:db:t:01:a:l:w:idle",
            "merge:db:t:x:a:l:w:idle",
            "merge:db:t:1:../a:l:w:idle",
            "merge:db:t:1:a:l:w:other",
            "merge:db:t:1:a:l:idle",
            "merge:db::1:a:l:w:idle",
        ] {
            assert!(parse_merge_list(key).is_none(), "{key} was accepted");
        }
        assert!(parse_folders("folders:db").is_none());
        assert!(parse_folders("folders:db:t:x").is_none());
    }

    #[test]
    fn glob_characters_in_names_stand_for_themselves() {
        let table = TableRef::new("d*", "t[1]?").unwrap();
        assert_eq!(files_pattern(&table), "files:d\\*:t\\[1\\]\\?:*");
        assert_eq!(files(&table, "date=x"), "files:d*:t[1]?:date=x");
    }
}
