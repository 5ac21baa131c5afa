//! Tables in Markdown, aligned for reading as text too.

use std::fmt::Write as _;

/// Writes rows as a table; the first holds the headings, and the last column is as long as it is.
pub fn markdown<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if let Some(last) = widths.last_mut() {
        *last = 0;
    }
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a String cannot fail.
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if at == 0 {
            for width in widths {
                let _ = write!(text, "|{}", "-".repeat(width.max(2) + 2));
            }
            text.push_str("|\n");
        }
    }
    text
}
