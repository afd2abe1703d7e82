//! Columns of text: as wide as they must be, two blanks apart, no lines around them, so that `cut` and eyes both work.

use super::plain;
use crate::render::Paint;

/// How a cell is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Strong,
    Good,
    Busy,
    Bad,
    Dim,
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: plain(&text.into()).replace('\t', " "), tone }
    }

    pub(crate) fn strong(text: impl Into<String>) -> Self {
        Self::toned(text, Tone::Strong)
    }

    pub(crate) fn dim(text: impl Into<String>) -> Self {
        Self::toned(text, Tone::Dim)
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// A table under construction.
#[derive(Debug)]
pub(crate) struct Table {
    head: Vec<&'static str>,
    lines: Vec<Line>,
}

#[derive(Debug)]
enum Line {
    Row(Vec<Cell>),
    /// A heading of a group of rows.
    Group(String),
}

impl Table {
    pub(crate) fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), lines: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.lines.push(Line::Row(cells));
    }

    pub(crate) fn group(&mut self, name: impl Into<String>) {
        self.lines.push(Line::Group(name.into()));
    }

    /// The text. Columns that are empty in every row are left out; a table without rows is empty.
    pub(crate) fn render(&self, paint: Paint) -> String {
        let rows = || {
            self.lines.iter().filter_map(|line| match line {
                Line::Row(cells) => Some(cells),
                Line::Group(_) => None,
            })
        };
        if rows().next().is_none() {
            return String::new();
        }
        let width =
            |column: usize| rows().filter_map(|row| row.get(column)).map(|cell| columns(&cell.text)).max();
        // 0: left out.
        let widths: Vec<usize> = self
            .head
            .iter()
            .enumerate()
            .map(|(column, head)| match width(column).unwrap_or_default() {
                0 => 0,
                widest => widest.max(columns(head)),
            })
            .collect();
        let last = widths.iter().rposition(|width| *width > 0).unwrap_or_default();
        let line = |cells: &mut dyn Iterator<Item = (String, usize)>| {
            let mut text = String::new();
            for (column, (painted, used)) in cells.enumerate() {
                let Some(width) = widths.get(column).copied().filter(|width| *width > 0) else { continue };
                text.push_str(&painted);
                if column < last {
                    text.push_str(&" ".repeat(width.saturating_sub(used) + 2));
                }
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
            text
        };
        let mut text = line(&mut self.head.iter().map(|head| (paint.dim(head), columns(head))));
        for one in &self.lines {
            match one {
                Line::Group(name) => {
                    text.push('\n');
                    text.push_str(&paint.strong(name));
                    text.push('\n');
                }
                Line::Row(cells) => {
                    text.push_str(&line(
                        &mut cells.iter().map(|cell| (painted(cell, paint), columns(&cell.text))),
                    ));
                }
            }
        }
        text
    }
}

fn painted(cell: &Cell, paint: Paint) -> String {
    match cell.tone {
        Tone::Plain => cell.text.clone(),
        _ if cell.text.is_empty() => String::new(),
        Tone::Strong => paint.strong(&cell.text),
        Tone::Good => paint.good(&cell.text),
        Tone::Busy => paint.busy(&cell.text),
        Tone::Bad => paint.bad(&cell.text),
        Tone::Dim => paint.dim(&cell.text),
    }
}

/// Width on a terminal, near enough: characters. Names of Kubernetes are ASCII; aliases seldom are not.
fn columns(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other_and_empty_ones_go() {
        let mut table = Table::new(&["NAME", "STATE", "GROUP", "WHERE"]);
        table.group("first");
        table.row(vec!["a".into(), Cell::toned("ready", Tone::Good), "".into(), "x".into()]);
        table.group("second");
        table.row(vec!["longer\u{1b}[31m é".into(), "".into(), "".into(), "".into()]);
        assert_eq!(
            table.render(Paint::new(false)),
            "NAME           STATE  WHERE\n\nfirst\na              ready  x\n\nsecond\nlonger\u{fffd}[31m é\n"
        );
        assert!(table.render(Paint::new(true)).contains("\u{1b}[1m\u{1b}[32mready"));
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(Table::new(&["NAME"]).render(Paint::new(false)), "");
    }
}
