//! What a footer's bytes would become, found before anything is built of them. The decoder walks
//! schemas recursively and trusts their counts of children; a stack that overflows and memory
//! that is not there end the process: no error can be caught there.
//!
//! The footer is a struct: field 2 lists the schema's elements in the order of a walk from the
//! root, field 4 the row groups, each of which lists column chunks in its field 1.

use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};

use super::thrift::{Compact, Kind};

/// An element of a schema: as it is read, as Parquet's type and column, as Arrow's field.
const ELEMENT_BYTES: u64 = 1024;
/// A name among those that lead to a column.
const NAME_BYTES: u64 = 32;
/// A pair of notes; they are kept twice, and Arrow's schema among them is decoded.
const NOTE_FACTOR: u64 = 4;

/// What a footer would become.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FooterShape {
    /// Levels of the schema, from 1 for a root alone.
    pub(super) depth: usize,
    /// Memory for all of it, estimated from above.
    pub(super) held_bytes: u64,
    /// Some columns are encrypted.
    pub(super) has_secrets: bool,
}

/// Walks a footer; `None` when it is damaged.
pub(super) fn footer_shape(footer: &[u8]) -> Option<FooterShape> {
    let mut reader = Compact::new(footer);
    let mut shape = FooterShape::default();
    let mut field = 0;
    loop {
        match (reader.field(&mut field)?, field) {
            (Kind::Stop, _) => break,
            (Kind::List, 2) => schema(&mut reader, &mut shape)?,
            (Kind::List, 4) => row_groups(&mut reader, &mut shape)?,
            (Kind::List, 5) => {
                let before = reader.held_bytes;
                reader.skip(Kind::List)?;
                let notes = reader.held_bytes - before;
                reader.hold(notes.saturating_mul(NOTE_FACTOR - 1));
            }
            (Kind::List, 7) => reader.skip(Kind::List)?,
            // The decoder takes these for lists, whatever type they have.
            (_, 2 | 4 | 5 | 7) => return None,
            (kind, _) => reader.skip(kind)?,
        }
    }
    shape.held_bytes = reader.held_bytes;
    Some(shape)
}

/// Follows the counts of children of a schema's elements.
fn schema(reader: &mut Compact<'_>, shape: &mut FooterShape) -> Option<()> {
    let count = reader.structs()?;
    // For each open group: how many children are still to come, and the bytes of its name.
    let mut open: Vec<(u64, u64)> = Vec::new();
    let mut path_bytes = 0_u64;
    for done in 1..=count {
        let (children, name_bytes) = element(reader)?;
        if children > count - done {
            return None;
        }
        reader.hold(ELEMENT_BYTES.saturating_add(children.saturating_mul(8)));
        if let Some((left, _)) = open.last_mut() {
            *left = left.saturating_sub(1);
        }
        let own_bytes = name_bytes + NAME_BYTES;
        if children == 0 {
            // A column knows all names that lead to it.
            reader.hold(path_bytes.saturating_add(own_bytes));
        }
        open.push((children, own_bytes));
        path_bytes = path_bytes.saturating_add(own_bytes);
        shape.depth = shape.depth.max(open.len());
        while let Some((_, name_bytes)) = open.pop_if(|(left, _)| *left == 0) {
            path_bytes = path_bytes.saturating_sub(name_bytes);
        }
    }
    Some(())
}

/// Children and bytes of the name of one element.
fn element(reader: &mut Compact<'_>) -> Option<(u64, u64)> {
    let (mut children, mut name_bytes, mut field) = (0, 0, 0);
    loop {
        match (reader.field(&mut field)?, field) {
            (Kind::Stop, _) => return Some((children, name_bytes)),
            (Kind::Integer, 5) => children = u64::try_from(reader.zigzag()?).ok()?,
            (Kind::Bytes, 4) => name_bytes = reader.bytes()?,
            // The decoder would take the same bytes for something else.
            (kind, 1..=3 | 6..=9) if kind != Kind::Integer => return None,
            (_, 4 | 5) => return None,
            (kind, _) => reader.skip(kind)?,
        }
    }
}

fn row_groups(reader: &mut Compact<'_>, shape: &mut FooterShape) -> Option<()> {
    let count = reader.structs()?;
    reader.hold(count.saturating_mul(size_of::<RowGroupMetaData>() as u64));
    for _ in 0..count {
        let mut field = 0;
        loop {
            match (reader.field(&mut field)?, field) {
                (Kind::Stop, _) => break,
                (Kind::List, 1) => {
                    let chunk_count = reader.structs()?;
                    reader
                        .hold(chunk_count.saturating_mul(size_of::<ColumnChunkMetaData>() as u64));
                    for _ in 0..chunk_count {
                        chunk(reader, shape)?;
                    }
                }
                (_, 1) => return None,
                (kind, _) => reader.skip(kind)?,
            }
        }
    }
    Some(())
}

fn chunk(reader: &mut Compact<'_>, shape: &mut FooterShape) -> Option<()> {
    let mut field = 0;
    loop {
        match (reader.field(&mut field)?, field) {
            (Kind::Stop, _) => return Some(()),
            (Kind::Struct, 3) => chunk_metadata(reader)?,
            (_, 3) => return None,
            (kind, _) => {
                // 8 names a column's key, 9 is its encrypted description.
                shape.has_secrets |= matches!(field, 8 | 9);
                reader.skip(kind)?;
            }
        }
    }
}

fn chunk_metadata(reader: &mut Compact<'_>) -> Option<()> {
    let mut field = 0;
    loop {
        let (kind, before) = (reader.field(&mut field)?, reader.held_bytes);
        if kind == Kind::Stop {
            return Some(());
        }
        reader.skip(kind)?;
        // Encodings become a mask; the path and the notes are not kept.
        if matches!(field, 2 | 3 | 8 | 13) {
            reader.held_bytes = before;
        }
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    /// A footer with nothing but a version and a chain of groups, each in the one before.
    fn chain(length: u64) -> Vec<u8> {
        let mut footer = vec![0x15, 0x02, 0x19, 0xfc];
        varint(&mut footer, length + 1);
        for _ in 0..length {
            footer.extend([0x48, 1, b'g', 0x15, 0x02, 0]);
        }
        footer.extend([0x15, 0x04, 0x38, 1, b'x', 0, 0]);
        footer
    }

    fn varint(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
            value >>= 7;
        }
        out.push(u8::try_from(value).expect("seven bits"));
    }

    fn depth(footer: &[u8]) -> Option<usize> {
        footer_shape(footer).map(|shape| shape.depth)
    }

    #[test]
    fn depth_is_the_longest_way_from_the_root() {
        assert_eq!(depth(&chain(1)), Some(2));
        assert_eq!(depth(&chain(3)), Some(4));
        // A root with two leaves.
        let flat = [
            0x15, 0x02, 0x19, 0x3c, 0x48, 1, b's', 0x15, 0x04, 0, 0x15, 0x04, 0x38, 1, b'a', 0,
            0x15, 0x04, 0x38, 1, b'b', 0, 0,
        ];
        assert_eq!(depth(&flat), Some(2));
    }

    #[test]
    fn a_hundred_thousand_levels_take_no_stack() {
        assert_eq!(depth(&chain(100_000)), Some(100_001));
    }

    #[test]
    fn what_is_no_footer_has_no_shape() {
        assert_eq!(footer_shape(&[]), None);
        assert_eq!(footer_shape(&[0xff; 40]), None);
        assert_eq!(footer_shape(&chain(5)[..20]), None);
    }

    #[test]
    fn a_group_that_claims_more_children_than_there_are_elements_is_damaged() {
        // A root that claims 2^31 - 1 children, and one leaf.
        let mut footer = vec![0x15, 0x02, 0x19, 0x2c, 0x48, 1, b's', 0x15];
        varint(&mut footer, (1 << 32) - 2);
        footer.extend([0, 0x15, 0x04, 0x38, 1, b'a', 0, 0]);
        assert_eq!(footer_shape(&footer), None);
    }

    #[test]
    fn long_names_on_the_way_to_many_columns_count_for_each_column() {
        let footer = |name_bytes: usize| {
            let mut footer = vec![0x15, 0x02, 0x19, 0xfc];
            varint(&mut footer, 102);
            footer.extend([0x48, 1, b's', 0x15, 0x02, 0]);
            footer.push(0x48);
            varint(&mut footer, name_bytes as u64);
            footer.resize(footer.len() + name_bytes, b'g');
            footer.extend([0x15, 0xc8, 0x01, 0]);
            for _ in 0..100 {
                footer.extend([0x15, 0x04, 0x38, 1, b'x', 0]);
            }
            footer.push(0);
            footer_shape(&footer).expect("sound").held_bytes
        };
        assert!(footer(10_000) > footer(10) + 100 * 9_000);
    }

    #[test]
    fn encrypted_columns_are_seen() {
        // One row group with one chunk whose field 8 is a union of nothing.
        let footer = |chunk: &[u8]| {
            let mut footer = vec![0x49, 0x1c, 0x19, 0x1c];
            footer.extend(chunk);
            footer.extend([0, 0, 0]);
            footer_shape(&footer).expect("sound").has_secrets
        };
        assert!(!footer(&[0x26, 0x02]));
        assert!(footer(&[0x26, 0x02, 0x6c, 0]));
    }
}
