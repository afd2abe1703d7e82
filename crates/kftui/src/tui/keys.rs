//! The keys: one table, from which key presses are understood and the legend, the help and the command palette are made.
//! Where the reference has a key for something, it is the same here.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// What a person can ask for, whatever the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Left,
    Right,
    /// Go on: into what is under the cursor, or do what the window is for.
    Open,
    /// One step back; closes a window.
    Back,
    Next,
    Previous,
    Tick,
    TickAll,
    Toggle,
    Restart,
    StartAll,
    StopAll,
    Browse,
    New,
    Edit,
    Duplicate,
    Delete,
    Undo,
    Tags,
    FreePort,
    Copy,
    Search,
    Arrange,
    Import,
    Export,
    Settings,
    Palette,
    Help,
    Quit,
    /// Without questions.
    QuitNow,
    /// Keep what was entered and start it.
    SaveStart,
    Clear,
    Yes,
    No,
}

/// Where a key means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    Anywhere,
    List,
    Details,
    Search,
    Picker,
    Form,
    Prompt,
    Report,
    Arrange,
    Settings,
    Palette,
    Confirm,
    Help,
}

/// A key with its modifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chord {
    code: KeyCode,
    modifiers: KeyModifiers,
}

/// A line of the table.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) scope: Scope,
    pub(super) chords: &'static [Chord],
    pub(super) action: Action,
    /// For the help and the palette.
    pub(super) text: &'static str,
    /// For the legend, where there is room for it.
    pub(super) short: Option<&'static str>,
}

const fn plain(code: KeyCode) -> Chord {
    Chord { code, modifiers: KeyModifiers::NONE }
}

const fn letter(letter: char) -> Chord {
    plain(KeyCode::Char(letter))
}

const fn ctrl(letter: char) -> Chord {
    Chord { code: KeyCode::Char(letter), modifiers: KeyModifiers::CONTROL }
}

const UP: &[Chord] = &[plain(KeyCode::Up)];
const DOWN: &[Chord] = &[plain(KeyCode::Down)];
const UP_K: &[Chord] = &[plain(KeyCode::Up), letter('k')];
const DOWN_J: &[Chord] = &[plain(KeyCode::Down), letter('j')];
const PAGE_UP: &[Chord] = &[plain(KeyCode::PageUp)];
const PAGE_DOWN: &[Chord] = &[plain(KeyCode::PageDown)];
const FIRST: &[Chord] = &[plain(KeyCode::Home), letter('g')];
const LAST: &[Chord] = &[plain(KeyCode::End), letter('G')];
const HOME: &[Chord] = &[plain(KeyCode::Home)];
const END: &[Chord] = &[plain(KeyCode::End)];
const LEFT: &[Chord] = &[plain(KeyCode::Left)];
const RIGHT: &[Chord] = &[plain(KeyCode::Right)];
const ENTER: &[Chord] = &[plain(KeyCode::Enter)];
const ESC: &[Chord] = &[plain(KeyCode::Esc)];
const ESC_Q: &[Chord] = &[plain(KeyCode::Esc), letter('q')];
const SPACE: &[Chord] = &[letter(' ')];
const TAB: &[Chord] = &[plain(KeyCode::Tab)];
const BACK_TAB: &[Chord] = &[plain(KeyCode::BackTab)];
/// Many terminals send Ctrl+Backspace as Ctrl+H, so that it is left to the lines.
const HELP: &[Chord] = &[letter('h'), letter('?'), plain(KeyCode::F(1))];

const fn line(
    scope: Scope,
    chords: &'static [Chord],
    action: Action,
    short: Option<&'static str>,
    text: &'static str,
) -> Binding {
    Binding { scope, chords, action, text, short }
}

/// Every key. Within a scope the more useful come first: the legend shows as many as there is room for.
pub(super) const BINDINGS: &[Binding] = {
    use Action as A;
    use Scope as S;
    &[
        line(
            S::List,
            &[letter('f')],
            A::Toggle,
            Some("start/stop"),
            "Start or stop: the ticked ones, the group or the forward",
        ),
        line(S::List, ENTER, A::Open, Some("open"), "Details of the forward; fold or unfold the group"),
        line(S::List, &[letter('b')], A::Browse, Some("browse"), "Browse a cluster and add from it"),
        line(S::List, &[letter('n')], A::New, Some("new"), "New forward"),
        line(
            S::List,
            &[letter('/')],
            A::Search,
            Some("find"),
            "Search name, target, context, namespace, tags, port, state",
        ),
        line(
            S::List,
            &[letter(':'), ctrl('p')],
            A::Palette,
            Some("more"),
            "Command palette: every command and forward by name",
        ),
        line(S::List, HELP, A::Help, Some("help"), "This help"),
        line(S::List, &[letter('q')], A::Quit, Some("quit"), "Close this window; the forwards go on"),
        line(S::List, SPACE, A::Tick, None, "Tick the forward or the group, for a command on several"),
        line(S::List, &[letter('a'), ctrl('a')], A::TickAll, None, "Tick all that are shown, or none"),
        line(S::List, &[letter('r')], A::Restart, None, "Restart; what waits tries again now"),
        line(S::List, &[letter('S')], A::StartAll, None, "Start all that are shown"),
        line(S::List, &[letter('X')], A::StopAll, None, "Stop all"),
        line(S::List, &[letter('c'), plain(KeyCode::F(2))], A::Edit, None, "Change the forward"),
        line(S::List, &[letter('D')], A::Duplicate, None, "Duplicate the forward"),
        line(S::List, &[letter('d'), plain(KeyCode::Delete)], A::Delete, None, "Delete; asks first"),
        line(S::List, &[letter('u')], A::Undo, None, "Put back what was deleted last"),
        line(S::List, &[letter('t')], A::Tags, None, "Tags and group"),
        line(
            S::List,
            &[letter('p')],
            A::FreePort,
            None,
            "Start on the next free port if the local port is in use",
        ),
        line(S::List, &[letter('y')], A::Copy, None, "Copy the local address"),
        line(S::List, &[letter('v')], A::Arrange, None, "View: group by, show only"),
        line(S::List, &[letter('i')], A::Import, None, "Import a file (pasted JSON is imported too)"),
        line(S::List, &[letter('e')], A::Export, None, "Export to a file"),
        line(S::List, &[letter('s')], A::Settings, None, "Settings"),
        line(S::List, UP_K, A::Up, None, "Up"),
        line(S::List, DOWN_J, A::Down, None, "Down"),
        line(S::List, PAGE_UP, A::PageUp, None, "A page up"),
        line(S::List, PAGE_DOWN, A::PageDown, None, "A page down"),
        line(S::List, FIRST, A::First, None, "To the first"),
        line(S::List, LAST, A::Last, None, "To the last"),
        line(S::List, LEFT, A::Left, None, "Fold the group"),
        line(S::List, RIGHT, A::Right, None, "Unfold the group"),
        line(S::List, TAB, A::Next, None, "To the details"),
        line(S::List, ESC, A::Back, None, "Clear ticks, then the search"),
        //
        line(S::Details, &[letter('f')], A::Toggle, Some("start/stop"), "Start or stop"),
        line(S::Details, &[letter('r')], A::Restart, Some("restart"), "Restart; if it waits, try again now"),
        line(S::Details, &[letter('c'), plain(KeyCode::F(2))], A::Edit, Some("change"), "Change it"),
        line(S::Details, &[letter('y')], A::Copy, Some("copy address"), "Copy the local address"),
        line(
            S::Details,
            &[letter('p')],
            A::FreePort,
            None,
            "Start on the next free port if the local port is in use",
        ),
        line(S::Details, UP_K, A::Up, None, "Scroll up"),
        line(S::Details, DOWN_J, A::Down, None, "Scroll down"),
        line(S::Details, PAGE_UP, A::PageUp, None, "A page up"),
        line(S::Details, PAGE_DOWN, A::PageDown, None, "A page down"),
        line(S::Details, FIRST, A::First, None, "To the top"),
        line(
            S::Details,
            &[plain(KeyCode::Esc), letter('q'), plain(KeyCode::Enter), plain(KeyCode::Tab)],
            A::Back,
            Some("back"),
            "Back to the list",
        ),
        line(S::Details, HELP, A::Help, Some("help"), "This help"),
        //
        line(S::Search, ENTER, A::Open, Some("keep"), "Keep the search and go back to the list"),
        line(S::Search, ESC, A::Back, Some("clear"), "Clear the search"),
        line(S::Search, UP, A::Up, None, "Up in the list"),
        line(S::Search, DOWN, A::Down, None, "Down in the list"),
        //
        line(
            S::Picker,
            ENTER,
            A::Open,
            Some("go on"),
            "Into what is under the cursor; on a port: add and start",
        ),
        line(S::Picker, SPACE, A::Tick, Some("tick"), "Tick Services or ports, to add several at once"),
        line(
            S::Picker,
            &[ctrl('e')],
            A::Edit,
            Some("fill in first"),
            "Into the form with it, to change something first",
        ),
        line(S::Picker, TAB, A::Next, Some("services/workloads"), "Services or workloads"),
        line(S::Picker, &[plain(KeyCode::Left), plain(KeyCode::Esc)], A::Back, Some("back"), "A step back"),
        line(S::Picker, RIGHT, A::Right, None, "Into what is under the cursor"),
        line(S::Picker, UP, A::Up, None, "Up"),
        line(S::Picker, DOWN, A::Down, None, "Down"),
        line(S::Picker, PAGE_UP, A::PageUp, None, "A page up"),
        line(S::Picker, PAGE_DOWN, A::PageDown, None, "A page down"),
        line(S::Picker, HOME, A::First, None, "To the first"),
        line(S::Picker, END, A::Last, None, "To the last"),
        //
        line(S::Form, ENTER, A::Open, Some("save"), "Save"),
        line(S::Form, &[ctrl('s')], A::SaveStart, Some("save and start"), "Save and start"),
        line(S::Form, &[plain(KeyCode::Down), plain(KeyCode::Tab)], A::Next, Some("next"), "Next field"),
        line(S::Form, &[plain(KeyCode::Up), plain(KeyCode::BackTab)], A::Previous, None, "Field before"),
        line(S::Form, &[plain(KeyCode::PageUp)], A::First, None, "First field"),
        line(S::Form, &[plain(KeyCode::PageDown)], A::Last, None, "Last field"),
        line(S::Form, ESC, A::Back, Some("cancel"), "Cancel"),
        //
        line(S::Prompt, ENTER, A::Open, Some("go on"), "Go on"),
        line(S::Prompt, TAB, A::Next, Some("complete"), "Complete a path; next line"),
        line(S::Prompt, BACK_TAB, A::Previous, None, "Line before"),
        line(S::Prompt, DOWN, A::Down, None, "Down"),
        line(S::Prompt, UP, A::Up, None, "Up"),
        line(S::Prompt, ESC, A::Back, Some("cancel"), "Cancel"),
        //
        line(S::Report, &[plain(KeyCode::Enter), letter('y')], A::Yes, Some("go on"), "Go on"),
        line(S::Report, ESC_Q, A::No, Some("cancel"), "Close"),
        line(S::Report, UP_K, A::Up, None, "Scroll up"),
        line(S::Report, DOWN_J, A::Down, None, "Scroll down"),
        line(S::Report, PAGE_UP, A::PageUp, None, "A page up"),
        line(S::Report, PAGE_DOWN, A::PageDown, None, "A page down"),
        //
        line(
            S::Arrange,
            &[letter(' '), plain(KeyCode::Enter)],
            A::Tick,
            Some("choose"),
            "Choose what is under the cursor",
        ),
        line(S::Arrange, &[letter('c')], A::Clear, Some("clear"), "Clear: show everything"),
        line(S::Arrange, UP_K, A::Up, None, "Up"),
        line(S::Arrange, DOWN_J, A::Down, None, "Down"),
        line(S::Arrange, PAGE_UP, A::PageUp, None, "A page up"),
        line(S::Arrange, PAGE_DOWN, A::PageDown, None, "A page down"),
        line(S::Arrange, &[plain(KeyCode::Esc), letter('q'), letter('v')], A::Back, Some("done"), "Done"),
        //
        line(
            S::Settings,
            &[plain(KeyCode::Right), letter(' '), plain(KeyCode::Enter)],
            A::Right,
            Some("change"),
            "Change: on or off, more",
        ),
        line(S::Settings, LEFT, A::Left, None, "Change: less"),
        line(S::Settings, UP_K, A::Up, None, "Up"),
        line(S::Settings, DOWN_J, A::Down, None, "Down"),
        line(S::Settings, &[plain(KeyCode::Esc), letter('q'), letter('s')], A::Back, Some("done"), "Done"),
        //
        line(S::Palette, ENTER, A::Open, Some("do it"), "Do what is under the cursor"),
        line(S::Palette, UP, A::Up, None, "Up"),
        line(S::Palette, DOWN, A::Down, None, "Down"),
        line(S::Palette, PAGE_UP, A::PageUp, None, "A page up"),
        line(S::Palette, PAGE_DOWN, A::PageDown, None, "A page down"),
        line(S::Palette, ESC, A::Back, Some("close"), "Close"),
        //
        line(S::Confirm, &[letter('y'), plain(KeyCode::Enter)], A::Yes, Some("yes"), "Yes"),
        line(S::Confirm, &[letter('n'), plain(KeyCode::Esc), letter('q')], A::No, Some("no"), "No"),
        //
        line(S::Help, UP_K, A::Up, None, "Up"),
        line(S::Help, DOWN_J, A::Down, Some("scroll"), "Down"),
        line(S::Help, PAGE_UP, A::PageUp, None, "A page up"),
        line(S::Help, &[plain(KeyCode::PageDown), letter(' ')], A::PageDown, None, "A page down"),
        line(S::Help, FIRST, A::First, None, "To the top"),
        line(S::Help, LAST, A::Last, None, "To the end"),
        line(
            S::Help,
            &[plain(KeyCode::Esc), letter('q'), letter('h'), letter('?'), plain(KeyCode::Enter)],
            A::Back,
            Some("close"),
            "Close",
        ),
        //
        line(S::Anywhere, &[ctrl('c')], A::QuitNow, None, "Close this window at once; the forwards go on"),
    ]
};

impl Scope {
    /// In the order of the help.
    pub(super) const ALL: [Self; 13] = [
        Self::List,
        Self::Details,
        Self::Search,
        Self::Picker,
        Self::Form,
        Self::Prompt,
        Self::Report,
        Self::Arrange,
        Self::Settings,
        Self::Palette,
        Self::Confirm,
        Self::Help,
        Self::Anywhere,
    ];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Anywhere => "Anywhere",
            Self::List => "List",
            Self::Details => "Details",
            Self::Search => "Search",
            Self::Picker => "Cluster",
            Self::Form => "Form",
            Self::Prompt => "Lines to fill in",
            Self::Report => "Reports",
            Self::Arrange => "View",
            Self::Settings => "Settings",
            Self::Palette => "Command palette",
            Self::Confirm => "Questions",
            Self::Help => "Help",
        }
    }

    /// Its lines of the table.
    pub(super) fn bindings(self) -> impl Iterator<Item = &'static Binding> {
        BINDINGS.iter().filter(move |binding| binding.scope == self)
    }
}

impl Chord {
    fn is(self, key: KeyEvent) -> bool {
        let relevant = KeyModifiers::CONTROL | KeyModifiers::ALT | KeyModifiers::SUPER;
        // Shift is in the letter itself, and BackTab is Tab with it.
        self.code == key.code && self.modifiers == key.modifiers & relevant
    }

    /// As on the key caps.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the others are named well by the library")]
    pub(super) fn name(self) -> String {
        let key = match self.code {
            KeyCode::Char(' ') => "Space".to_owned(),
            KeyCode::Char(letter) if self.modifiers == KeyModifiers::CONTROL => {
                letter.to_ascii_uppercase().to_string()
            }
            KeyCode::Up => "↑".to_owned(),
            KeyCode::Down => "↓".to_owned(),
            KeyCode::Left => "←".to_owned(),
            KeyCode::Right => "→".to_owned(),
            KeyCode::PageUp => "PgUp".to_owned(),
            KeyCode::PageDown => "PgDn".to_owned(),
            KeyCode::BackTab => "Shift+Tab".to_owned(),
            KeyCode::Delete => "Del".to_owned(),
            code => code.to_string(),
        };
        if self.modifiers == KeyModifiers::CONTROL { format!("Ctrl+{key}") } else { key }
    }
}

impl Binding {
    /// Its keys, most usual first.
    pub(super) fn keys(&self) -> String {
        let names: Vec<String> = self.chords.iter().map(|chord| chord.name()).collect();
        names.join(" ")
    }

    /// The key to name where there is room for one.
    pub(super) fn key(&self) -> String {
        self.chords.first().map(|chord| chord.name()).unwrap_or_default()
    }
}

/// What a key means in a scope.
pub(super) fn action(scope: Scope, key: KeyEvent) -> Option<Action> {
    let bound =
        |scope: Scope| scope.bindings().find(|binding| binding.chords.iter().any(|chord| chord.is(key)));
    bound(scope).or_else(|| bound(Scope::Anywhere)).map(|binding| binding.action)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_means_two_things() {
        for scope in Scope::ALL {
            let chords: Vec<Chord> = scope.bindings().flat_map(|binding| binding.chords).copied().collect();
            for (place, chord) in chords.iter().enumerate() {
                assert!(!chords[..place].contains(chord), "{scope:?} {}", chord.name());
            }
            assert!(!chords.is_empty(), "{scope:?}");
        }
        assert!(BINDINGS.iter().all(|binding| Scope::ALL.contains(&binding.scope)));
    }

    #[test]
    fn where_one_types_letters_are_letters() {
        for scope in [Scope::Search, Scope::Form, Scope::Prompt, Scope::Palette] {
            for chord in scope.bindings().flat_map(|binding| binding.chords) {
                let types = matches!(chord.code, KeyCode::Char(_)) && chord.modifiers.is_empty();
                assert!(!types, "{scope:?} {}", chord.name());
            }
        }
    }

    #[test]
    fn the_keys_of_the_reference() {
        use Action as A;
        let expected = [
            ('f', A::Toggle),
            (' ', A::Tick),
            ('a', A::TickAll),
            ('d', A::Delete),
            ('/', A::Search),
            ('i', A::Import),
            ('e', A::Export),
            ('s', A::Settings),
            ('h', A::Help),
            ('v', A::Arrange),
            ('t', A::Tags),
            ('p', A::FreePort),
            ('q', A::Quit),
        ];
        for (letter, wanted) in expected {
            let key = KeyEvent::new(KeyCode::Char(letter), KeyModifiers::NONE);
            assert_eq!(action(Scope::List, key), Some(wanted), "{letter}");
        }
        let shifted = KeyEvent::new(KeyCode::Char('S'), KeyModifiers::SHIFT);
        assert_eq!(action(Scope::List, shifted), Some(A::StartAll));
        let end = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(Scope::ALL.iter().all(|scope| action(*scope, end) == Some(A::QuitNow)));
    }

    #[test]
    fn the_help_fits_eighty_columns() {
        for binding in BINDINGS {
            let (keys, text) = (binding.keys(), binding.text);
            assert!(super::super::text::width(text) <= 58, "{text}");
            assert!(super::super::text::width(&keys) < 16, "{keys}");
        }
    }

    #[test]
    fn names() {
        let names: Vec<String> =
            [ctrl('p'), letter('S'), plain(KeyCode::F(2)), letter(' '), plain(KeyCode::Esc)]
                .map(Chord::name)
                .into();
        assert_eq!(names, ["Ctrl+P", "S", "F2", "Space", "Esc"]);
    }
}
