//! The line that moves while something is waited for. Only on a terminal, on standard error, so that what is printed
//! stays clean.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Fast enough to look alive, slow enough to cost nothing.
const TICK: Duration = Duration::from_millis(120);

/// Columns kept free beside the text: spinner, elapsed time, and room for the `^C` that terminals echo. Were the line
/// full, that echo would wrap and the line could not be taken away any more.
const MARGIN: usize = 16;

/// Where the terminal does not tell its width.
const USUAL_WIDTH: usize = 80;

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    /// Nobody looks: nothing is drawn.
    hidden: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { bar: None, hidden: false }
    }

    /// One that draws only where standard error is a terminal.
    pub(crate) fn on_terminal() -> Self {
        Self { bar: None, hidden: !std::io::stderr().is_terminal() }
    }

    /// Shows what is waited for, or takes the line away.
    pub(crate) fn set(&mut self, for_what: Option<String>) {
        let Some(for_what) = for_what.filter(|_| !self.hidden) else {
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
            }
            return;
        };
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // The template is ours and valid; should it not be, the plain spinner says the same.
            if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            bar
        });
        bar.set_message(cut(for_what, width().saturating_sub(MARGIN)));
    }

    /// Runs something that prints, with the line out of the way.
    pub(super) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

fn width() -> usize {
    terminal_size::terminal_size_of(std::io::stderr()).map_or(USUAL_WIDTH, |(width, _)| usize::from(width.0))
}

fn cut(text: String, width: usize) -> String {
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(cut("né été".to_owned(), 6), "né été");
        assert_eq!(cut("né été".to_owned(), 5), "né é…");
        assert_eq!(cut("x".to_owned(), 0), "…");
    }
}
