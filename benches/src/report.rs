//! Medians over the rounds, as a Markdown table and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::measure::Figure;

/// All that one contender showed under one load, one entry per round.
#[derive(Debug, Default)]
pub struct Series {
    /// What it showed.
    pub figures: Vec<Figure>,
    /// Processor seconds of its process in each round.
    pub cpu: Vec<f64>,
    /// Rounds that did not come to their end, with the reason.
    pub broken: Vec<String>,
}

/// One cell of the table.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Cell {
    /// Median of the main value, if any round came to its end.
    pub value: Option<f64>,
    /// Median of the 99th percentiles.
    pub p99: Option<f64>,
    /// Failed attempts in all rounds.
    pub failed: usize,
    /// Rounds that did not come to their end.
    pub broken: usize,
    /// Processor seconds per GB or per 1,000 connections, median.
    pub cpu_per_unit: Option<f64>,
}

/// One row: a load and every contender's cell, by title.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub title: String,
    /// The cells, in the order of the columns.
    pub cells: Vec<Cell>,
}

impl Series {
    /// The medians; `unit` is the amount (bytes, connections) that processor time is divided by.
    #[must_use]
    pub fn cell(&self, unit: f64) -> Cell {
        let per_unit = self
            .figures
            .iter()
            .zip(&self.cpu)
            .filter(|(figure, _)| figure.amount > 0.0)
            .map(|(figure, cpu)| cpu / (figure.amount / unit));
        Cell {
            value: median(self.figures.iter().map(|figure| figure.value)),
            p99: median(self.figures.iter().filter_map(|figure| figure.p99)),
            failed: self.figures.iter().map(|figure| figure.failed).sum(),
            broken: self.broken.len(),
            cpu_per_unit: median(per_unit),
        }
    }
}

/// The middle value; of an even number the lower of the two.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

/// A Markdown table.
#[must_use]
pub fn table(columns: &[&str], rows: &[Row]) -> String {
    let mut text = format!("| | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    for row in rows {
        let cells: Vec<String> = row.cells.iter().map(shown).collect();
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "| {} | {} |", row.title, cells.join(" | "));
    }
    text
}

fn shown(cell: &Cell) -> String {
    let Some(value) = cell.value else {
        return if cell.broken > 0 { "hangs or breaks".to_owned() } else { "-".to_owned() };
    };
    let mut text = number(value);
    if let Some(p99) = cell.p99 {
        text = format!("{text} / {}", number(p99));
    }
    if cell.failed > 0 {
        text = format!("{text} ({} failed)", cell.failed);
    }
    if cell.broken > 0 {
        text = format!("{text} ({} rounds broke)", cell.broken);
    }
    text
}

/// Three significant digits at most.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_becomes_medians_and_counts() {
        let figure = |value, failed| Figure { value, p99: None, failed, amount: 2_000.0 };
        let series = Series {
            figures: vec![figure(3.0, 1), figure(1.0, 0), figure(2.0, 4)],
            cpu: vec![2.0, 4.0, 6.0],
            broken: vec!["cut".to_owned()],
        };
        let cell = series.cell(1_000.0);
        assert_eq!((cell.value, cell.failed, cell.broken, cell.cpu_per_unit), (Some(2.0), 5, 1, Some(2.0)));
        assert_eq!(shown(&cell), "2.00 (5 failed) (1 rounds broke)");
        assert_eq!(
            shown(&Series { broken: vec![String::new()], ..Series::default() }.cell(1.0)),
            "hangs or breaks"
        );
    }
}
