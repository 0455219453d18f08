//! Thrift's compact protocol, walked without building anything: what a decoder would allocate
//! is known before it does. Every count is compared with the bytes that are left, since each
//! element takes at least one.

/// Values nested deeper than this come from no writer.
pub(super) const NESTING_MAX: usize = 100;

/// Beside its content, what one string or list costs its holder, at most.
const HOLDER_BYTES: u64 = 64;
/// An element of a list of numbers or small structs that is kept.
const ELEMENT_BYTES: u64 = 32;

/// Types of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Stop,
    Boolean,
    Byte,
    Integer,
    Double,
    Bytes,
    List,
    Map,
    Struct,
    Uuid,
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
            13 => Self::Uuid,
            _ => return None,
        })
    }
}

/// Reads on through bytes; every method gives `None` where they are damaged.
pub(super) struct Compact<'a> {
    rest: &'a [u8],
    /// The last boolean field.
    flag: bool,
    /// What the values passed so far would take in memory, estimated from above.
    pub(super) held_bytes: u64,
}

impl<'a> Compact<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            flag: false,
            held_bytes: 0,
        }
    }

    /// Counts memory that is taken for something else.
    pub(super) fn hold(&mut self, bytes: u64) {
        self.held_bytes = self.held_bytes.saturating_add(bytes);
    }

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

    /// A count of elements that can be there.
    fn count(&mut self) -> Option<u64> {
        self.varint().and_then(|count| self.possible(count))
    }

    fn possible(&self, count: u64) -> Option<u64> {
        (count <= self.rest.len() as u64).then_some(count)
    }

    /// A signed number.
    pub(super) fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// Passes text or bytes; says how many.
    pub(super) fn bytes(&mut self) -> Option<u64> {
        let length = self.varint()?;
        self.skip_bytes(length)?;
        self.hold(length.saturating_add(HOLDER_BYTES));
        Some(length)
    }

    /// The next field's type; its number replaces `field`, the number of the one before.
    pub(super) fn field(&mut self, field: &mut i64) -> Option<Kind> {
        let header = self.byte()?;
        let kind = Kind::of(header & 0x0f)?;
        // A boolean field's type is its value.
        self.flag = header & 0x0f == 1;
        if kind != Kind::Stop {
            *field = match header >> 4 {
                0 => self.zigzag()?,
                step => field.checked_add(i64::from(step))?,
            };
        }
        Some(kind)
    }

    /// The value of the boolean field that was read just now.
    pub(super) fn flag(&self) -> bool {
        self.flag
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// The start of a list: what is in it, and how many.
    pub(super) fn list(&mut self) -> Option<(Kind, u64)> {
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => self.count()?,
            count => self.possible(u64::from(count))?,
        };
        Some((Kind::of(header & 0x0f)?, count))
    }

    /// The start of a list of structs; an empty one may say anything of its elements.
    pub(super) fn structs(&mut self) -> Option<u64> {
        match self.list()? {
            (Kind::Struct, count) => Some(count),
            (_, 0) => Some(0),
            _ => None,
        }
    }

    /// Passes a value.
    pub(super) fn skip(&mut self, kind: Kind) -> Option<()> {
        self.skip_within(kind, 0)
    }

    fn skip_within(&mut self, kind: Kind, depth: usize) -> Option<()> {
        if depth > NESTING_MAX {
            return None;
        }
        match kind {
            Kind::Stop | Kind::Boolean => Some(()),
            Kind::Byte => self.skip_bytes(1),
            Kind::Integer => self.varint().map(|_| ()),
            Kind::Double => self.skip_bytes(8),
            Kind::Uuid => self.skip_bytes(16),
            Kind::Bytes => self.bytes().map(|_| ()),
            Kind::List => {
                let (kind, count) = self.list()?;
                self.skip_all(&[kind], count, depth)
            }
            Kind::Map => {
                let count = self.count()?;
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
                    self.skip_within(kind, depth + 1)?;
                }
            }
        }
    }

    fn skip_all(&mut self, kinds: &[Kind], count: u64, depth: usize) -> Option<()> {
        self.hold(count.saturating_mul(ELEMENT_BYTES) + HOLDER_BYTES);
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
                self.skip_within(kind, depth + 1)?;
            }
        }
        Some(())
    }
}

/// What a struct of lists, such as a page index, would take in memory; `None` when it is damaged.
pub(super) fn held_bytes(bytes: &[u8]) -> Option<u64> {
    let mut reader = Compact::new(bytes);
    reader.skip(Kind::Struct)?;
    Some(reader.held_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_claims_more_than_is_there_is_damaged() {
        // Field 1, a list of 3 structs: empty, empty, empty.
        assert!(held_bytes(&[0x19, 0x3c, 0, 0, 0, 0]).is_some());
        // A list of 2^31 - 1 structs, or booleans, in ten bytes.
        for kind in [0xfc, 0xf1] {
            let bomb = [0x19, kind, 0xff, 0xff, 0xff, 0xff, 0x07, 0, 0, 0];
            assert_eq!(held_bytes(&bomb), None);
        }
        // A text of 2^40 bytes.
        let text = [0x18, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20, b'x', 0];
        assert_eq!(held_bytes(&text), None);
    }

    #[test]
    fn lists_in_lists_do_not_go_on_for_ever() {
        let mut deep = vec![0x19];
        deep.resize(10_000, 0x19);
        assert_eq!(held_bytes(&deep), None);
    }

    #[test]
    fn what_is_held_grows_with_what_is_in_it() {
        // A list of 200 numbers.
        let mut numbers = vec![0x19, 0xf6, 0xc8, 0x01];
        numbers.resize(numbers.len() + 200, 2);
        numbers.push(0);
        assert_eq!(held_bytes(&numbers), Some(200 * 32 + 64));
    }
}
