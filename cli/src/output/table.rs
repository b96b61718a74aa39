//! Aligned columns. Pure.
//!
//! Columns are as wide as their widest cell, measured in terminal columns, so wide characters
//! align. On a terminal the columns that may shrink give way until a line fits.

use super::View;
use super::text;

/// How a cell is painted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Paint {
    /// As it is.
    #[default]
    Plain,
    /// Heading.
    Bold,
    /// Of less weight.
    Dim,
    /// Well.
    Green,
    /// Wrong.
    Red,
    /// To be looked at.
    Yellow,
    /// At work.
    Blue,
}

impl Paint {
    /// The text between the sequences that paint it.
    pub fn on(self, text: &str, colour: bool) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Green => "32",
            Self::Red => "31",
            Self::Yellow => "33",
            Self::Blue => "36",
        };
        if colour && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// A piece of text in a table, without control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    /// A painted cell.
    pub fn painted(text: impl AsRef<str>, paint: Paint) -> Self {
        Self {
            text: text::printable(text.as_ref()),
            paint,
        }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::painted(text, Paint::Plain)
    }
}

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    right: bool,
    shrinks_to: Option<usize>,
    plain_most: Option<usize>,
}

impl Column {
    /// Aligned to the left, never cut.
    pub const fn left(title: &'static str) -> Self {
        Self {
            title,
            right: false,
            shrinks_to: None,
            plain_most: None,
        }
    }

    /// Aligned to the right, never cut.
    pub const fn right(title: &'static str) -> Self {
        Self {
            title,
            right: true,
            shrinks_to: None,
            plain_most: None,
        }
    }

    /// May be cut down to so many columns where the terminal is narrow.
    #[must_use]
    pub const fn shrinking(mut self, least: usize) -> Self {
        self.shrinks_to = Some(least);
        self
    }

    /// Is cut at so many columns where there is no terminal, whose readers pay for every word.
    #[must_use]
    pub const fn plain_at_most(mut self, most: usize) -> Self {
        self.plain_most = Some(most);
        self
    }
}

/// Spaces between columns.
const GAP: usize = 2;

/// A table with a heading. Columns without any content are left out.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[Column]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert!(cells.len() <= self.columns.len());
        self.rows.push(cells);
    }

    /// The lines, each ended by a newline.
    pub fn render(&self, view: &View) -> String {
        let used: Vec<usize> = (0..self.columns.len())
            .filter(|&index| {
                self.rows
                    .iter()
                    .any(|row| row.get(index).is_some_and(|cell| !cell.text.is_empty()))
            })
            .collect();
        let widths = self.widths(&used, view.width);
        let heading: Vec<Cell> = self
            .columns
            .iter()
            .map(|column| Cell::painted(column.title, Paint::Bold))
            .collect();
        let mut out = String::new();
        for row in std::iter::once(&heading).chain(&self.rows) {
            self.line(row, &used, &widths, view, &mut out);
        }
        out
    }

    fn widths(&self, used: &[usize], limit: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = used
            .iter()
            .map(|&index| {
                let cells = self.rows.iter().filter_map(|row| row.get(index));
                cells
                    .map(|cell| text::width(&cell.text))
                    .chain([text::width(self.columns[index].title)])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let Some(limit) = limit else {
            for (width, &index) in widths.iter_mut().zip(used) {
                *width = self.columns[index]
                    .plain_most
                    .map_or(*width, |most| most.min(*width));
            }
            return widths;
        };
        let gaps = GAP * used.len().saturating_sub(1);
        loop {
            let excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(limit);
            // The widest column that can still give way gives what is missing, or all it can.
            let widest = (0..used.len())
                .filter(|&at| {
                    self.columns[used[at]]
                        .shrinks_to
                        .is_some_and(|least| widths[at] > least)
                })
                .max_by_key(|&at| widths[at]);
            let Some(at) = widest.filter(|_| excess > 0) else {
                return widths;
            };
            let least = self.columns[used[at]].shrinks_to.unwrap_or(0);
            widths[at] = widths[at].saturating_sub(excess).max(least);
        }
    }

    fn line(&self, row: &[Cell], used: &[usize], widths: &[usize], view: &View, out: &mut String) {
        let empty = Cell::default();
        let mut line = String::new();
        for (at, (&index, &columns)) in used.iter().zip(widths).enumerate() {
            let cell = row.get(index).unwrap_or(&empty);
            let shown = text::cut(&cell.text, columns);
            let padding = " ".repeat(columns.saturating_sub(text::width(&shown)));
            let painted = cell.paint.on(&shown, view.colour);
            if at > 0 {
                line.push_str(&" ".repeat(GAP));
            }
            if self.columns[index].right {
                line.push_str(&padding);
                line.push_str(&painted);
            } else {
                line.push_str(&painted);
                line.push_str(&padding);
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// Pairs of a title and a text, one below the other; empty texts are left out.
pub fn facts(pairs: &[(&str, String)], view: &View) -> String {
    let shown: Vec<_> = pairs.iter().filter(|(_, text)| !text.is_empty()).collect();
    let widest = shown
        .iter()
        .map(|(title, _)| text::width(title))
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    for (title, value) in shown {
        let padding = " ".repeat(widest - text::width(title) + GAP);
        out.push_str(&Paint::Dim.on(title, view.colour));
        out.push_str(&padding);
        out.push_str(value);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::time::Zone;
    use chrono::{DateTime, FixedOffset};

    fn view(width: Option<usize>) -> View {
        View {
            now: DateTime::UNIX_EPOCH,
            zone: Zone::Fixed(FixedOffset::east_opt(0).unwrap()),
            colour: false,
            width,
        }
    }

    fn table() -> Table {
        let mut table = Table::new(&[
            Column::right("JOB"),
            Column::left("NAME").shrinking(6),
            Column::left("NEVER"),
            Column::left("STATE"),
        ]);
        table.row(vec![
            "7".into(),
            "画像抽出".into(),
            "".into(),
            "running".into(),
        ]);
        table.row(vec![
            "123".into(),
            "plain name".into(),
            "".into(),
            "queued".into(),
        ]);
        table
    }

    #[test]
    fn wide_characters_align_and_empty_columns_vanish() {
        assert_eq!(
            table().render(&view(None)),
            "JOB  NAME        STATE\n  7  画像抽出    running\n123  plain name  queued\n"
        );
    }

    #[test]
    fn without_a_terminal_long_texts_are_cut_where_told() {
        let mut table = Table::new(&[Column::left("NAME").plain_at_most(8), Column::left("X")]);
        table.row(vec!["a long name".into(), "a long text".into()]);
        assert_eq!(
            table.render(&view(None)),
            "NAME      X\na long …  a long text\n"
        );
    }

    #[test]
    fn narrow_terminals_cut_what_may_be_cut() {
        assert_eq!(
            table().render(&view(Some(20))),
            "JOB  NAME    STATE\n  7  画像…   running\n123  plain…  queued\n"
        );
        // Nothing is cut below its least width.
        assert!(table().render(&view(Some(5))).contains("plain…"));
    }
}
