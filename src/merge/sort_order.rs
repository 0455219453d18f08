//! The order of one merge, checked against its inputs.

use arrow::{compute::SortOptions, datatypes::DataType};

use super::{
    MergeError, MergeRequest, SortColumn,
    inputs::Input,
    int_keys::IntKeys,
    intervals,
    keys::{self, RowKeys},
    schema::UnitedSchema,
};

/// Why a column is no sort column.
pub(super) const CANNOT_BE_ORDERED: &str = "has a type that cannot be ordered";

/// The order of one merge.
pub(super) struct SortOrder {
    /// Places of its columns in the united schema; empty when there are no rows to order.
    pub(super) places: Vec<usize>,
    /// The type of the first column.
    pub(super) first_type: Option<DataType>,
    pub(super) keys: Keys,
}

/// How its keys are made.
pub(super) enum Keys {
    Integers(IntKeys),
    Rows(RowKeys),
}

impl SortOrder {
    /// Checks that every input with rows can be ordered, and has the first `required_count` columns.
    pub(super) fn of(
        request: &MergeRequest,
        required_count: usize,
        inputs: &[Input],
        united: &UnitedSchema,
    ) -> Result<Self, MergeError> {
        let order_by = &request.options.order_by;
        let filled: Vec<&Input> = inputs.iter().filter(|input| input.row_count > 0).collect();
        let (Some(first_input), Some(first_column)) = (filled.first(), order_by.first()) else {
            let keys = Keys::Integers(IntKeys {
                descending: false,
                nulls_first: false,
            });
            return Ok(Self {
                places: Vec::new(),
                first_type: None,
                keys,
            });
        };
        let refuse = |column: &SortColumn, input: &Input, reason: &str| MergeError::SortColumn {
            column: column.name.clone(),
            file: input.path.clone(),
            reason: reason.to_owned(),
        };
        let (mut places, mut types) = (Vec::new(), Vec::new());
        for (index, column) in order_by.iter().enumerate() {
            if index < required_count
                && let Some(input) = filled
                    .iter()
                    .find(|input| input.schema.index_of(&column.name).is_err())
            {
                return Err(refuse(column, input, "is missing"));
            }
            let place = united
                .schema
                .index_of(&column.name)
                .map_err(|_| refuse(column, first_input, "is missing"))?;
            if intervals::is_interval(&united.parquet.root_schema().get_fields()[place]) {
                return Err(refuse(column, first_input, CANNOT_BE_ORDERED));
            }
            let options = SortOptions {
                descending: column.descending,
                nulls_first: column.nulls_first,
            };
            places.push(place);
            types.push((united.schema.field(place).data_type().clone(), options));
        }
        let first_type = types.first().map(|(data_type, _)| data_type.clone());
        let keys = match &types[..] {
            [(data_type, options)] if keys::has_integer_order(data_type) => {
                Keys::Integers(IntKeys {
                    descending: options.descending,
                    nulls_first: options.nulls_first,
                })
            }
            _ => Keys::Rows(RowKeys::new(&types).ok_or_else(|| {
                let nested = types.iter().position(|(data_type, _)| {
                    RowKeys::new(&[(data_type.clone(), SortOptions::default())]).is_none()
                });
                let column = nested.map_or(first_column, |index| &order_by[index]);
                let file = filled
                    .iter()
                    .find(|input| input.schema.index_of(&column.name).is_ok());
                refuse(column, file.unwrap_or(first_input), CANNOT_BE_ORDERED)
            })?),
        };
        Ok(Self {
            places,
            first_type,
            keys,
        })
    }
}
