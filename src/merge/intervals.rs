//! Intervals have months, days and milliseconds; every Arrow type that the decoder has for them
//! drops a part. So they are read and written as the twelve bytes that they are.

use std::sync::Arc;

use parquet::{
    basic::ConvertedType,
    errors::Result as ParquetResult,
    file::metadata::{FileMetaData, ParquetMetaData},
    schema::types::{SchemaDescriptor, Type, TypePtr},
};

/// A footer in which intervals are plain bytes; `None` when it has none.
pub(super) fn as_bytes(metadata: &ParquetMetaData) -> ParquetResult<Option<ParquetMetaData>> {
    let file = metadata.file_metadata();
    let descr = file.schema_descr();
    let is_interval =
        |column: &parquet::schema::types::ColumnDescPtr| is_interval(column.self_type());
    if !descr.columns().iter().any(is_interval) {
        return Ok(None);
    }
    let root = plain(&descr.root_schema_ptr())?;
    let file = FileMetaData::new(
        file.version(),
        file.num_rows(),
        file.created_by().map(str::to_owned),
        file.key_value_metadata().cloned(),
        Arc::new(SchemaDescriptor::new(root)),
        file.column_orders().cloned(),
    );
    Ok(Some(ParquetMetaData::new(
        file,
        metadata.row_groups().to_vec(),
    )))
}

/// Whether values of this type are intervals.
pub(super) fn is_interval(kind: &Type) -> bool {
    kind.is_primitive() && kind.get_basic_info().converted_type() == ConvertedType::INTERVAL
}

/// The type without notes on intervals. No deeper than footers may be nested.
fn plain(kind: &TypePtr) -> ParquetResult<TypePtr> {
    let info = kind.get_basic_info();
    let id = info.has_id().then(|| info.id());
    match kind.as_ref() {
        Type::PrimitiveType {
            physical_type,
            type_length,
            ..
        } if is_interval(kind) => Type::primitive_type_builder(kind.name(), *physical_type)
            .with_repetition(info.repetition())
            .with_length(*type_length)
            .with_id(id)
            .build()
            .map(Arc::new),
        Type::PrimitiveType { .. } => Ok(Arc::clone(kind)),
        Type::GroupType { fields, .. } => {
            let fields = fields.iter().map(plain).collect::<ParquetResult<_>>()?;
            let mut group = Type::group_type_builder(kind.name())
                .with_converted_type(info.converted_type())
                .with_logical_type(info.logical_type_ref().cloned())
                .with_fields(fields)
                .with_id(id);
            if info.has_repetition() {
                group = group.with_repetition(info.repetition());
            }
            group.build().map(Arc::new)
        }
    }
}
