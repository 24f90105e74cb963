//! Plain tables.

use comfy_table::{Cell, CellAlignment, Table, presets};

/// Writes `rows` as a plain table. `columns` has the head and the alignment of each column.
pub fn table<R>(columns: &[(&str, CellAlignment)], rows: impl Iterator<Item = R>) -> String
where
    R: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|(head, align)| Cell::new(head).set_alignment(*align)));
    for row in rows {
        table.add_row(
            row.into_iter().zip(columns).map(|(text, (_, align))| Cell::new(text).set_alignment(*align)),
        );
    }
    table.trim_fmt() + "\n"
}
