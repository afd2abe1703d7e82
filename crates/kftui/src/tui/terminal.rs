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

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    /// A busy machine may be slow.
    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    #[ignore = "run by the test below, in a terminal"]
    fn panics_with_the_terminal_taken_over() {
        let _screen = Screen::open().expect("a terminal");
        panic!("a fault of the window");
    }

    /// What tmux says on a server of this test's own.
    fn tmux(words: &[&str]) -> String {
        let server = format!("kftui-panic-{}", std::process::id());
        let mut command = Command::new("tmux");
        command.args(["-u", "-L", &server]).args(words).env_remove("TMUX");
        let output = command.output().expect("tmux runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[tokio::test]
    async fn a_panic_gives_the_terminal_back() {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("skipped: tmux is not installed (`cargo xtask setup` does it)");
            return;
        }
        let program = std::env::current_exe().expect("this program");
        let test = "tui::terminal::tests::panics_with_the_terminal_taken_over";
        let line = format!("{} --ignored --exact {test} --nocapture; echo over-$((40+2))", program.display());
        tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "120", "-y", "40", "sh"]);
        tmux(&["send-keys", "-l", &line]);
        tmux(&["send-keys", "Enter"]);
        let begun = Instant::now();
        let mut screen = String::new();
        while !screen.contains("over-42") && begun.elapsed() < LIMIT {
            sleep(Duration::from_millis(50)).await;
            screen = tmux(&["capture-pane", "-p"]);
        }
        let flags = tmux(&["display-message", "-p", "#{alternate_on} #{mouse_any_flag} #{cursor_flag}"]);
        tmux(&["kill-server"]);
        assert!(screen.contains("a fault of the window"), "the panic can be read:\n{screen}");
        assert!(screen.contains("over-42"), "{screen}");
        assert_eq!(flags.trim(), "0 0 1");
    }
}
