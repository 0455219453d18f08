//! How much memory a merge could use, from footers alone.

use std::path::PathBuf;

use super::{
    MergeOptions,
    context::Shares,
    footers, inputs,
    sizes::{pages_bytes, row_size},
};

/// Memory with which these inputs are merged without going through scratch. More would not be
/// used. Inputs that cannot be read are passed over: the merge will say so.
pub fn estimate_memory(inputs: &[PathBuf], options: &MergeOptions) -> u64 {
    let Ok(shares) = Shares::of(options.memory_budget_bytes, inputs.len()) else {
        return 0;
    };
    let (mut runs_bytes, mut row_bytes_max, mut footers_bytes) = (0_u64, 0_u64, 0_u64);
    for (index, path) in inputs.iter().enumerate() {
        let Ok(input) = inputs::open(index, path, shares.page_bytes) else {
            continue;
        };
        let Ok(footer) = input.footer() else { continue };
        let metadata = footer.metadata();
        let row_bytes = row_size(metadata, None).bytes;
        // As strategies are chosen: a sorted file is a stream of pages, another one is held whole.
        let held_bytes = if footers::is_sorted(&input, &footer, &options.order_by) {
            pages_bytes(metadata).saturating_add(3 * shares.stream_batch_bytes)
        } else {
            let sorting_bytes = row_bytes.saturating_mul(5) / 4 + 56;
            input.row_count.saturating_mul(sorting_bytes)
        };
        runs_bytes = runs_bytes.saturating_add(held_bytes);
        row_bytes_max = row_bytes_max.max(footers::stored_row_bytes(metadata));
        footers_bytes = footers_bytes.saturating_add(metadata.memory_size() as u64);
    }
    let row_group_bytes = row_bytes_max.saturating_mul(options.row_group_rows as u64) / 4 * 5;
    // The inverse of how a budget is divided: runs, row group and footers have 13 parts of 16.
    let divided = runs_bytes
        .saturating_add(row_group_bytes)
        .saturating_add(footers_bytes);
    divided.saturating_mul(16) / 13
}
