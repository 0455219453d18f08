//! Texts that come again and again, kept once for a whole merge: rows hold their numbers.

use std::sync::{Arc, RwLock};

use super::flat::TextDictionary;

/// Texts of one column, at most.
const TEXTS_MAX: usize = 1 << 17;
/// Bytes of the texts of one column, at most.
const BYTES_MAX: usize = 4 << 20;

/// The texts of one column, shared between who reads and who writes.
pub(super) type SharedInterner = Arc<RwLock<Interner>>;

/// The texts of one column.
#[derive(Default)]
pub(super) struct Interner {
    texts: TextDictionary,
}

impl Interner {
    /// The number of a text; `None` when there is no room for another one.
    pub(super) fn number(&mut self, text: &[u8]) -> Option<u32> {
        let number = self.texts.index(text);
        (self.texts.len() <= TEXTS_MAX && self.texts.bytes() <= BYTES_MAX).then_some(number)
    }

    /// The texts by their numbers.
    pub(super) fn texts(&self) -> &TextDictionary {
        &self.texts
    }
}
