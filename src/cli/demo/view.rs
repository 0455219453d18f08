//! The live view: files and sizes per iteration, redrawn on a terminal, line by line elsewhere.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{IsTerminal, Write as _},
    time::Duration,
};

use bytesize::ByteSize;

use crate::{
    catalog::{Catalog, CatalogError, EntryFilter},
    worker::Totals,
};

/// Files, bytes and rows of one iteration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) rows: u64,
}

/// What the index holds, by iteration.
pub(super) async fn shares(catalog: &dyn Catalog) -> Result<BTreeMap<u32, Share>, CatalogError> {
    let mut shares: BTreeMap<u32, Share> = BTreeMap::new();
    for table in catalog.tables().await? {
        for entry in catalog.entries(&table, &EntryFilter::default()).await? {
            let share = shares.entry(entry.path.iteration().0).or_default();
            share.files += 1;
            share.bytes += entry.size_bytes;
            share.rows += entry.row_count;
        }
    }
    Ok(shares)
}

/// Draws over its last picture on a terminal.
#[derive(Default)]
pub(super) struct View {
    lines_drawn: usize,
}

impl View {
    pub(super) fn draw(
        &mut self,
        elapsed: Duration,
        shares: &BTreeMap<u32, Share>,
        totals: &Totals,
    ) {
        let mut stdout = std::io::stdout();
        let picture = if stdout.is_terminal() {
            let back = if self.lines_drawn > 0 {
                format!("\x1b[{}A\x1b[J", self.lines_drawn)
            } else {
                String::new()
            };
            let picture = table(elapsed, shares, totals);
            self.lines_drawn = picture.lines().count();
            back + &picture
        } else {
            line(elapsed, shares, totals)
        };
        // A closed pipe ends the view, not the demo.
        let _ = stdout
            .write_all(picture.as_bytes())
            .and_then(|()| stdout.flush());
    }
}

fn table(elapsed: Duration, shares: &BTreeMap<u32, Share>, totals: &Totals) -> String {
    let mut text = format!(
        "{:>4} s   iteration   files         size          rows\n",
        elapsed.as_secs()
    );
    for (iteration, share) in shares {
        let size = ByteSize::b(share.bytes).display().iec().to_string();
        let _ = writeln!(
            text,
            "{iteration:>18} {:>7} {size:>12} {:>13}",
            share.files, share.rows
        );
    }
    let _ = writeln!(
        text,
        "         {} merges, {} replaced files deleted",
        totals.merges(),
        totals.drops()
    );
    text
}

fn line(elapsed: Duration, shares: &BTreeMap<u32, Share>, totals: &Totals) -> String {
    let mut text = format!("{:>3} s", elapsed.as_secs());
    for (iteration, share) in shares {
        let size = ByteSize::b(share.bytes).display().iec().to_string();
        let _ = write!(
            text,
            "  |  iteration {iteration}: {} files, {size}, {} rows",
            share.files, share.rows
        );
    }
    let _ = writeln!(
        text,
        "  |  {} merges, {} deletes",
        totals.merges(),
        totals.drops()
    );
    text
}
