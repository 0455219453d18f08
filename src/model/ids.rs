//! Names of layers and writers, ids of plans.

use std::fmt;

use super::ModelError;

/// Longest name accepted, in bytes; file systems end at 255.
const NAME_BYTES_MAX: usize = 200;

pub(super) fn check_name(what: &'static str, name: &str) -> Result<(), ModelError> {
    let reason = if name.len() > NAME_BYTES_MAX {
        "it is longer than 200 bytes"
    } else if name.contains(':') {
        "it holds a colon, which separates the parts of a key"
    } else if name.contains(['/', '\\']) {
        "it holds a slash"
    } else if name.chars().any(char::is_control) {
        "it holds a control character"
    } else if name == "." || name == ".." {
        "it is a folder reference"
    } else {
        return Ok(());
    };
    Err(ModelError::Name {
        what,
        name: name.to_owned(),
        reason,
    })
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $type(String);

        impl $type {
            /// Checks and wraps a name; empty is legal on the wire.
            pub fn parse(name: &str) -> Result<Self, ModelError> {
                check_name($what, name)?;
                Ok(Self(name.to_owned()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A storage layer's name. Empty in entries of older clients: it then stands for the first layer.
    LayerName,
    "layer name"
);
name_type!(
    /// Who wrote a file; empty for nobody in particular. A queue belongs to one layer and one writer.
    WriterId,
    "writer id"
);

/// Identifies a plan within its queue. Ids of the original scripts repeat within
/// a millisecond, so an id alone never proves ownership: a [`Lease`](super::Lease) does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlanId(String);

impl PlanId {
    /// Wraps an id as it came; any text is legal.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// A fresh random id.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().to_string())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
