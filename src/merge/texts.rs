//! How texts are held on their way from inputs to the output.
//!
//! A column whose inputs all have it behind dictionaries is held as numbers of texts that the
//! whole merge keeps once: rows take four bytes, and the output's dictionary is found by
//! number. Other texts are views into the pages that they came in, and are copied once, into
//! the output's page.

use std::{collections::BTreeSet, sync::Arc, sync::PoisonError};

use arrow::{
    array::{Array, ArrayRef, AsArray, UInt32Array},
    datatypes::{DataType, Field, Int32Type, Schema, SchemaRef},
};
use parquet::{
    basic::Encoding,
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData},
        properties::WriterProperties,
    },
};

use super::{
    Keep, MergeControl, MergeError, MergeOptions,
    flat::FlatColumn,
    inputs::Input,
    interner::{Interner, SharedInterner},
    schema::UnitedSchema,
};

/// Dictionaries with more bytes for each row hold texts that hardly come again.
const DICTIONARY_BYTES_PER_ROW_MAX: u64 = 8;

/// How a column is held.
#[derive(Clone)]
pub(super) enum Held {
    /// As its type in the united schema says.
    Plain,
    /// As views into pages.
    Views,
    /// As numbers of texts.
    Numbers(SharedInterner),
}

/// The united schema as rows are held while they are merged.
pub(super) struct WorkSchema {
    pub(super) schema: SchemaRef,
    held: Vec<Held>,
}

impl WorkSchema {
    /// Decides for each column. Those of `crowded` have too many texts to number them.
    pub(super) fn of(
        inputs: &[Input],
        united: &UnitedSchema,
        options: &MergeOptions,
        properties: &WriterProperties,
        crowded: &BTreeSet<usize>,
        control: &MergeControl,
    ) -> Result<Self, MergeError> {
        let mut held: Vec<Held> = Vec::new();
        let mut candidates = Vec::new();
        for (index, field) in united.schema.fields().iter().enumerate() {
            let is_text = matches!(field.data_type(), DataType::Utf8 | DataType::Binary);
            let is_compared = options
                .order_by
                .iter()
                .any(|column| column.name == *field.name())
                || decides_which_row_stays(options, field.name())
                || options.bounds_of.contains(field.name());
            held.push(if is_text && !is_compared {
                Held::Views
            } else {
                Held::Plain
            });
            let leaves = united.parquet.columns();
            let is_flat = leaves
                .iter()
                .find(|leaf| leaf.path().parts() == [field.name().as_str()])
                .is_some_and(|leaf| FlatColumn::supports(leaf, field.data_type(), properties));
            if is_flat && matches!(held[index], Held::Views) && !crowded.contains(&index) {
                candidates.push((index, field.name().as_str()));
            }
        }
        for input in inputs.iter().filter(|input| input.row_count > 0) {
            if candidates.is_empty() {
                break;
            }
            control.check()?;
            let footer = input
                .footer()
                .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
            candidates.retain(|(_, name)| has_dictionary(footer.metadata(), name));
        }
        for (index, _) in candidates {
            held[index] = Held::Numbers(SharedInterner::default());
        }
        let fields: Vec<Field> = united
            .schema
            .fields()
            .iter()
            .zip(&held)
            .map(|(field, held)| {
                let data_type = match held {
                    Held::Plain => field.data_type().clone(),
                    Held::Views => viewed(field.data_type()),
                    Held::Numbers(_) => DataType::UInt32,
                };
                field.as_ref().clone().with_data_type(data_type)
            })
            .collect();
        Ok(Self {
            schema: Arc::new(Schema::new(fields)),
            held,
        })
    }

    /// How a column is held.
    pub(super) fn held(&self, index: usize) -> &Held {
        &self.held[index]
    }

    /// How a column of this name is held.
    pub(super) fn held_by_name(&self, name: &str) -> &Held {
        match self.schema.index_of(name) {
            Ok(index) => &self.held[index],
            Err(_) => &Held::Plain,
        }
    }

    /// Where the texts of a column are, when its rows hold their numbers.
    pub(super) fn interner(&self, index: usize) -> Option<SharedInterner> {
        match &self.held[index] {
            Held::Numbers(interner) => Some(Arc::clone(interner)),
            _ => None,
        }
    }

    /// The types in which an input's columns are to be decoded.
    pub(super) fn decoded(&self, own: &SchemaRef) -> SchemaRef {
        let fields = own.fields().iter().map(|field| {
            let data_type = match (field.data_type(), self.held_by_name(field.name())) {
                (text @ (DataType::Utf8 | DataType::Binary), Held::Views) => viewed(text),
                (text @ (DataType::Utf8 | DataType::Binary), Held::Numbers(_)) => {
                    DataType::Dictionary(Box::new(DataType::Int32), Box::new(text.clone()))
                }
                (other, _) => other.clone(),
            };
            Arc::new(field.as_ref().clone().with_data_type(data_type))
        });
        Arc::new(Schema::new_with_metadata(
            fields.collect::<Vec<_>>(),
            own.metadata().clone(),
        ))
    }

    /// Whether any column is held as numbers.
    pub(super) fn has_numbers(&self) -> bool {
        self.held
            .iter()
            .any(|held| matches!(held, Held::Numbers(_)))
    }
}

fn decides_which_row_stays(options: &MergeOptions, column: &str) -> bool {
    let keep = options.dedup.as_ref().map(|dedup| &dedup.keep);
    matches!(keep, Some(Keep::Max(name)) if name == column)
}

fn viewed(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8 => DataType::Utf8View,
        _ => DataType::BinaryView,
    }
}

/// Whether a file has a column only behind dictionaries, of texts that come again. A file
/// without the column does not mind.
fn has_dictionary(metadata: &ParquetMetaData, name: &str) -> bool {
    let chunks = || {
        let groups = metadata.row_groups().iter();
        groups.filter_map(|group| {
            let mut columns = group.columns().iter();
            columns.find(|chunk| chunk.column_path().parts() == [name])
        })
    };
    let rows: u64 = chunks()
        .map(|chunk| u64::try_from(chunk.num_values()).unwrap_or(0))
        .sum();
    let dictionary_bytes: u64 = chunks()
        .filter_map(|chunk| {
            let start = chunk.dictionary_page_offset()?;
            u64::try_from(chunk.data_page_offset() - start).ok()
        })
        .sum();
    chunks().all(is_behind_dictionary)
        && dictionary_bytes <= (rows * DICTIONARY_BYTES_PER_ROW_MAX).max(4096)
}

fn is_behind_dictionary(chunk: &ColumnChunkMetaData) -> bool {
    if chunk.num_values() == 0 {
        return true;
    }
    let is_dictionary = |encoding| {
        matches!(
            encoding,
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY
        )
    };
    chunk.dictionary_page_offset().is_some()
        && match chunk.page_encoding_stats_mask() {
            Some(mask) => mask.encodings().all(is_dictionary),
            // Without better knowledge: plain may mean the dictionary itself.
            None => {
                chunk.encodings().any(is_dictionary) && {
                    let mut all = chunk.encodings();
                    all.all(|encoding| is_dictionary(encoding) || encoding == Encoding::RLE)
                }
            }
        }
}

/// Turns a column behind dictionaries into numbers of texts.
#[derive(Default)]
pub(super) struct Numbering {
    /// The dictionary that came last, and the numbers of its texts.
    known: Option<(ArrayRef, Vec<u32>)>,
}

/// There is no room for another text.
pub(super) struct Crowded;

impl Numbering {
    /// The numbers of a batch. `None` when it is not behind a dictionary.
    pub(super) fn number(
        &mut self,
        array: &ArrayRef,
        interner: &SharedInterner,
    ) -> Option<Result<ArrayRef, Crowded>> {
        let array = array.as_dictionary_opt::<Int32Type>()?;
        let values = array.values();
        if self
            .known
            .as_ref()
            .is_none_or(|(known, _)| !Arc::ptr_eq(known, values))
        {
            let mut interner = interner.write().unwrap_or_else(PoisonError::into_inner);
            let numbers = match values.data_type() {
                DataType::Utf8 => number_all(values.as_string::<i32>().iter(), &mut interner),
                DataType::Binary => number_all(values.as_binary::<i32>().iter(), &mut interner),
                _ => return None,
            };
            match numbers {
                Some(numbers) => self.known = Some((Arc::clone(values), numbers)),
                None => return Some(Err(Crowded)),
            }
        }
        let (_, numbers) = self.known.as_ref()?;
        // Keys under nulls may be anything.
        let number_of = |key: i32| {
            let place = usize::try_from(key).unwrap_or(usize::MAX);
            numbers.get(place).copied().unwrap_or(0)
        };
        let keys = array.keys();
        let all: Vec<u32> = keys.values().iter().map(|key| number_of(*key)).collect();
        Some(Ok(Arc::new(UInt32Array::new(
            all.into(),
            keys.nulls().cloned(),
        ))))
    }
}

fn number_all<T: AsRef<[u8]>>(
    texts: impl Iterator<Item = Option<T>>,
    interner: &mut Interner,
) -> Option<Vec<u32>> {
    texts
        .map(|text| interner.number(text.as_ref().map_or(&[][..], AsRef::as_ref)))
        .collect()
}
