//! One schema for all inputs: columns united by name, types widened only where no value changes.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, Field, Metadata, Schema, SchemaRef};
use parquet::{
    arrow::ArrowSchemaConverter,
    basic::Repetition,
    file::metadata::KeyValue,
    schema::types::{SchemaDescriptor, Type, TypePtr},
};

use super::{
    MergeError, TypeConflict,
    dedup::DEDUP_KEY,
    inputs::Input,
    widen::{self, Need, Widened},
};

/// Key-value note that names the version which wrote a file.
pub(super) const VERSION_KEY: &str = "gigamerge.version";

/// What the output looks like.
#[derive(Debug)]
pub(super) struct UnitedSchema {
    /// The columns, in order of first appearance.
    pub(super) schema: SchemaRef,
    /// Their Parquet types: those of the inputs where all agree.
    pub(super) parquet: SchemaDescriptor,
    /// The Arrow schema to embed, when inputs had one.
    pub(super) hint: Option<Schema>,
    /// Key-value metadata that all inputs share.
    pub(super) key_values: Vec<KeyValue>,
}

/// Inputs that have a column, with its place in each.
type Places<'a> = Vec<(&'a Input, usize)>;

/// One column as the inputs have it.
struct Column<'a> {
    name: &'a str,
    /// Inputs that count, with the column's place in each.
    places: Places<'a>,
    nullable: bool,
}

impl<'a> Column<'a> {
    fn field(&self, place: usize) -> &'a Field {
        let (input, index) = self.places[place];
        input.schema.field(index)
    }
}

/// Unites the schemas; `range_of` reads the smallest and largest integer of a column where a
/// type depends on values.
pub(super) fn unite(
    inputs: &[Input],
    range_of: impl Fn(&Input, &str) -> Result<Option<(i128, i128)>, MergeError>,
) -> Result<UnitedSchema, MergeError> {
    let (mut fields, mut types, mut hints) = (Vec::new(), Vec::<TypePtr>::new(), Vec::new());
    for column in collect_columns(inputs) {
        let data_type = unite_type(&column, &range_of)?;
        let field = Field::new(column.name, data_type, column.nullable);
        types
            .push(parquet_type(&column, &field).map_err(|reason| conflict(&column, 0, 0, reason))?);
        hints.push(hint(&column, &field).unwrap_or_else(|| field.clone()));
        fields.push(field);
    }
    let root = Type::group_type_builder("schema")
        .with_fields(types)
        .build();
    let parquet = root.map_err(|e| MergeError::Encode {
        path: inputs
            .first()
            .map(|input| input.path.clone())
            .unwrap_or_default(),
        reason: format!("the united schema cannot be expressed in Parquet: {e}"),
    })?;
    let hinted: Vec<_> = inputs
        .iter()
        .filter_map(|input| input.hint.as_ref())
        .collect();
    let key_values = shared_key_values(inputs);
    let hint = hinted.first().map(|first| {
        let same = hinted.len() == inputs.len()
            && hinted
                .iter()
                .all(|schema| schema.metadata() == first.metadata());
        let mut metadata = if same {
            first.metadata().clone()
        } else {
            Metadata::default()
        };
        // Some readers look for a file's notes here and nowhere else.
        for pair in &key_values {
            if let Some(value) = &pair.value {
                metadata.insert(pair.key.clone(), value.clone());
            }
        }
        Schema::new_with_metadata(hints, metadata)
    });
    Ok(UnitedSchema {
        schema: Arc::new(Schema::new(fields)),
        parquet: SchemaDescriptor::new(Arc::new(parquet)),
        hint,
        key_values,
    })
}

/// Columns in order of first appearance. Inputs without rows name columns but have no say
/// in their types, as long as another input has the column.
fn collect_columns(inputs: &[Input]) -> Vec<Column<'_>> {
    let filled_count = inputs.iter().filter(|input| input.row_count > 0).count();
    let mut order: Vec<&str> = Vec::new();
    let mut places: HashMap<&str, (Places<'_>, Places<'_>)> = HashMap::new();
    for input in inputs {
        for (index, field) in input.schema.fields().iter().enumerate() {
            let (filled, empty) = places.entry(field.name()).or_insert_with(|| {
                order.push(field.name());
                Default::default()
            });
            if input.row_count > 0 { filled } else { empty }.push((input, index));
        }
    }
    order
        .into_iter()
        .filter_map(|name| {
            let (filled, mut empty) = places.remove(name)?;
            let missing = filled.len() < filled_count;
            let places = if filled.is_empty() {
                // Only empty inputs know it: the first one decides.
                empty.truncate(1);
                empty
            } else {
                filled
            };
            let nullable = missing
                || places.iter().any(|(input, index)| {
                    let field = input.schema.field(*index);
                    field.is_nullable() || *field.data_type() == DataType::Null
                });
            Some(Column {
                name,
                places,
                nullable,
            })
        })
        .collect()
}

fn unite_type(
    column: &Column<'_>,
    range_of: &impl Fn(&Input, &str) -> Result<Option<(i128, i128)>, MergeError>,
) -> Result<DataType, MergeError> {
    // Each type once, with the first input that has it.
    let mut kinds: Vec<(&DataType, usize)> = Vec::new();
    for place in 0..column.places.len() {
        let data_type = column.field(place).data_type();
        if !kinds
            .iter()
            .any(|(known, _)| known.equals_datatype(data_type))
        {
            kinds.push((data_type, place));
        }
    }
    let mut united: Option<(DataType, usize)> = None;
    let mut needs_values = false;
    for (data_type, place) in &kinds {
        united = Some(match united {
            None => ((*data_type).clone(), *place),
            Some((so_far, first)) => match widen::widen(&so_far, data_type) {
                Widened::Always(wider) => (wider, first),
                Widened::IfValuesFit(wider) => {
                    needs_values = true;
                    (wider, first)
                }
                Widened::Never(reason) => {
                    return Err(conflict(
                        column,
                        first_non_null(&kinds, first),
                        *place,
                        reason.to_owned(),
                    ));
                }
            },
        });
    }
    let data_type = united.map_or(DataType::Null, |(data_type, _)| data_type);
    if !needs_values {
        return Ok(data_type);
    }
    let mut ranges = Vec::new();
    for (place, (input, index)) in column.places.iter().enumerate() {
        let own = input.schema.field(*index).data_type();
        if (own.is_integer() || own.is_temporal() && *own != data_type)
            && let Some(range) = range_of(input, column.name)?
        {
            ranges.push(Need { place, range });
        }
    }
    widen::fit(&data_type, &ranges).map_err(|(place, reason)| {
        let own = column.field(place).data_type();
        let other = kinds
            .iter()
            .find(|(kind, _)| *kind != own && **kind != DataType::Null);
        conflict(
            column,
            place,
            other.map_or(place, |(_, place)| *place),
            reason,
        )
    })
}

fn first_non_null(kinds: &[(&DataType, usize)], fallback: usize) -> usize {
    kinds
        .iter()
        .find(|(kind, _)| **kind != DataType::Null)
        .map_or(fallback, |(_, place)| *place)
}

fn conflict(column: &Column<'_>, left: usize, right: usize, reason: String) -> MergeError {
    MergeError::TypeConflict(Box::new(TypeConflict {
        column: column.name.to_owned(),
        left_type: column.field(left).data_type().to_string(),
        left_file: column.places[left].0.path.clone(),
        right_type: column.field(right).data_type().to_string(),
        right_file: column.places[right].0.path.clone(),
        reason,
    }))
}

/// The Parquet type of an output column. Where all inputs agree, theirs is kept, because it
/// can say more than Arrow's types do (UUID, JSON, enum, field ids).
fn parquet_type(column: &Column<'_>, field: &Field) -> Result<TypePtr, String> {
    let converted = ArrowSchemaConverter::new()
        .convert(&Schema::new(vec![field.clone()]))
        .map_err(|e| e.to_string())?;
    let converted = Arc::clone(&converted.root_schema().get_fields()[0]);
    let repetition = if field.is_nullable() {
        Repetition::OPTIONAL
    } else {
        Repetition::REQUIRED
    };
    let mut kept: Option<Type> = None;
    for (input, index) in &column.places {
        if input.schema.field(*index).data_type() != field.data_type() {
            return Ok(converted);
        }
        let own = &input.parquet_schema.root_schema().get_fields()[*index];
        let Some(own) = with_repetition(own, repetition) else {
            return Ok(converted);
        };
        match &kept {
            None if same_shape(&own, &converted) => kept = Some(own),
            Some(first) if *first == own => {}
            _ => return Ok(converted),
        }
    }
    Ok(kept.map_or(converted, Arc::new))
}

fn with_repetition(own: &Type, repetition: Repetition) -> Option<Type> {
    let info = own.get_basic_info();
    if !info.has_repetition() || info.repetition() == Repetition::REPEATED {
        return None;
    }
    let id = info.has_id().then(|| info.id());
    match own {
        Type::PrimitiveType {
            physical_type,
            type_length,
            scale,
            precision,
            ..
        } => Type::primitive_type_builder(own.name(), *physical_type)
            .with_repetition(repetition)
            .with_converted_type(info.converted_type())
            .with_logical_type(info.logical_type_ref().cloned())
            .with_length(*type_length)
            .with_precision(*precision)
            .with_scale(*scale)
            .with_id(id)
            .build(),
        Type::GroupType { fields, .. } => Type::group_type_builder(own.name())
            .with_repetition(repetition)
            .with_converted_type(info.converted_type())
            .with_logical_type(info.logical_type_ref().cloned())
            .with_fields(fields.clone())
            .with_id(id)
            .build(),
    }
    .ok()
}

/// Whether values encoded for `right` are valid under `left`: same leaves, same nesting.
fn same_shape(left: &Type, right: &Type) -> bool {
    if left.get_basic_info().repetition() != right.get_basic_info().repetition() {
        return false;
    }
    match (left, right) {
        (
            Type::PrimitiveType {
                physical_type: left,
                type_length: left_length,
                ..
            },
            Type::PrimitiveType {
                physical_type: right,
                type_length: right_length,
                ..
            },
        ) => left == right && left_length.max(&0) == right_length.max(&0),
        (Type::GroupType { fields: left, .. }, Type::GroupType { fields: right, .. }) => {
            left.len() == right.len()
                && left
                    .iter()
                    .zip(right)
                    .all(|(left, right)| same_shape(left, right))
        }
        _ => false,
    }
}

/// The Arrow field that all inputs embedded for this column, if they agree on it.
fn hint(column: &Column<'_>, field: &Field) -> Option<Field> {
    let mut hint: Option<Field> = None;
    for (input, index) in &column.places {
        if input.schema.field(*index).data_type() != field.data_type() {
            return None;
        }
        let own = input
            .hint
            .as_ref()?
            .field(*index)
            .clone()
            .with_nullable(field.is_nullable());
        match &hint {
            Some(first) if *first != own => return None,
            Some(_) => {}
            None => hint = Some(own),
        }
    }
    hint
}

fn shared_key_values(inputs: &[Input]) -> Vec<KeyValue> {
    let Some((first, others)) = inputs.split_first() else {
        return Vec::new();
    };
    first
        .key_values
        .iter()
        .filter(|pair| pair.key != VERSION_KEY && pair.key != DEDUP_KEY)
        .filter(|pair| others.iter().all(|input| input.key_values.contains(pair)))
        .cloned()
        .collect()
}
