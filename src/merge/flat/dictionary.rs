//! Dictionaries of one column and row group, and when they pay.

use std::hash::Hash;

use super::{DICTIONARY_BYTES_MAX, Limits, packing::bit_width};

/// Entries, at most; places of hash tables count from 1.
const ENTRIES_MAX: usize = 1 << 17;
/// Places of a new hash table.
const TABLE_MIN: usize = 1 << 10;
/// After so many values of a page it is judged whether a dictionary may pay at all.
pub(super) const EARLY_ROWS: usize = 2048;
/// Pages with fewer values say nothing about others.
const FEW_VALUES: usize = 256;
/// As long as they take no more bytes.
const FEW_BYTES: usize = 32 << 10;
/// Row groups that go without a dictionary after one did not pay.
const SKIPPED_GROUPS: u8 = 8;

/// A value as wide as a machine word, or half of one.
pub(super) trait Word: Copy + Eq + Hash + Default + Send + 'static {
    const BYTES: usize;
    fn put(self, into: &mut Vec<u8>);
    fn bits(self) -> u64;
}

impl Word for u64 {
    const BYTES: usize = 8;

    fn put(self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.to_le_bytes());
    }

    fn bits(self) -> u64 {
        self
    }
}

impl Word for u32 {
    const BYTES: usize = 4;

    fn put(self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.to_le_bytes());
    }

    fn bits(self) -> u64 {
        u64::from(self)
    }
}

/// Multiplies to twice the width and folds, so that high bits count as much as low ones:
/// rounded decimals differ in few of them.
fn spread(bits: u64) -> u64 {
    let product = u128::from(bits ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
    #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
    let folded = (product >> 64) as u64 ^ product as u64;
    folded
}

/// Where entries are by their hash. Entries themselves are elsewhere.
#[derive(Default)]
struct Table {
    /// Entry + 1; 0 where there is none.
    places: Vec<u32>,
    count: usize,
}

impl Table {
    fn bytes(&self) -> usize {
        self.places.len() * 4
    }

    /// The entry for which `is_it`, or `Err` with the place of a new one.
    #[inline]
    fn find(&self, hash: u64, is_it: impl Fn(usize) -> bool) -> Result<u32, usize> {
        let mask = self.places.len() - 1;
        #[expect(clippy::cast_possible_truncation, reason = "it is masked")]
        let mut place = hash as usize & mask;
        loop {
            match self.places[place] {
                0 => return Err(place),
                entry if is_it(entry as usize - 1) => return Ok(entry - 1),
                _ => place = (place + 1) & mask,
            }
        }
    }

    /// Doubles the table when it is half full.
    fn make_room(&mut self, hash_of: impl Fn(usize) -> u64) {
        if self.count * 2 < self.places.len() {
            return;
        }
        self.places = vec![0; (self.places.len() * 2).max(TABLE_MIN)];
        for entry in 0..self.count {
            if let Err(place) = self.find(hash_of(entry), |_| false) {
                // Entries are far fewer than 32 bits count.
                self.places[place] = u32::try_from(entry).unwrap_or(0) + 1;
            }
        }
    }

    fn insert(&mut self, place: usize) -> u32 {
        let entry = u32::try_from(self.count).unwrap_or(0);
        self.places[place] = entry + 1;
        self.count += 1;
        entry
    }
}

/// Distinct words.
#[derive(Default)]
pub(super) struct WordDictionary<T> {
    table: Table,
    pub(super) values: Vec<T>,
}

impl<T: Word> WordDictionary<T> {
    /// The place of a value.
    #[inline]
    pub(super) fn index(&mut self, value: T) -> u32 {
        let values = &self.values;
        self.table.make_room(|entry| spread(values[entry].bits()));
        match self
            .table
            .find(spread(value.bits()), |entry| values[entry] == value)
        {
            Ok(entry) => entry,
            Err(place) => {
                self.values.push(value);
                self.table.insert(place)
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.values.len() * T::BYTES
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.values.capacity() * T::BYTES + self.table.bytes()
    }
}

/// Distinct texts.
pub(in crate::merge) struct TextDictionary {
    table: Table,
    hasher: ahash::RandomState,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Default for TextDictionary {
    fn default() -> Self {
        // Nobody who writes files can know which texts fall on one place.
        let seed = || fastrand::u64(..);
        Self {
            table: Table::default(),
            hasher: ahash::RandomState::with_seeds(seed(), seed(), seed(), seed()),
            bytes: Vec::new(),
            ends: Vec::new(),
        }
    }
}

impl TextDictionary {
    /// The place of a text.
    #[inline]
    pub(in crate::merge) fn index(&mut self, text: &[u8]) -> u32 {
        let (bytes, ends, hasher) = (&self.bytes, &self.ends, &self.hasher);
        self.table
            .make_room(|entry| hasher.hash_one(text_at(bytes, ends, entry)));
        let found = self.table.find(hasher.hash_one(text), |entry| {
            text_at(bytes, ends, entry) == text
        });
        match found {
            Ok(entry) => entry,
            Err(place) => {
                self.bytes.extend_from_slice(text);
                self.ends.push(self.bytes.len());
                self.table.insert(place)
            }
        }
    }

    pub(in crate::merge) fn get(&self, entry: usize) -> &[u8] {
        text_at(&self.bytes, &self.ends, entry)
    }

    pub(in crate::merge) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of one text.
    pub(in crate::merge) fn length(&self, entry: usize) -> usize {
        self.get(entry).len()
    }

    /// Bytes of the first texts.
    pub(in crate::merge) fn bytes_of(&self, count: usize) -> usize {
        count.checked_sub(1).map_or(0, |last| self.ends[last])
    }

    /// Bytes of the texts.
    pub(in crate::merge) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(in crate::merge) fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * 8 + self.table.bytes()
    }
}

fn text_at<'a>(bytes: &'a [u8], ends: &[usize], entry: usize) -> &'a [u8] {
    let start = entry.checked_sub(1).map_or(0, |before| ends[before]);
    &bytes[start..ends[entry]]
}

/// Whether a column uses a dictionary, decided page by page.
pub(super) struct Policy {
    limits: Limits,
    /// Row groups that still go without.
    skipped: u8,
    /// Memory taken for the dictionary in use.
    taken_bytes: usize,
    pub(super) is_on: bool,
    pages: usize,
    /// What compression leaves of pages without a dictionary, measured once.
    plain_part: Option<f64>,
}

/// A page for which a dictionary is in question.
pub(super) struct Offer {
    /// Values that are not null.
    pub(super) values: usize,
    /// Bytes that they take without a dictionary.
    pub(super) plain_bytes: usize,
    /// Entries of the dictionary with this page.
    pub(super) entries: usize,
    /// Bytes of the entries that came with this page.
    pub(super) new_bytes: usize,
    /// Bytes of all entries.
    pub(super) bytes: usize,
    /// Bytes that the dictionary takes in memory.
    pub(super) memory_bytes: usize,
}

impl Policy {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            skipped: 0,
            taken_bytes: 0,
            is_on: false,
            pages: 0,
            plain_part: None,
        }
    }

    /// Decides whether a row group begins with a dictionary.
    pub(super) fn start_group(&mut self) {
        self.pages = 0;
        self.is_on = self.skipped == 0;
        self.skipped = self.skipped.saturating_sub(1);
    }

    /// The dictionary is gone.
    pub(super) fn end_group(&mut self) {
        self.limits.give_back(std::mem::take(&mut self.taken_bytes));
    }

    /// Whether the first rows of a row group say already that a dictionary does not pay.
    pub(super) fn is_hopeless(&self, values: usize, entries: usize) -> bool {
        self.pages == 0 && values >= EARLY_ROWS && entries > values - values / 8
    }

    /// Turns the dictionary off for the rest of the row group.
    pub(super) fn give_up(&mut self) {
        self.is_on = false;
        if self.pages == 0 {
            self.skipped = SKIPPED_GROUPS;
        }
    }

    /// Bytes of a row group with a dictionary and without, if all rows are like these: more will
    /// come, and fewer of their values will be new. What if all values were equally frequent?
    fn expected_bytes(&self, offer: &Offer) -> (f64, f64) {
        let rows = self.limits.row_group_rows.max(offer.values);
        let entries = expected_entries(offer.entries, offer.values, rows);
        let entry_bytes = offer.bytes as f64 / offer.entries.max(1) as f64;
        let value_bytes = offer.plain_bytes as f64 / offer.values.max(1) as f64;
        // Half a bit more or less does not matter, entries may be few.
        let width = entries.max(2.0).log2().ceil();
        let rows = rows as f64;
        (
            entries * entry_bytes + rows * width / 8.0,
            rows * value_bytes,
        )
    }

    /// Whether it depends on what compression does to pages without a dictionary.
    pub(super) fn asks_for_plain_part(&self, offer: &Offer) -> bool {
        let (with, without) = self.expected_bytes(offer);
        self.pages == 0 && self.plain_part.is_none() && with > without / 4.0 && with < without
    }

    /// Tells what compression leaves of them.
    pub(super) fn set_plain_part(&mut self, part: f64) {
        self.plain_part = Some(part);
    }

    /// Whether a page is written with the dictionary. After a `false` no page of the row group is.
    pub(super) fn accepts(&mut self, offer: &Offer) -> bool {
        if offer.values < FEW_VALUES && offer.bytes <= FEW_BYTES {
            // A page of nulls says nothing about the next one.
            return true;
        }
        let width = bit_width(offer.entries.saturating_sub(1) as u64) as usize;
        let index_bytes = offer.values * width / 8;
        let plain_part = self.plain_part.unwrap_or(1.0);
        let pays = if self.pages == 0 {
            let (with, without) = self.expected_bytes(offer);
            with < without * plain_part * 0.9
        } else {
            ((offer.new_bytes + index_bytes) as f64) < offer.plain_bytes as f64 * plain_part
        };
        let more = offer.memory_bytes.saturating_sub(self.taken_bytes);
        let is_accepted = pays
            && offer.entries <= ENTRIES_MAX
            && offer.bytes <= DICTIONARY_BYTES_MAX
            && self.limits.take(more);
        if is_accepted {
            self.taken_bytes += more;
            self.pages += 1;
        } else {
            self.give_up();
        }
        is_accepted
    }
}

/// How many distinct values `rows` rows have, when `sample` of them have `entries`.
fn expected_entries(entries: usize, sample: usize, rows: usize) -> f64 {
    let (entries, sample) = (entries as f64, sample as f64);
    if rows as f64 <= sample {
        return entries;
    }
    // Of `all` equally frequent values, n rows have all * (1 - e^(-n / all)).
    let seen = |all: f64, rows: f64| all * -(-rows / all).exp_m1();
    let (mut low, mut high) = (entries, entries * 1024.0);
    for _ in 0..40 {
        let middle = (low * high).sqrt();
        if seen(middle, sample) < entries {
            low = middle;
        } else {
            high = middle;
        }
    }
    seen(high, rows as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_a_place_and_places_count_up() {
        let mut dictionary = WordDictionary::<u64>::default();
        let places: Vec<u32> = (0..5000_u64).map(|i| dictionary.index(i % 1700)).collect();
        assert!(
            places
                .iter()
                .zip(0_u64..)
                .all(|(place, i)| u64::from(*place) == i % 1700)
        );
        assert_eq!(dictionary.values.len(), 1700);
        let mut texts = TextDictionary::default();
        let text = |i: usize| "x".repeat(i % 900);
        for i in 0..3000 {
            assert_eq!(texts.index(text(i).as_bytes()) as usize, i % 900);
        }
        assert_eq!(texts.get(7), b"xxxxxxx");
        assert_eq!((texts.get(0), texts.len()), (&b""[..], 900));
    }

    #[test]
    fn rounded_decimals_do_not_fall_on_few_places() {
        let mut dictionary = WordDictionary::<u64>::default();
        for i in 0..20_000 {
            dictionary.index((f64::from(i) / 4.0).to_bits());
        }
        let mask = dictionary.table.places.len() - 1;
        #[expect(clippy::cast_possible_truncation, reason = "masked")]
        let homes: std::collections::HashSet<usize> = dictionary
            .values
            .iter()
            .map(|value| spread(*value) as usize & mask)
            .collect();
        assert!(homes.len() > 14_000, "{} places", homes.len());
    }

    fn policy(rows: usize) -> Policy {
        let mut policy = Policy::new(Limits::new(1 << 20, rows, 8 << 20));
        policy.start_group();
        policy
    }

    fn offer(values: usize, entries: usize) -> Offer {
        Offer {
            values,
            plain_bytes: values * 8,
            entries,
            new_bytes: entries * 8,
            bytes: entries * 8,
            memory_bytes: entries * 16,
        }
    }

    #[test]
    fn a_dictionary_pays_when_values_come_again() {
        assert!(policy(122_880).accepts(&offer(16_384, 1000)));
        assert!(policy(122_880).accepts(&offer(16_384, 12_000)));
        assert!(!policy(122_880).accepts(&offer(16_384, 16_000)));
        assert!(!policy(16_384).accepts(&offer(16_384, 15_000)));
        assert!(policy(122_880).is_hopeless(2048, 2000));
        assert!(!policy(122_880).is_hopeless(2048, 1000));
    }

    #[test]
    fn dictionaries_of_all_columns_share_their_memory() {
        let limits = Limits::new(1 << 20, 122_880, 20_000);
        let (mut one, mut two) = (Policy::new(limits.clone()), Policy::new(limits));
        one.start_group();
        two.start_group();
        assert!(one.accepts(&offer(16_384, 1000)));
        assert!(!two.accepts(&offer(16_384, 1000)));
        one.end_group();
        let (mut three, wanted) = (Policy::new(one.limits.clone()), offer(16_384, 1000));
        three.start_group();
        assert!(three.accepts(&wanted));
    }
}
