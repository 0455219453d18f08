//! The Arrow schema that a writer embedded in a footer: what its types mean beyond Parquet's.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    ipc::{convert::try_schema_from_ipc_buffer, root_as_message_with_opts},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use flatbuffers::VerifierOptions;
use parquet::{
    arrow::{ARROW_SCHEMA_META_KEY, parquet_to_arrow_schema},
    file::metadata::FileMetaData,
};

use super::guard::guarded;

/// The embedded schema. One that cannot be decoded or does not fit is as good as none.
pub(super) fn schema_hint(metadata: &FileMetaData) -> Option<SchemaRef> {
    let key_values = metadata.key_value_metadata()?;
    let embedded = key_values
        .iter()
        .find(|pair| pair.key == ARROW_SCHEMA_META_KEY)?;
    let text = embedded.value.as_deref().unwrap_or("");
    if !is_bounded(text, metadata.schema_descr().num_columns()) {
        return None;
    }
    let schema = guarded(|| {
        parquet_to_arrow_schema(metadata.schema_descr(), Some(key_values))
            .map_err(|e| e.to_string())
    });
    let schema = with_zones_of_seconds(schema.ok()?, text);
    // The reader mixes the file's notes into the schema's; those are kept apart from it.
    let own = schema
        .metadata()
        .iter()
        .filter(|(key, _)| !key_values.iter().any(|pair| pair.key == **key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect::<HashMap<_, _>>();
    Some(Arc::new(Schema::new_with_metadata(
        schema.fields().clone(),
        own,
    )))
}

/// Whether it becomes about as many fields as the file has columns: parts of it may be named many
/// times over, so that a few bytes would become millions of fields.
fn is_bounded(embedded: &str, column_count: usize) -> bool {
    const TABLES_PER_COLUMN_MAX: usize = 64;
    const EXTRA_COLUMNS: usize = 16;
    const APPARENT_FACTOR_MAX: usize = 16;
    let Ok(bytes) = BASE64_STANDARD.decode(embedded) else {
        return false;
    };
    let message = match bytes.split_at_checked(8) {
        Some((prefix, message)) if prefix[..4] == [0xff; 4] => message,
        _ => &bytes,
    };
    let options = VerifierOptions {
        max_tables: column_count
            .saturating_add(EXTRA_COLUMNS)
            .saturating_mul(TABLES_PER_COLUMN_MAX),
        max_apparent_size: message.len().saturating_mul(APPARENT_FACTOR_MAX),
        ..VerifierOptions::default()
    };
    root_as_message_with_opts(&options, message).is_ok()
}

/// Parquet has no timestamps of whole seconds, so writers store milliseconds; the reader then
/// forgets their zone.
fn with_zones_of_seconds(schema: Schema, embedded: &str) -> Schema {
    let decoded = guarded(|| {
        let bytes = BASE64_STANDARD
            .decode(embedded)
            .map_err(|e| e.to_string())?;
        try_schema_from_ipc_buffer(&bytes).map_err(|e| e.to_string())
    });
    let Ok(decoded) = decoded else { return schema };
    let fields = schema.fields().iter().map(|field| {
        let zone = match decoded.field_with_name(field.name()).map(Field::data_type) {
            Ok(DataType::Timestamp(TimeUnit::Second, Some(zone))) => Arc::clone(zone),
            _ => return Arc::clone(field),
        };
        match field.data_type() {
            DataType::Timestamp(TimeUnit::Millisecond, Some(_)) => {
                let kind = DataType::Timestamp(TimeUnit::Millisecond, Some(zone));
                Arc::new(field.as_ref().clone().with_data_type(kind))
            }
            _ => Arc::clone(field),
        }
    });
    Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone())
}
