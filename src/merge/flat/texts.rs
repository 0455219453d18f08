//! Columns of texts and bytes.

use std::sync::PoisonError;

use arrow::{
    array::{Array, ArrayRef, AsArray},
    buffer::NullBuffer,
    datatypes::UInt32Type,
};
use parquet::{
    basic::{Compression, Encoding},
    schema::types::ColumnDescPtr,
};

use super::{
    FlatChunk, Limits, Tools,
    chunk::{Chunk, start_body},
    dictionary::{EARLY_ROWS, Offer, Policy, TextDictionary},
    packer::{Packer, WaitingPage},
    packing::{bit_width, put_hybrid},
    text_page::{LEVELS_ROOM, Page, Range, is_text, judge_range, put_text, statistics},
    text_values::{Texts, touch},
};
use crate::merge::{interner::SharedInterner, keys::RowRef, picks::Rows};

/// Texts that are looked at together before they are copied one after the other.
const BLOCK_ROWS: usize = 32;
/// No text has this number.
const NO_ENTRY: u32 = u32::MAX;

/// One column of texts or bytes.
pub(super) struct TextColumn {
    descr: ColumnDescPtr,
    compression: Compression,
    limits: Limits,
    policy: Policy,
    /// Where texts are when rows hold their numbers.
    interner: Option<SharedInterner>,
    /// For each number its entry in the dictionary.
    entries_of: Vec<u32>,
    dictionary: TextDictionary,
    page: Page,
    has_chunk: bool,
    pub(super) packer: Packer,
    /// Entries that pages refer to.
    used_entries: usize,
    range: Range,
    page_range: Range,
}

impl TextColumn {
    pub(super) fn new(
        descr: ColumnDescPtr,
        compression: Compression,
        limits: Limits,
        interner: Option<SharedInterner>,
    ) -> Self {
        Self {
            descr,
            compression,
            policy: Policy::new(limits.clone()),
            limits,
            interner,
            entries_of: Vec::new(),
            dictionary: TextDictionary::default(),
            page: Page::default(),
            has_chunk: false,
            packer: Packer::default(),
            used_entries: 0,
            range: None,
            page_range: None,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.page.body.capacity()
            + self.page.indexes.capacity() * 4
            + self.page.present.capacity()
            + self.entries_of.capacity() * 4
            + self.dictionary.memory_bytes()
            + self.packer.memory_bytes()
    }

    pub(super) fn write(
        &mut self,
        arrays: &[ArrayRef],
        rows: &Rows<'_>,
        tools: &mut Tools,
    ) -> Result<(), String> {
        let nulls: Vec<Option<&NullBuffer>> = arrays
            .iter()
            .map(|array| array.nulls().filter(|nulls| nulls.null_count() > 0))
            .collect();
        if nulls.iter().any(Option::is_some) && self.descr.max_def_level() == 0 {
            return Err("a column that holds no nulls has one".to_owned());
        }
        self.start_chunk();
        let unexpected = "a column has an unexpected type";
        if let Some(interner) = self.interner.clone() {
            let interner = interner.read().unwrap_or_else(PoisonError::into_inner);
            let numbers: Vec<&[u32]> = arrays
                .iter()
                .map(|array| Some(&array.as_primitive_opt::<UInt32Type>()?.values()[..]))
                .collect::<Option<_>>()
                .ok_or(unexpected)?;
            self.entries_of.resize(interner.texts().len(), NO_ENTRY);
            return rows.for_each_block::<BLOCK_ROWS>(|block| {
                let texts = interner.texts();
                if self.has_room_for(block.len()) && nulls.iter().all(Option::is_none) {
                    self.add_block(&numbers, block, texts);
                    return self.end_full_page(tools);
                }
                for at in block {
                    let slot = at.batch as usize;
                    if is_null(nulls[slot], *at) {
                        self.add_null();
                    } else {
                        let number = numbers[slot][at.row as usize] as usize;
                        self.add_numbered(number, texts);
                    }
                    self.end_full_page(tools)?;
                }
                Ok(())
            });
        }
        let texts: Vec<Texts<'_>> = arrays
            .iter()
            .map(|array| Texts::of(array.as_ref()))
            .collect::<Option<_>>()
            .ok_or(unexpected)?;
        let mut found = Vec::with_capacity(BLOCK_ROWS);
        rows.for_each_block::<BLOCK_ROWS>(|block| {
            found.clear();
            found.extend(block.iter().map(|at| {
                let slot = at.batch as usize;
                let is_null = is_null(nulls[slot], *at);
                let text = (!is_null).then(|| texts[slot].get(at.row as usize));
                touch(text.unwrap_or_default());
                text
            }));
            for text in &found {
                match text {
                    Some(text) => self.add_text(text),
                    None => self.add_null(),
                }
                self.end_full_page(tools)?;
            }
            Ok(())
        })
    }

    /// Whether a block of numbered texts ends within the page, and within the part of it after
    /// which the dictionary is judged.
    fn has_room_for(&self, row_count: usize) -> bool {
        let page = &self.page;
        let judged = if page.value_count < EARLY_ROWS {
            EARLY_ROWS
        } else {
            usize::MAX
        };
        self.policy.is_on
            && page.present.is_empty()
            && page.rows + row_count <= self.limits.page_rows()
            && page.value_count + row_count <= judged
    }

    /// Adds texts, none of them null, to a page that has room for them.
    #[inline]
    fn add_block(&mut self, numbers: &[&[u32]], block: &[RowRef], texts: &TextDictionary) {
        let mut text_bytes = 0;
        for at in block {
            let number = numbers[at.batch as usize][at.row as usize] as usize;
            let mut entry = self.entries_of[number];
            if entry == NO_ENTRY {
                entry = self.dictionary.index(texts.get(number));
                self.entries_of[number] = entry;
            }
            self.page.indexes.push(entry);
            text_bytes += texts.length(number);
        }
        self.page.text_bytes += text_bytes;
        self.page.value_count += block.len();
        self.page.rows += block.len();
    }

    fn start_chunk(&mut self) {
        if !self.has_chunk {
            let chunk = Chunk::new(self.descr.clone(), self.compression);
            self.packer.start(chunk);
            self.has_chunk = true;
            self.policy.start_group();
        }
    }

    fn add_null(&mut self) {
        self.page.present.resize(self.page.rows, 1);
        self.page.present.push(0);
        self.page.rows += 1;
    }

    #[inline]
    fn add_numbered(&mut self, number: usize, texts: &TextDictionary) {
        if !self.policy.is_on {
            self.page.put(texts.get(number));
            self.page.count_row();
            return;
        }
        let mut entry = self.entries_of[number];
        if entry == NO_ENTRY {
            entry = self.dictionary.index(texts.get(number));
            self.entries_of[number] = entry;
        }
        self.add_entry(entry, texts.length(number));
    }

    #[inline]
    fn add_text(&mut self, text: &[u8]) {
        if !self.policy.is_on {
            self.page.put(text);
            self.page.count_row();
            return;
        }
        let entry = self.dictionary.index(text);
        self.add_entry(entry, text.len());
    }

    #[inline]
    fn add_entry(&mut self, entry: u32, length: usize) {
        self.page.indexes.push(entry);
        self.page.value_count += 1;
        self.page.text_bytes += length;
        self.page.count_row();
    }

    #[inline]
    fn end_full_page(&mut self, tools: &mut Tools) -> Result<(), String> {
        let page = &self.page;
        let is_full = page.rows >= self.limits.page_rows()
            || !self.policy.is_on && page.body.len() >= self.limits.page_bytes()
            // Whether a dictionary pays is asked before there are too many bytes to go without.
            || self.policy.is_on
                && (page.text_bytes >= 4 * self.limits.page_bytes()
                    || page.value_count == EARLY_ROWS
                        && self.policy.is_hopeless(page.value_count, self.dictionary.len()));
        if is_full {
            self.end_page(tools)
        } else {
            Ok(())
        }
    }

    fn end_page(&mut self, tools: &mut Tools) -> Result<(), String> {
        if self.page.rows == 0 {
            return Ok(());
        }
        if !self.policy.is_on || self.page.value_count == 0 {
            return self.end_plain_page(tools);
        }
        let entries = self.dictionary.len();
        let page = &self.page;
        let known = self.dictionary.bytes_of(self.used_entries);
        let is_accepted = !self.policy.is_hopeless(page.value_count, entries)
            && self.policy.accepts(&Offer {
                values: page.value_count,
                plain_bytes: page.text_bytes + 4 * page.value_count,
                entries,
                new_bytes: self.dictionary.bytes() - known + 4 * (entries - self.used_entries),
                bytes: self.dictionary.bytes() + 4 * entries,
                memory_bytes: self.dictionary.memory_bytes(),
            });
        if is_accepted {
            return self.end_indexed_page(tools);
        }
        self.policy.give_up();
        self.write_again(tools)
    }

    /// Turns a page of dictionary entries into pages of texts.
    fn write_again(&mut self, tools: &mut Tools) -> Result<(), String> {
        let mut page = std::mem::take(&mut self.page);
        let mut indexes = page.indexes.iter();
        let dictionary = std::mem::take(&mut self.dictionary);
        let mut done = Ok(());
        for row in 0..page.rows {
            if page.present.get(row) == Some(&0) {
                self.add_null();
            } else if let Some(entry) = indexes.next() {
                self.page.put(dictionary.get(*entry as usize));
                self.page.count_row();
            }
            done = self.end_full_page(tools);
            if done.is_err() {
                break;
            }
        }
        if self.used_entries > 0 {
            self.dictionary = dictionary;
        }
        page.indexes.clear();
        self.page.indexes = page.indexes;
        done
    }

    fn end_indexed_page(&mut self, tools: &mut Tools) -> Result<(), String> {
        let (scratch, compressing) = tools.parts();
        // Which entries the page uses; each is compared once.
        let used = &mut scratch.present;
        used.clear();
        used.resize(self.dictionary.len(), 0);
        for entry in &self.page.indexes {
            used[*entry as usize] = 1;
        }
        let texts = (0..used.len())
            .filter(|entry| used[*entry] == 1)
            .map(|entry| self.dictionary.get(entry));
        let range = texts.fold(None, |range: Option<(&[u8], &[u8])>, text| match range {
            None => Some((text, text)),
            Some((low, high)) => Some((low.min(text), high.max(text))),
        });
        let range = range.map(|(low, high)| (low.to_vec(), high.to_vec()));
        let body = &mut scratch.body;
        start_body(&self.descr, self.page.rows, &self.page.present, body);
        let width = bit_width(self.dictionary.len().saturating_sub(1) as u64).max(1);
        body.push(width.to_le_bytes()[0]);
        put_hybrid(&self.page.indexes, width, body);
        self.used_entries = self.dictionary.len();
        let mut facts = self.page.facts(Encoding::RLE_DICTIONARY);
        let ranges = (&mut self.range, &mut self.page_range);
        let follows = judge_range(&mut facts, range, ranges, is_text(&self.descr));
        self.packer.with_chunk(compressing, |chunk, compressing| {
            chunk.add_page(facts, body, follows, compressing)
        })?;
        self.page.clear();
        Ok(())
    }

    fn end_plain_page(&mut self, tools: &mut Tools) -> Result<(), String> {
        let (scratch, compressing) = tools.parts();
        let page = &mut self.page;
        if page.body.is_empty() {
            page.body.resize(LEVELS_ROOM, 0);
        }
        // Levels stand directly before the values: short ones in the room left for them.
        let levels = &mut scratch.body;
        start_body(&self.descr, page.rows, &page.present, levels);
        let start = if levels.len() <= LEVELS_ROOM {
            let start = LEVELS_ROOM - levels.len();
            page.body[start..LEVELS_ROOM].copy_from_slice(levels);
            start
        } else {
            levels.extend_from_slice(&page.body[LEVELS_ROOM..]);
            std::mem::swap(levels, &mut page.body);
            0
        };
        let range = (page.value_count > 0).then(|| {
            (
                std::mem::take(&mut page.low),
                std::mem::take(&mut page.high),
            )
        });
        let mut facts = page.facts(Encoding::PLAIN);
        let ranges = (&mut self.range, &mut self.page_range);
        let follows = judge_range(&mut facts, range, ranges, is_text(&self.descr));
        let full = WaitingPage {
            facts,
            follows,
            memory: std::mem::take(&mut page.body),
            start,
        };
        page.body = self.packer.push(full, compressing)?;
        page.clear();
        Ok(())
    }

    pub(super) fn close(&mut self, tools: &mut Tools) -> Result<FlatChunk, String> {
        self.end_page(tools)?;
        // A page that was written again may have left a rest.
        self.end_page(tools)?;
        let (scratch, compressing) = tools.parts();
        let chunk = self.packer.take(compressing)?;
        self.has_chunk = false;
        let statistics = statistics(self.range.as_ref(), chunk.nulls(), &self.descr);
        let body = &mut scratch.body;
        body.clear();
        for entry in 0..self.used_entries {
            put_text(self.dictionary.get(entry), body);
        }
        let dictionary = (self.used_entries > 0).then_some((&body[..], self.used_entries));
        let done = chunk.finish(dictionary, Some(statistics), compressing);
        self.dictionary = TextDictionary::default();
        self.entries_of.clear();
        self.policy.end_group();
        (self.used_entries, self.range, self.page_range) = (0, None, None);
        done
    }
}

#[inline]
fn is_null(nulls: Option<&NullBuffer>, at: RowRef) -> bool {
    nulls.is_some_and(|nulls| nulls.is_null(at.row as usize))
}
