//! What a run of forwards shows: the same events as lines for people or as JSON for scripts.

mod json;
mod progress;
mod style;
mod text;

use std::io::{self, IsTerminal as _};

use kftray_commons::Event;

pub(crate) use progress::Progress;
pub(crate) use style::{Paint, colours_on};
pub(crate) use text::bytes;

use crate::cli::Output;
use json::JsonScreen;
use text::TextScreen;

/// Where events go.
pub(crate) trait Screen {
    /// Shows an event.
    ///
    /// # Errors
    /// The other end of the pipe is gone.
    fn event(&mut self, event: &Event) -> io::Result<()>;

    /// Something worth knowing that is no event, for people only.
    ///
    /// # Errors
    /// As [`Self::event`].
    fn note(&mut self, text: &str) -> io::Result<()>;

    /// What is being waited for, shown until the next call; `None`: nothing.
    fn waiting(&mut self, for_what: Option<String>);

    /// The run ends by a signal: what a terminal may have echoed for it (`^C`) is taken away.
    ///
    /// # Errors
    /// As [`Self::event`].
    fn interrupted(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The screen that was asked for. With `command`, standard output belongs to the command and everything goes to standard
/// error. `width` is the longest label's, in characters.
pub(crate) fn screen(output: Output, command: bool, width: usize) -> Box<dyn Screen> {
    let terminal = if command { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
    let main: Box<dyn io::Write> = if command { Box::new(io::stderr()) } else { Box::new(io::stdout()) };
    match output {
        Output::Json => Box::new(JsonScreen::new(main)),
        Output::Text => {
            let progress = (terminal && io::stderr().is_terminal()).then(Progress::new);
            let paint = Paint::new(colours_on(terminal));
            let aside_paint = Paint::new(colours_on(io::stderr().is_terminal()));
            let aside = Box::new(io::stderr());
            Box::new(TextScreen::new(main, paint, aside, aside_paint, progress, width, text::wall_clock))
        }
    }
}
