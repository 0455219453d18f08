//! Files put together by hand, whose numbers claim what no bytes can hold.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::needless_pass_by_value,
    reason = "what does not fit is what is tested"
)]

use gigamerge::merge::MergeError;

use crate::merge_files::{Lab, options, read};

/// A Thrift struct in the making, in the compact protocol.
#[derive(Default)]
struct Struct {
    bytes: Vec<u8>,
    last: u8,
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

impl Struct {
    fn field(mut self, id: u8, kind: u8) -> Self {
        self.bytes.push((id - self.last) << 4 | kind);
        self.last = id;
        self
    }

    fn number(self, id: u8, kind: u8, value: i64) -> Self {
        let mut this = self.field(id, kind);
        varint(
            &mut this.bytes,
            (value << 1).cast_unsigned() ^ (value >> 63).cast_unsigned(),
        );
        this
    }

    fn int(self, id: u8, value: i64) -> Self {
        self.number(id, 5, value)
    }

    fn long(self, id: u8, value: i64) -> Self {
        self.number(id, 6, value)
    }

    fn text(self, id: u8, value: &str) -> Self {
        let mut this = self.field(id, 8);
        varint(&mut this.bytes, value.len() as u64);
        this.bytes.extend(value.as_bytes());
        this
    }

    /// A list that claims `count` elements.
    fn list(self, id: u8, kind: u8, count: usize, elements: &[Vec<u8>]) -> Self {
        let mut this = self.field(id, 9);
        this.bytes.push(0xf0 | kind);
        varint(&mut this.bytes, count as u64);
        this.bytes.extend(elements.concat());
        this
    }

    fn structs(self, id: u8, elements: &[Vec<u8>]) -> Self {
        self.list(id, 12, elements.len(), elements)
    }

    fn inside(self, id: u8, inner: Struct) -> Self {
        let mut this = self.field(id, 12);
        this.bytes.extend(inner.done());
        this
    }

    fn done(mut self) -> Vec<u8> {
        self.bytes.push(0);
        self.bytes
    }
}

const INT64: i64 = 2;
const BYTE_ARRAY: i64 = 6;
const REQUIRED: i64 = 0;
const REPEATED: i64 = 2;
const PLAIN: i64 = 0;
const DELTA_LENGTH: i64 = 6;
const DELTA_TEXT: i64 = 7;
const DICTIONARY: i64 = 8;

fn leaf(name: &str, kind: i64, repetition: i64) -> Vec<u8> {
    Struct::default()
        .int(1, kind)
        .int(3, repetition)
        .text(4, name)
        .done()
}

fn group(name: &str, children: i64) -> Vec<u8> {
    Struct::default()
        .int(3, REQUIRED)
        .text(4, name)
        .int(5, children)
        .done()
}

fn data_page(count: i64, encoding: i64, claimed_bytes: i64, body: &[u8]) -> Vec<u8> {
    let header = Struct::default()
        .int(1, count)
        .int(2, encoding)
        .int(3, 3)
        .int(4, 3);
    page(0, claimed_bytes, body, |page| page.inside(5, header))
}

fn dictionary_page(count: i64, body: &[u8]) -> Vec<u8> {
    let header = Struct::default().int(1, count).int(2, PLAIN);
    page(2, body.len() as i64, body, |page| page.inside(7, header))
}

fn page(kind: i64, claimed_bytes: i64, body: &[u8], end: impl FnOnce(Struct) -> Struct) -> Vec<u8> {
    let header = Struct::default()
        .int(1, kind)
        .int(2, claimed_bytes)
        .int(3, claimed_bytes);
    [end(header).done(), body.to_vec()].concat()
}

/// One column of a file with one row group.
struct Column {
    kind: i64,
    repetition: i64,
    dictionary: Vec<u8>,
    pages: Vec<u8>,
    values: i64,
}

impl Column {
    fn plain(kind: i64, values: i64, pages: Vec<u8>) -> Self {
        Self {
            kind,
            repetition: REQUIRED,
            dictionary: Vec::new(),
            pages,
            values,
        }
    }
}

/// A file that claims so many rows; its first column is `__timestamp`, the others count from 1.
fn file(rows: i64, columns: &[Column]) -> Vec<u8> {
    let name = |place: usize| match place {
        0 => "__timestamp".to_owned(),
        place => format!("column-{place}"),
    };
    let mut schema = vec![group("root", columns.len() as i64)];
    let mut bytes = b"PAR1".to_vec();
    let mut chunks = Vec::new();
    for (place, column) in columns.iter().enumerate() {
        schema.push(leaf(&name(place), column.kind, column.repetition));
        let start = bytes.len() as i64;
        bytes.extend(&column.dictionary);
        let data_start = bytes.len() as i64;
        bytes.extend(&column.pages);
        let length = bytes.len() as i64 - start;
        let mut path = Vec::new();
        varint(&mut path, name(place).len() as u64);
        path.extend(name(place).as_bytes());
        let mut metadata = Struct::default()
            .int(1, column.kind)
            .list(2, 5, 0, &[])
            .list(3, 8, 1, &[path])
            .int(4, 0)
            .long(5, column.values)
            .long(6, length)
            .long(7, length)
            .long(9, data_start);
        if !column.dictionary.is_empty() {
            metadata = metadata.long(11, start);
        }
        chunks.push(Struct::default().long(2, 0).inside(3, metadata).done());
    }
    let row_group = Struct::default()
        .structs(1, &chunks)
        .long(2, bytes.len() as i64)
        .long(3, rows);
    let footer = Struct::default()
        .int(1, 1)
        .structs(2, &schema)
        .long(3, rows)
        .structs(4, &[row_group.done()]);
    with_footer(bytes, &footer.done(), b"PAR1")
}

fn with_footer(mut bytes: Vec<u8>, footer: &[u8], magic: &[u8]) -> Vec<u8> {
    bytes.extend(footer);
    bytes.extend(u32::try_from(footer.len()).unwrap().to_le_bytes());
    bytes.extend(magic);
    bytes
}

/// A footer of nothing but a schema, whose list claims `count` elements.
fn schema_only(count: usize, elements: &[Vec<u8>]) -> Vec<u8> {
    let footer = Struct::default()
        .int(1, 1)
        .list(2, 12, count, elements)
        .long(3, 0)
        .structs(4, &[]);
    with_footer(b"PAR1".to_vec(), &footer.done(), b"PAR1")
}

fn times(count: i64) -> Column {
    let body: Vec<u8> = (0..count).flat_map(i64::to_le_bytes).collect();
    let page = data_page(count, PLAIN, body.len() as i64, &body);
    Column::plain(INT64, count, page)
}

/// A stream of `count` equal lengths in one block without bytes.
fn equal_lengths(count: u64, length: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in [count.next_multiple_of(128).max(128), 1, count] {
        varint(&mut bytes, number);
    }
    bytes.extend([length << 1, 0, 0]);
    bytes
}

/// What is wrong with a file, and what is said of it.
fn absurd_files() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    const MANY: i64 = i32::MAX as i64;
    let mut one = times(1);
    one.values = 1 << 60;
    let with = |column: Column| file(10, &[times(10), column]);
    let delta = |encoding, body: &[u8]| {
        with(Column::plain(
            BYTE_ARRAY,
            10,
            data_page(10, encoding, body.len() as i64, body),
        ))
    };
    let coded = |kind, dictionary: Vec<u8>| {
        with(Column {
            dictionary,
            ..Column::plain(kind, 10, data_page(10, DICTIONARY, 3, &[1, 20, 0]))
        })
    };
    let bomb = equal_lengths(1 << 40, 0);
    let chain = |length: usize| {
        let mut elements = vec![group("g", 1); length];
        elements.push(leaf("x", INT64, REQUIRED));
        schema_only(length + 1, &elements)
    };
    let mut wide = vec![group("root", 100_000)];
    wide.extend((0..100_000).map(|place| leaf(&format!("c{place}"), INT64, REQUIRED)));
    let repeated = Column {
        repetition: REPEATED,
        ..Column::plain(INT64, MANY, data_page(MANY, PLAIN, 8, &[0; 8]))
    };
    let good = file(10, &[times(10)]);
    let mut sealed = good.clone();
    let end = sealed.len();
    sealed[end - 4..].copy_from_slice(b"PARE");
    let mut long_footer = good.clone();
    long_footer[end - 8..end - 4].copy_from_slice(&u32::MAX.to_le_bytes());
    vec![
        ("2^60 rows", file(1 << 60, &[one]), "rows in"),
        (
            "a page of 10 GiB",
            file(
                10,
                &[Column::plain(
                    INT64,
                    10,
                    data_page(10, PLAIN, 10 << 30, &[0; 80]),
                )],
            ),
            "claims 10737418240 bytes",
        ),
        (
            "a page of 2 GiB that is hardly compressed",
            file(
                10,
                &[Column::plain(
                    INT64,
                    10,
                    data_page(10, PLAIN, MANY, &[0; 80]),
                )],
            ),
            "memory budget",
        ),
        (
            "100,000 columns",
            schema_only(wide.len(), &wide),
            "memory budget",
        ),
        (
            "a schema of 100,000 levels",
            chain(100_000),
            "nested 100001 levels",
        ),
        (
            "a group of 2^31 children",
            schema_only(2, &[group("root", MANY), leaf("x", INT64, REQUIRED)]),
            "footer is damaged",
        ),
        (
            "a schema of 2^31 elements",
            schema_only(
                MANY as usize,
                &[group("root", 1), leaf("x", INT64, REQUIRED)],
            ),
            "footer is damaged",
        ),
        (
            "a footer of 4 GiB",
            long_footer,
            "footer of 4294967295 bytes",
        ),
        (
            "a dictionary of 2^31 numbers",
            coded(INT64, dictionary_page(MANY, &[0; 8])),
            "claims 2147483647 entries in 8 bytes",
        ),
        (
            "a dictionary of 2^31 texts",
            coded(BYTE_ARRAY, dictionary_page(MANY, &[0; 8])),
            "claims 2147483647 entries in 8 bytes",
        ),
        (
            "2^40 lengths of texts",
            delta(DELTA_LENGTH, &bomb),
            "lengths of a page's texts",
        ),
        (
            "2^40 prefixes of texts",
            delta(DELTA_TEXT, &bomb),
            "lengths of a page's texts",
        ),
        (
            "2^40 lengths behind prefixes",
            delta(DELTA_TEXT, &[equal_lengths(10, 0), bomb.clone()].concat()),
            "lengths of a page's texts",
        ),
        (
            "a list of 2^31 values",
            file(10, &[times(10), repeated]),
            "too many for the memory budget",
        ),
        ("a footer under lock", sealed, "encrypted"),
        (
            "no file of its kind",
            vec![b'x'; 4096],
            "does not end as a Parquet file does",
        ),
    ]
}

/// Each is refused by name, in a process that has no memory for what it claims.
pub(crate) fn absurd_files_are_refused() {
    for (what, bytes, reason) in absurd_files() {
        let mut lab = Lab::new();
        lab.add_bytes(&bytes);
        lab.add_bytes(&file(10, &[times(10)]));
        let error = lab.merge(&options()).unwrap_err();
        let MergeError::BadInputs(bad) = &error else {
            panic!("{what}: {error}")
        };
        assert_eq!(bad.len(), 1, "{what}: {error}");
        assert_eq!(bad[0].index, 0, "{what}: {error}");
        assert!(bad[0].reason.contains(reason), "{what}: {}", bad[0].reason);
        assert!(
            std::fs::read(&lab.inputs[0]).unwrap() == bytes,
            "{what}: the file was changed"
        );
    }
}

/// A small file of many rows with one text of 1 MiB each, the latest first.
fn file_of_long_texts(rows: i64) -> Vec<u8> {
    let mut entry = (1_u32 << 20).to_le_bytes().to_vec();
    entry.resize(entry.len() + (1 << 20), b'x');
    // Indexes of one bit: a run of zeros.
    let mut indexes = vec![1];
    varint(&mut indexes, rows.cast_unsigned() << 1);
    indexes.push(0);
    let body: Vec<u8> = (0..rows).rev().flat_map(i64::to_le_bytes).collect();
    let times = Column::plain(
        INT64,
        rows,
        data_page(rows, PLAIN, body.len() as i64, &body),
    );
    let texts = Column {
        dictionary: dictionary_page(1, &entry),
        ..Column::plain(
            BYTE_ARRAY,
            rows,
            data_page(rows, DICTIONARY, indexes.len() as i64, &indexes),
        )
    };
    file(rows, &[times, texts])
}

/// 400 MiB when decoded at once.
pub(crate) fn long_texts_of_a_dictionary_are_read_few_at_a_time() {
    const ROWS: i64 = 400;
    let mut lab = Lab::new();
    lab.add_bytes(&file_of_long_texts(ROWS));
    lab.add_bytes(&file(10, &[times(10)]));
    let report = lab.merge(&options()).unwrap();
    assert_eq!(report.row_count, ROWS as u64 + 10);
}

#[test]
fn what_is_put_together_by_hand_is_a_file() {
    let mut lab = Lab::new();
    let texts = [equal_lengths(10, 1), b"abcdefghij".to_vec()].concat();
    let delta = Column::plain(
        BYTE_ARRAY,
        10,
        data_page(10, DELTA_LENGTH, texts.len() as i64, &texts),
    );
    let coded = Column {
        dictionary: dictionary_page(1, &7_i64.to_le_bytes()),
        ..Column::plain(INT64, 10, data_page(10, DICTIONARY, 3, &[1, 20, 0]))
    };
    lab.add_bytes(&file(10, &[times(10), delta, coded]));
    let report = lab.merge(&options()).unwrap();
    assert_eq!(report.row_count, 10);
    assert_eq!(read(&lab.output())[0].num_columns(), 3);
}
