//! Plain text tables: first column left, the others right.

/// Lays out rows of cells below a header line.
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column)).map(String::as_str);
        cells.chain(header.get(column).copied()).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let mut out = String::from(" ");
        for (column, (cell, &w)) in cells.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(w.saturating_sub(cell.chars().count()));
            out.push_str(&if column == 0 { format!(" {cell}{pad}") } else { format!("  {pad}{cell}") });
        }
        out.trim_end().to_string() + "\n"
    };
    let rule: Vec<String> = widths.iter().map(|&w| "-".repeat(w)).collect();
    let mut out = line(header);
    out.push_str(&line(&rule.iter().map(String::as_str).collect::<Vec<_>>()));
    for row in rows {
        out.push_str(&line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["pp512".into(), "1234.5".into()], vec!["tg64".into(), "9.0".into()]];
        assert_eq!(
            render(&["test", "t/s"], &rows),
            "  test      t/s\n  -----  ------\n  pp512  1234.5\n  tg64      9.0\n"
        );
    }
}
