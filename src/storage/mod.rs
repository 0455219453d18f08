//! Where the bytes are: layers by name, and files that appear only when they are complete.
//!
//! A file of table `t` in database `d` lies at `<root>/d/t/data/<path>`; unfinished ones
//! in `<root>/d/t/tmp/`, on the same file system, so that publishing is one rename.

mod copy;
mod layer;
mod workspace;

use std::path::PathBuf;

pub use copy::{Copied, copy_checked};
pub use layer::{Layer, publish_file};
pub use workspace::{Workspace, create_new};

use crate::{config::LayerConfig, model::LayerName};

/// Why bytes could not be read, published or deleted.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// INSIDE-TABLE: a link below the table's folder leads to it, or it is no file.
    #[error("{}: is a link or leads out of its table's folder; it is not touched", path.display())]
    Outside {
        /// The file as it was named.
        path: PathBuf,
    },
    /// A file of that name is there already; files are never overwritten.
    #[error("{}: exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A copy is not what its original is.
    #[error("{}: differs from {} after it was copied; is the disk failing, or was the file changed?", path.display(), source_path.display())]
    Differs {
        /// The copy.
        path: PathBuf,
        /// The original.
        source_path: PathBuf,
    },
    /// An entry or plan names a layer that the configuration does not.
    #[error("layer {name:?} is not configured; add it to [[layers]]")]
    UnknownLayer {
        /// Its name.
        name: String,
    },
}

/// All layers, in the order of the configuration.
#[derive(Debug, Clone)]
pub struct Layers {
    layers: Vec<Layer>,
}

impl Layers {
    /// Names the layers; opens nothing.
    pub fn new(layers: &[LayerConfig]) -> Self {
        Self {
            layers: layers
                .iter()
                .map(|layer| Layer::new(layer.name.clone(), layer.root.clone()))
                .collect(),
        }
    }

    /// The layer of that name; the empty name of older clients stands for the first layer.
    pub fn get(&self, name: &LayerName) -> Result<&Layer, StorageError> {
        let found = if name.as_str().is_empty() {
            self.layers.first()
        } else {
            self.layers.iter().find(|layer| layer.name() == name)
        };
        found.ok_or_else(|| StorageError::UnknownLayer {
            name: name.to_string(),
        })
    }

    /// Every layer.
    pub fn iter(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter()
    }
}
