//! A table and the database it belongs to.

use std::fmt;

use super::{ModelError, ids::check_name};

/// One table of one database; both names are safe as parts of keys and folders.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableRef {
    database: String,
    table: String,
}

impl TableRef {
    /// Checks both names: not empty, no `:`, no `/`, no control characters.
    pub fn new(database: &str, table: &str) -> Result<Self, ModelError> {
        for (what, name) in [("database name", database), ("table name", table)] {
            check_name(what, name)?;
            if name.is_empty() {
                return Err(ModelError::Name {
                    what,
                    name: String::new(),
                    reason: "it is empty",
                });
            }
        }
        Ok(Self {
            database: database.to_owned(),
            table: table.to_owned(),
        })
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }
}

impl fmt::Display for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.database, self.table)
    }
}
