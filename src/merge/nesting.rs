//! How deeply a footer's schema is nested, found without recursion. The decoder walks schemas
//! recursively, and a stack that overflows ends the process: no error can be caught there.
//!
//! Reads the part of Thrift's compact protocol that leads to the schema: the footer is a
//! struct whose field 2 is a list of schema elements, each a struct whose field 5 is its
//! number of children, in the order of a walk from the root.

/// Deeper schemas than this come from no writer of tables.
pub(super) const NESTING_MAX: usize = 100;

const SCHEMA_FIELD: i64 = 2;
const CHILDREN_FIELD: i64 = 5;

/// Depth of the schema; `None` when the bytes are not a footer, which the decoder will say better.
pub(super) fn schema_depth(footer: &[u8]) -> Option<usize> {
    let mut reader = Compact { rest: footer };
    let mut field = 0;
    loop {
        let kind = reader.field(&mut field)?;
        if kind == Kind::Stop {
            return None;
        }
        if field == SCHEMA_FIELD && kind == Kind::List {
            return reader.depth_of_list();
        }
        reader.skip(kind, 0)?;
    }
}

/// Types of the compact protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stop,
    Boolean,
    Byte,
    Integer,
    Double,
    Bytes,
    List,
    Map,
    Struct,
}

impl Kind {
    fn of(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Stop,
            1 | 2 => Self::Boolean,
            3 => Self::Byte,
            4..=6 => Self::Integer,
            7 => Self::Double,
            8 => Self::Bytes,
            9 | 10 => Self::List,
            11 => Self::Map,
            12 => Self::Struct,
            _ => return None,
        })
    }
}

struct Compact<'a> {
    rest: &'a [u8],
}

impl Compact<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn skip_bytes(&mut self, count: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// The next field's type; its number replaces `field`, the number of the one before.
    fn field(&mut self, field: &mut i64) -> Option<Kind> {
        let header = self.byte()?;
        let kind = Kind::of(header & 0x0f)?;
        if kind != Kind::Stop {
            *field = match header >> 4 {
                0 => self.zigzag()?,
                step => field.checked_add(i64::from(step))?,
            };
        }
        Some(kind)
    }

    fn list(&mut self) -> Option<(Kind, u64)> {
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        Some((Kind::of(header & 0x0f)?, count))
    }

    /// Skips a value. Its own nesting is bounded, too.
    fn skip(&mut self, kind: Kind, depth: usize) -> Option<()> {
        if depth > NESTING_MAX {
            return None;
        }
        match kind {
            Kind::Stop | Kind::Boolean => Some(()),
            Kind::Byte => self.skip_bytes(1),
            Kind::Integer => self.varint().map(|_| ()),
            Kind::Double => self.skip_bytes(8),
            Kind::Bytes => {
                let length = self.varint()?;
                self.skip_bytes(length)
            }
            Kind::List => {
                let (kind, count) = self.list()?;
                self.skip_all(&[kind], count, depth)
            }
            Kind::Map => {
                let count = self.varint()?;
                if count == 0 {
                    return Some(());
                }
                let kinds = self.byte()?;
                self.skip_all(
                    &[Kind::of(kinds >> 4)?, Kind::of(kinds & 0x0f)?],
                    count,
                    depth,
                )
            }
            Kind::Struct => {
                let mut field = 0;
                loop {
                    let kind = self.field(&mut field)?;
                    if kind == Kind::Stop {
                        return Some(());
                    }
                    self.skip(kind, depth + 1)?;
                }
            }
        }
    }

    fn skip_all(&mut self, kinds: &[Kind], count: u64, depth: usize) -> Option<()> {
        for _ in 0..count {
            for &kind in kinds {
                // Inside a list a boolean takes a byte of its own.
                let kind = if kind == Kind::Boolean {
                    Kind::Byte
                } else {
                    kind
                };
                if kind == Kind::Stop {
                    return None;
                }
                self.skip(kind, depth + 1)?;
            }
        }
        Some(())
    }

    /// Follows the children counts of a list of schema elements.
    fn depth_of_list(&mut self) -> Option<usize> {
        let (kind, count) = self.list()?;
        if kind != Kind::Struct {
            return None;
        }
        // For each open group, how many children are still to come.
        let mut open: Vec<u64> = Vec::new();
        let mut deepest = 0;
        for _ in 0..count {
            let mut children = 0;
            let mut field = 0;
            loop {
                let kind = self.field(&mut field)?;
                match kind {
                    Kind::Stop => break,
                    Kind::Integer if field == CHILDREN_FIELD => {
                        children = u64::try_from(self.zigzag()?).ok()?;
                    }
                    _ => self.skip(kind, 0)?,
                }
            }
            if let Some(left) = open.last_mut() {
                *left = left.saturating_sub(1);
            }
            open.push(children);
            deepest = deepest.max(open.len());
            while open.last() == Some(&0) {
                open.pop();
            }
        }
        Some(deepest)
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    /// A footer with nothing but a version and a chain of groups, each in the one before.
    fn chain(length: u64) -> Vec<u8> {
        let mut footer = vec![0x15, 0x02, 0x19, 0xfc];
        let mut count = length + 1;
        while count >= 0x80 {
            footer.push(u8::try_from(count & 0x7f).expect("seven bits") | 0x80);
            count >>= 7;
        }
        footer.push(u8::try_from(count).expect("seven bits"));
        for _ in 0..length {
            footer.extend([0x48, 1, b'g', 0x15, 0x02, 0]);
        }
        footer.extend([0x15, 0x04, 0x38, 1, b'x', 0, 0]);
        footer
    }

    #[test]
    fn depth_is_the_longest_way_from_the_root() {
        assert_eq!(schema_depth(&chain(1)), Some(2));
        assert_eq!(schema_depth(&chain(3)), Some(4));
        // A root with two leaves.
        let flat = [
            0x15, 0x02, 0x19, 0x3c, 0x48, 1, b's', 0x15, 0x04, 0, 0x15, 0x04, 0x38, 1, b'a', 0,
            0x15, 0x04, 0x38, 1, b'b', 0, 0,
        ];
        assert_eq!(schema_depth(&flat), Some(2));
    }

    #[test]
    fn a_hundred_thousand_levels_take_no_stack() {
        assert_eq!(schema_depth(&chain(100_000)), Some(100_001));
    }

    #[test]
    fn what_is_no_footer_has_no_depth() {
        assert_eq!(schema_depth(&[]), None);
        assert_eq!(schema_depth(&[0xff; 40]), None);
        assert_eq!(schema_depth(&chain(5)[..20]), None);
    }
}
