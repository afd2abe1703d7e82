//! Colours: one accent, three for states, and shades of the terminal's own. Nothing is told by colour alone.
//!
//! Only the terminal's sixteen colours and its default ones are used, so that whatever palette a person has chosen stays
//! in charge; the bar under the cursor is the one shade that differs between light and dark.

use kftray_commons::Status;
use ratatui::style::{Color, Modifier, Style};

/// What a person may choose in the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Choice {
    /// By the environment.
    #[default]
    Auto,
    Dark,
    Light,
    /// No colours.
    Plain,
}

/// The styles of everything that is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Theme {
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dark,
    Light,
    Plain,
}

/// What the environment says about the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Surroundings {
    /// `NO_COLOR` is set (no-color.org), or the terminal knows none.
    pub(super) plain: bool,
    /// `COLORFGBG` tells a light background (rxvt's convention, also of Konsole and iTerm2).
    pub(super) light: bool,
}

impl Surroundings {
    /// From the values of `NO_COLOR`, `TERM` and `COLORFGBG`.
    pub(super) fn of(no_color: Option<&str>, term: Option<&str>, colorfgbg: Option<&str>) -> Self {
        // `15;0` or `0;default;15`: the last is the background, 7 and 9 to 15 are light, 8 is dark grey.
        let background = colorfgbg.and_then(|text| text.rsplit(';').next()?.parse::<u8>().ok());
        Self {
            plain: no_color.is_some_and(|value| !value.is_empty()) || term == Some("dumb"),
            light: background.is_some_and(|colour| colour == 7 || (9..=15).contains(&colour)),
        }
    }
}

impl Choice {
    pub(super) const ALL: [Self; 4] = [Self::Auto, Self::Dark, Self::Light, Self::Plain];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Dark => "dark",
            Self::Light => "light",
            Self::Plain => "no colours",
        }
    }

    pub(super) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|choice| choice.word() == word)
    }
}

impl Theme {
    /// `NO_COLOR` wins over a choice: it is the choice of this shell.
    pub(super) fn of(choice: Choice, surroundings: Surroundings) -> Self {
        let kind = match choice {
            _ if surroundings.plain => Kind::Plain,
            Choice::Plain => Kind::Plain,
            Choice::Light => Kind::Light,
            Choice::Dark => Kind::Dark,
            Choice::Auto if surroundings.light => Kind::Light,
            Choice::Auto => Kind::Dark,
        };
        Self { kind }
    }

    fn coloured(self, dark: Color, light: Color) -> Style {
        match self.kind {
            Kind::Dark => Style::new().fg(dark),
            Kind::Light => Style::new().fg(light),
            Kind::Plain => Style::new(),
        }
    }

    pub(super) fn text(self) -> Style {
        Style::new()
    }

    /// Headings, names under the cursor.
    pub(super) fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// Of second rank.
    pub(super) fn dim(self) -> Style {
        match self.kind {
            // The bright black of most dark palettes is legible; on light ones it is the better grey as well.
            Kind::Dark | Kind::Light => Style::new().fg(Color::DarkGray),
            Kind::Plain => Style::new().add_modifier(Modifier::DIM),
        }
    }

    /// The one accent: what can be acted on, where one is.
    pub(super) fn accent(self) -> Style {
        self.coloured(Color::Cyan, Color::Blue)
    }

    /// It works.
    pub(super) fn good(self) -> Style {
        self.coloured(Color::Green, Color::Green)
    }

    /// It will work again.
    pub(super) fn busy(self) -> Style {
        self.coloured(Color::Yellow, Color::Magenta)
    }

    /// Somebody has to do something.
    pub(super) fn bad(self) -> Style {
        self.coloured(Color::LightRed, Color::Red).add_modifier(Modifier::BOLD)
    }

    /// The row under the cursor; laid under the styles of its parts.
    pub(super) fn cursor(self) -> Style {
        match self.kind {
            Kind::Dark => Style::new().bg(Color::Indexed(237)),
            Kind::Light => Style::new().bg(Color::Indexed(254)),
            Kind::Plain => Style::new().add_modifier(Modifier::REVERSED),
        }
    }

    /// The row under the cursor of a pane that has not the keys.
    pub(super) fn cursor_aside(self) -> Style {
        match self.kind {
            Kind::Dark => Style::new().bg(Color::Indexed(235)),
            Kind::Light => Style::new().bg(Color::Indexed(255)),
            Kind::Plain => Style::new().add_modifier(Modifier::UNDERLINED),
        }
    }

    /// A state's sign and word.
    pub(super) fn status(self, status: &Status) -> Style {
        match status {
            Status::Ready => self.good(),
            Status::Binding | Status::Resolving { .. } | Status::Recovering { .. } | Status::Stopping => {
                self.busy()
            }
            Status::NeedsUser { .. } => self.bad(),
            Status::Stopped => self.dim(),
        }
    }
}

/// One column that stands for a state where there is no room for its word, and beside it where there is.
pub(super) fn sign(status: &Status) -> &'static str {
    match status {
        Status::Ready => "●",
        Status::Binding | Status::Resolving { .. } => "◌",
        Status::Recovering { .. } => "◐",
        Status::Stopping => "◌",
        Status::NeedsUser { .. } => "▲",
        Status::Stopped => "○",
    }
}

/// The state in a word or two, at most [`WORD`] columns.
pub(super) fn word(status: &Status) -> &'static str {
    match status {
        Status::Ready => "ready",
        Status::Binding | Status::Resolving { waiting_for: None } => "starting",
        Status::Resolving { waiting_for: Some(_) } => "waiting",
        Status::Recovering { .. } => "recovering",
        Status::Stopping => "stopping",
        Status::NeedsUser { .. } => "needs you",
        Status::Stopped => "stopped",
    }
}

/// Widest state word, in columns.
pub(super) const WORD: usize = "recovering".len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_decides_unless_somebody_chose() {
        let dark = Surroundings::of(None, Some("xterm"), Some("15;0"));
        let light = Surroundings::of(Some(""), Some("xterm"), Some("0;default;15"));
        let plain = Surroundings::of(Some("1"), None, None);
        assert_eq!(Theme::of(Choice::Auto, dark).kind, Kind::Dark);
        assert_eq!(Theme::of(Choice::Auto, light).kind, Kind::Light);
        assert_eq!(Theme::of(Choice::Dark, light).kind, Kind::Dark);
        assert_eq!(Theme::of(Choice::Light, plain).kind, Kind::Plain);
        assert_eq!(Theme::of(Choice::Auto, Surroundings::of(None, Some("dumb"), None)).kind, Kind::Plain);
        assert!(!Surroundings::of(None, None, Some("0;8")).light);
    }

    #[test]
    fn words_are_read_back() {
        for choice in Choice::ALL {
            assert_eq!(Choice::parse(choice.word()), Some(choice));
        }
    }
}
