//! What is wrong with a configuration: everything at once, each with its place and the fix.

use std::{cell::RefCell, collections::BTreeSet, fmt, io, path::PathBuf};

/// Problems that one error lists at most.
const LISTED_MAX: usize = 100;

/// Why there is no configuration. The exit code for it is 78 (`EX_CONFIG`).
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or closed to us.
    #[error("configuration file {} cannot be read; check the path given by --config or GIGAMERGE_CONFIG", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is far too large to be a configuration.
    #[error("configuration file {} is larger than {bytes_max} bytes; check that it is the right file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        bytes_max: u64,
    },
    /// The file is not TOML. The line itself is not shown: it may hold a password.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser expected.
        message: String,
    },
    /// The file is not TOML, and the parser does not say where.
    #[error("{}: {message}", path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        message: String,
    },
    /// Settings are wrong.
    #[error("{0}")]
    Problems(Problems),
}

/// Everything that is wrong, in the order of the sections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Never empty.
    pub list: Vec<Problem>,
}

/// One wrong setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The setting, such as `merge.levels[1].timeout`; with the variable or option in front when it came from there.
    pub place: String,
    /// What is wrong and what to write instead. Never a secret.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration")?;
        if let Some(file) = &self.file {
            write!(f, " ({})", file.display())?;
        }
        match self.list.len() {
            1 => f.write_str(" has 1 problem:")?,
            count => write!(f, " has {count} problems:")?,
        }
        for problem in self.list.iter().take(LISTED_MAX) {
            write!(f, "\n  {problem}")?;
        }
        if self.list.len() > LISTED_MAX {
            write!(f, "\n  and {} more", self.list.len() - LISTED_MAX)?;
        }
        Ok(())
    }
}

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// `worker.lease`.
    pub(super) path: String,
    /// The variable or option it came from; `None` for the file.
    pub(super) origin: Option<String>,
}

impl Place {
    /// Whether it was written for a writer, and reached us only because we share its environment.
    pub(super) fn is_gigapi(&self) -> bool {
        self.origin
            .as_ref()
            .is_some_and(|origin| origin.starts_with("GIGAPI_"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{origin} ({})", self.path),
            None => f.write_str(&self.path),
        }
    }
}

/// Collects what the checks find. Shared by all sections, so its parts are cells.
#[derive(Debug, Default)]
pub(super) struct Report {
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
    asked: RefCell<BTreeSet<String>>,
}

impl Report {
    pub(super) fn problem(&self, place: impl fmt::Display, message: impl Into<String>) {
        self.problems.borrow_mut().push(Problem {
            place: place.to_string(),
            message: message.into(),
        });
    }

    pub(super) fn warning(&self, place: impl fmt::Display, message: &str) {
        self.warnings
            .borrow_mut()
            .push(format!("{place}: {message}"));
    }

    /// Notes that the code knows this setting.
    pub(super) fn asked(&self, path: String) {
        self.asked.borrow_mut().insert(path);
    }

    /// `; did you mean GIGAMERGE_WORKER__LEASE?` for `worker_lease`, else nothing.
    pub(super) fn variable_meant_by(&self, key: &str) -> String {
        self.asked
            .borrow()
            .iter()
            .find(|path| !path.contains('[') && path.replace('.', "_") == key)
            .map_or_else(String::new, |path| {
                let name = path.replace('.', "__").to_ascii_uppercase();
                format!("; did you mean GIGAMERGE_{name}?")
            })
    }

    pub(super) fn into_parts(self) -> (Vec<Problem>, Vec<String>, BTreeSet<String>) {
        (
            self.problems.into_inner(),
            self.warnings.into_inner(),
            self.asked.into_inner(),
        )
    }
}

/// `; did you mean "x"?` when a known word is close enough, else nothing.
pub(super) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    // Longer words cannot be typing mistakes, and the table below is quadratic.
    if word.len() > 64 {
        return String::new();
    }
    let nearest = known
        .into_iter()
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .min();
    match nearest {
        Some((distance, candidate)) if distance <= 1 + candidate.len() / 4 => {
            format!("; did you mean \"{candidate}\"?")
        }
        _ => String::new(),
    }
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one word into the other.
fn edit_distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for (row, cells) in rows.iter_mut().enumerate() {
        cells[0] = row;
    }
    for (column, cell) in rows[0].iter_mut().enumerate() {
        *cell = column;
    }
    for i in 1..=left.len() {
        for j in 1..=right.len() {
            let is_replaced = usize::from(left[i - 1] != right[j - 1]);
            let mut distance = (rows[i - 1][j] + 1)
                .min(rows[i][j - 1] + 1)
                .min(rows[i - 1][j - 1] + is_replaced);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                distance = distance.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = distance;
        }
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_mistake_finds_its_word_and_a_stranger_does_not() {
        let known = ["concurrency", "lease", "writers"];
        assert_eq!(
            did_you_mean("concurency", known),
            "; did you mean \"concurrency\"?"
        );
        assert_eq!(did_you_mean("laese", known), "; did you mean \"lease\"?");
        assert_eq!(did_you_mean("colour", known), "");
    }

    #[test]
    fn a_long_list_of_problems_is_cut() {
        let list = (0..250)
            .map(|i| Problem {
                place: format!("p{i}"),
                message: "bad".to_owned(),
            })
            .collect();
        let text = Problems { file: None, list }.to_string();
        assert!(text.starts_with("the configuration has 250 problems:\n  p0: bad"));
        assert!(text.ends_with("\n  and 150 more"));
    }
}
