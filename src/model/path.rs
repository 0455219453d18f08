//! Paths of data files inside their table: `date=2024-01-15/hour=14/<name>.<iteration>.parquet`.

use std::fmt;

use super::ModelError;

/// Longest path accepted, in bytes.
const PATH_BYTES_MAX: usize = 1024;

/// How often the rows of a file were merged, from 1 for what a writer made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Iteration(pub u32);

impl Iteration {
    /// The iteration of a merge's output.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Iteration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A partition: the path without its last part, such as `date=2024-01-15/hour=14`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionDir(String);

impl PartitionDir {
    /// Checks that the folder stays inside its table (INSIDE-TABLE).
    pub fn parse(dir: &str) -> Result<Self, ModelError> {
        check_inside(dir)?;
        Ok(Self(dir.to_owned()))
    }

    /// The folder as text, with `/` between its parts.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A file of this partition.
    pub fn file(&self, stem: &str, iteration: Iteration) -> Result<DataPath, ModelError> {
        DataPath::parse(&format!("{}/{stem}.{iteration}.parquet", self.0))
    }
}

impl fmt::Display for PartitionDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A data file's path inside its table. It has a folder, a stem, an iteration, and
/// never leaves the table's folder (INSIDE-TABLE).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DataPath {
    text: String,
    dir_bytes: usize,
    iteration: Iteration,
}

impl DataPath {
    /// Parses `dir/name.<iteration>.parquet`.
    pub fn parse(path: &str) -> Result<Self, ModelError> {
        let refuse = |reason| ModelError::Path {
            path: path.chars().take(300).collect(),
            reason,
        };
        check_inside(path)?;
        let (dir, name) = path
            .rsplit_once('/')
            .ok_or_else(|| refuse("it has no folder"))?;
        let shape = "its name is not <name>.<iteration>.parquet";
        let stem = name.strip_suffix(".parquet").ok_or_else(|| refuse(shape))?;
        let (stem, digits) = stem.rsplit_once('.').ok_or_else(|| refuse(shape))?;
        if stem.is_empty() || digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(refuse(shape));
        }
        let iteration = digits
            .parse()
            .map_err(|_| refuse("its iteration is too large"))?;
        if iteration == 0 {
            return Err(refuse("iterations count from 1"));
        }
        Ok(Self {
            text: path.to_owned(),
            dir_bytes: dir.len(),
            iteration: Iteration(iteration),
        })
    }

    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The partition it lies in.
    pub fn dir(&self) -> PartitionDir {
        PartitionDir(self.text[..self.dir_bytes].to_owned())
    }

    /// The part up to the first `/`, which names the Redis hash.
    pub fn first_folder(&self) -> &str {
        self.text.split('/').next().unwrap_or_default()
    }

    /// The file's name without its folder.
    pub fn file_name(&self) -> &str {
        &self.text[self.dir_bytes + 1..]
    }

    /// The iteration in its name.
    pub fn iteration(&self) -> Iteration {
        self.iteration
    }
}

impl fmt::Display for DataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn check_inside(path: &str) -> Result<(), ModelError> {
    let reason = if path.is_empty() {
        "it is empty"
    } else if path.len() > PATH_BYTES_MAX {
        "it is longer than 1024 bytes"
    } else if path.starts_with('/') {
        "it is absolute"
    } else if path.chars().any(|c| c.is_control() || c == '\\') {
        "it holds a control character or a backslash"
    } else if path
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..")
    {
        "a part of it is empty, '.' or '..'"
    } else if path.split('/').any(|part| part.len() > 255) {
        "a part of it is longer than 255 bytes"
    } else {
        return Ok(());
    };
    Err(ModelError::Path {
        path: path.chars().take(300).collect(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_knows_its_partition_and_iteration() {
        let path = DataPath::parse("date=2024-01-15/hour=14/a.b.12.parquet").unwrap();
        assert_eq!(path.dir().as_str(), "date=2024-01-15/hour=14");
        assert_eq!(path.first_folder(), "date=2024-01-15");
        assert_eq!(path.file_name(), "a.b.12.parquet");
        assert_eq!(path.iteration(), Iteration(12));
        assert_eq!(
            path.dir().file("x", Iteration(13)).unwrap().file_name(),
            "x.13.parquet"
        );
    }

    #[test]
    fn a_path_that_would_leave_its_table_is_refused() {
        for bad in [
            "",
            "/a/x.1.parquet",
            "../x.1.parquet",
            "a/../x.1.parquet",
            "a//x.1.parquet",
            "a/./x.1.parquet",
            "a\\..\\b/x.1.parquet",
            "a/x\0.1.parquet",
            "x.1.parquet",
            "a/x.parquet",
            "a/.1.parquet",
            "a/x.0.parquet",
            "a/x.-1.parquet",
            "a/x.99999999999.parquet",
            "a/x.1.txt",
            "a/x.+1.parquet",
        ] {
            assert!(DataPath::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(DataPath::parse(&format!("a/{}.1.parquet", "x".repeat(2000))).is_err());
    }
}
