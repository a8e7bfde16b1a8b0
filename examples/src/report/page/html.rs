//! Tables in HTML, with escaped text.

use interlock::tools::timeline::escape;

/// A cell of a table.
pub(super) struct Cell {
    text: String,
    number: bool,
    /// The colour of the curve that it names.
    key: Option<usize>,
}

impl Cell {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), number: false, key: None }
    }

    /// Makes a cell that is aligned right, on one line.
    pub(super) fn number(text: impl Into<String>) -> Self {
        Self { text: text.into(), number: true, key: None }
    }

    /// Adds the colour of curve `n` before the cell's text.
    pub(super) fn keyed(self, n: usize) -> Self {
        Self { key: Some(n), ..self }
    }

    fn show(&self, tag: &str) -> String {
        let class = if self.number { " class=\"n\"" } else { "" };
        let key = self.key.map_or_else(String::new, |n| {
            format!("<svg class=\"key\" viewBox=\"0 0 12 12\"><rect class=\"plot-dot{}\" width=\"12\" height=\"12\"/></svg>", n % 10)
        });
        format!("<{tag}{class}>{key}{}</{tag}>", escape(&self.text))
    }
}

/// Writes a table; the first cell of each row is its heading.
pub(super) fn table(header: &[Cell], rows: &[Vec<Cell>]) -> String {
    let mut html = "<div class=\"sheet\"><table>\n<thead><tr>".to_owned();
    header.iter().for_each(|cell| html += &cell.show("th"));
    html += "</tr></thead>\n<tbody>\n";
    for row in rows {
        html += "<tr>";
        for (n, cell) in row.iter().enumerate() {
            html += &cell.show(if n == 0 { "th" } else { "td" });
        }
        html += "</tr>\n";
    }
    html + "</tbody></table></div>\n"
}

/// Writes a table of names and values.
pub(super) fn pairs(rows: &[(&str, String)]) -> String {
    let row =
        |(name, value): &(&str, String)| format!("<tr><th>{}</th><td>{}</td></tr>\n", escape(name), escape(value));
    let rows: String = rows.iter().map(row).collect();
    format!("<div class=\"sheet\"><table class=\"pair\"><tbody>\n{rows}</tbody></table></div>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_text_is_escaped() {
        let evil = "<script>\"'&\u{0}";
        let html =
            table(&[Cell::text(evil)], &[vec![Cell::number(evil).keyed(12)]]) + &pairs(&[("a", evil.to_owned())]);
        assert_eq!(html.matches("&lt;script&gt;&quot;&#39;&amp;\u{fffd}").count(), 3);
        assert!(!html.contains("<script") && html.contains("plot-dot2"));
    }
}
