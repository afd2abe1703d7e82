//! The terminal: taken over when the window opens, given back however the program ends.

use std::io::{self, Stdout, Write as _, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::cursor::Show;
use crossterm::event::{
    DisableBracketedPaste, DisableMouseCapture, EnableBracketedPaste, EnableMouseCapture,
};
use crossterm::execute;
use crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, SetTitle, disable_raw_mode, enable_raw_mode,
};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;

use super::model::Model;
use super::view::{Hits, view};

/// The terminal while it is ours.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    /// Whether it still is: shared with the panic hook, which may give it back first.
    ours: Arc<AtomicBool>,
}

impl Screen {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// It cannot be written to, or is none.
    pub(super) fn open() -> io::Result<Self> {
        let ours = Arc::new(AtomicBool::new(true));
        // A panic is told on a terminal on which one can read it.
        let before = std::panic::take_hook();
        let hook_ours = Arc::clone(&ours);
        std::panic::set_hook(Box::new(move |panic| {
            give_back(&hook_ours);
            before(panic);
        }));
        if let Err(error) = take_over() {
            give_back(&ours);
            return Err(error);
        }
        let terminal = Terminal::new(CrosstermBackend::new(stdout())).inspect_err(|_| give_back(&ours))?;
        Ok(Self { terminal, ours })
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> io::Result<(u16, u16)> {
        let size = self.terminal.size()?;
        Ok((size.width, size.height))
    }

    /// Shows the model.
    pub(super) fn draw(&mut self, model: &Model) -> io::Result<Hits> {
        let mut hits = Hits::default();
        self.terminal.draw(|frame| hits = view(model, frame))?;
        Ok(hits)
    }

    /// After the program was stopped and goes on, the terminal is as the shell left it.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        take_over()?;
        self.terminal.clear()
    }

    /// Puts a text into the clipboard, by the terminal (OSC 52), so that it works over SSH as well.
    pub(super) fn copy(&mut self, text: &str) -> io::Result<()> {
        use crossterm::clipboard::CopyToClipboard;
        execute!(stdout(), CopyToClipboard::to_clipboard_from(text))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back(&self.ours);
    }
}

fn take_over() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen, EnableMouseCapture, EnableBracketedPaste, SetTitle("kftray"))
}

/// Gives the terminal back, once. What fails of it cannot be helped.
fn give_back(ours: &AtomicBool) {
    if !ours.swap(false, Ordering::SeqCst) {
        return;
    }
    execute!(stdout(), DisableBracketedPaste, DisableMouseCapture, LeaveAlternateScreen, Show).ok();
    stdout().flush().ok();
    disable_raw_mode().ok();
}
