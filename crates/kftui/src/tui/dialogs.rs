//! The small windows: questions, reports, lines to fill in, the view, the settings, the command palette.

use std::path::{Path, PathBuf};

use kftray_commons::ForwardId;
use kftray_commons::api::{Settings, SettingsPatch};
use kftray_commons::tags::Tags;

use super::arrange::Choice;
use super::data::Data;
use super::editor::Editor;
use super::keys::{Action, Binding, Scope};
use super::message::{Effect, Seen};
use super::model::COLOURS;
use super::theme;

/// A question with yes and no.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ask {
    pub(super) title: String,
    pub(super) lines: Vec<String>,
    pub(super) yes: Yes,
}

/// What a yes does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Yes {
    Do(Effect),
    /// Leave the form that is behind the question.
    DropForm,
}

/// Something to read, and to go on from if there is something to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Report {
    pub(super) title: String,
    pub(super) lines: Vec<(Tone, String)>,
    pub(super) top: usize,
    /// What going on does, and its name.
    pub(super) next: Option<(String, Effect)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Heading,
    Dim,
    Bad,
}

impl Report {
    pub(super) fn failure(title: impl Into<String>, message: &str, remedy: &str) -> Self {
        let lines = vec![
            (Tone::Bad, message.to_owned()),
            (Tone::Plain, String::new()),
            (Tone::Plain, remedy.to_owned()),
        ];
        Self { title: title.into(), lines, top: 0, next: None }
    }
}

/// The choice of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arranging {
    pub(super) choices: Vec<Choice>,
    pub(super) cursor: usize,
}

impl Arranging {
    /// Moves the cursor by so many lines, over headings.
    pub(super) fn step(&mut self, by: isize) {
        let last = self.choices.len().saturating_sub(1);
        let mut next = self.cursor.saturating_add_signed(by).min(last);
        let down = by >= 0;
        while matches!(self.choices.get(next), Some(Choice::Heading(_))) {
            match (down, next) {
                (true, next_line) if next_line < last => next += 1,
                (false, 1..) => next -= 1,
                _ => return,
            }
        }
        self.cursor = next;
    }
}

/// Every command and forward by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Palette {
    pub(super) editor: Editor,
    pub(super) cursor: usize,
}

/// Most forwards the palette offers: nobody reads more, and typing finds the rest.
const PALETTE_FORWARDS: usize = 50;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PaletteItem {
    pub(super) text: String,
    /// Its keys, or what it is.
    pub(super) aside: String,
    pub(super) what: PaletteTarget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PaletteTarget {
    Command(Action),
    Forward(ForwardId),
}

impl Palette {
    /// What is found, commands first.
    pub(super) fn items(&self, data: &Data) -> Vec<PaletteItem> {
        let words: Vec<String> =
            self.editor.text().to_lowercase().split_whitespace().map(str::to_owned).collect();
        let found = |text: &str| {
            let text = text.to_lowercase();
            words.iter().all(|word| text.contains(word))
        };
        let command = |binding: &Binding| PaletteItem {
            text: binding.text.to_owned(),
            aside: binding.keys(),
            what: PaletteTarget::Command(binding.action),
        };
        let commands =
            Scope::List.bindings().filter(|binding| is_command(binding.action) && found(binding.text));
        let mut items: Vec<PaletteItem> = commands.map(command).collect();
        if !words.is_empty() {
            let forwards = data.iter().filter(|entry| entry.matches(&words)).take(PALETTE_FORWARDS);
            items.extend(forwards.map(|entry| PaletteItem {
                text: entry.label().to_owned(),
                aside: format!("{}  {}", entry.target(), theme::word(entry.status())),
                what: PaletteTarget::Forward(entry.id),
            }));
        }
        items
    }
}

/// Whether somebody would look for it by name: not the moving about.
fn is_command(action: Action) -> bool {
    use Action as A;
    match action {
        A::Toggle
        | A::Restart
        | A::StartAll
        | A::StopAll
        | A::Browse
        | A::New
        | A::Edit
        | A::Duplicate
        | A::Delete => true,
        A::Undo | A::Tags | A::FreePort | A::Copy | A::Search | A::Arrange | A::Import | A::Export => true,
        A::Settings | A::Help | A::Quit | A::TickAll => true,
        A::Up
        | A::Down
        | A::PageUp
        | A::PageDown
        | A::First
        | A::Last
        | A::Left
        | A::Right
        | A::Open
        | A::Back => false,
        A::Next
        | A::Previous
        | A::Tick
        | A::Palette
        | A::QuitNow
        | A::SaveStart
        | A::Clear
        | A::Yes
        | A::No => false,
    }
}

/// Lines to fill in.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Prompt {
    Import(PathLine),
    Export { line: PathLine, ids: Vec<ForwardId> },
    Tags(TagLines),
}

/// A path that is completed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct PathLine {
    pub(super) editor: Editor,
    /// The folder whose content is known or asked for.
    folder: Option<PathBuf>,
    seen: Vec<Seen>,
    /// Number of the suggestion under the cursor, from 1; 0 is the line itself.
    pub(super) cursor: usize,
    pub(super) busy: bool,
    pub(super) fault: Option<String>,
}

/// Most suggestions that are shown.
pub(super) const SUGGESTIONS: usize = 8;

impl PathLine {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { editor: Editor::of(text), ..Self::default() }
    }

    /// The path that is meant.
    pub(super) fn path(&self, home: Option<&str>) -> PathBuf {
        expand(self.editor.text(), home)
    }

    /// What to look at so that suggestions fit the line.
    pub(super) fn look(&mut self, home: Option<&str>) -> Option<Effect> {
        self.fault = None;
        self.cursor = 0;
        let folder = folder_of(&expand(self.editor.text(), home), self.editor.text());
        if self.folder.as_ref() == Some(&folder) {
            return None;
        }
        self.seen.clear();
        self.folder = Some(folder.clone());
        Some(Effect::Look(folder))
    }

    pub(super) fn looked(&mut self, folder: &Path, seen: Vec<Seen>) {
        if self.folder.as_deref() == Some(folder) {
            self.seen = seen;
        }
    }

    /// Names that go on from what is typed.
    pub(super) fn suggestions(&self) -> Vec<&Seen> {
        let begun = begun(self.editor.text());
        let fits = |seen: &&Seen| {
            // Hidden ones only where somebody asks for them.
            seen.name.starts_with(begun) && (!seen.name.starts_with('.') || begun.starts_with('.'))
        };
        self.seen.iter().filter(fits).take(SUGGESTIONS).collect()
    }

    /// Goes on with a suggestion.
    pub(super) fn choose(&mut self, suggestion: usize) {
        let Some((folder, name)) =
            self.suggestions().get(suggestion).map(|seen| (seen.folder, seen.name.clone()))
        else {
            return;
        };
        self.complete_to(&name, folder);
    }

    fn complete_to(&mut self, name: &str, folder: bool) {
        let text = self.editor.text();
        let kept = text.len() - begun(text).len();
        let end = if folder { "/" } else { "" };
        let completed = format!("{}{name}{end}", text.get(..kept).unwrap_or(""));
        self.editor = Editor::of(completed);
    }

    /// As far as all suggestions agree.
    pub(super) fn complete(&mut self) {
        let suggestions = self.suggestions();
        if let [only] = suggestions.as_slice() {
            let (name, folder) = (only.name.clone(), only.folder);
            return self.complete_to(&name, folder);
        }
        let Some(first) = suggestions.first().map(|seen| seen.name.clone()) else { return };
        let common =
            suggestions.iter().fold(first.as_str(), |common, seen| shared(common, &seen.name)).to_owned();
        if common.len() > begun(self.editor.text()).len() {
            self.complete_to(&common, false);
        }
    }
}

/// The longest beginning that both have.
fn shared<'a>(one: &'a str, other: &str) -> &'a str {
    let same = one.char_indices().zip(other.chars()).find(|((_, a), b)| a != b);
    let end = same.map_or(one.len().min(other.len()), |((at, _), _)| at);
    one.get(..end).unwrap_or("")
}

/// The part behind the last slash.
fn begun(text: &str) -> &str {
    text.rsplit('/').next().unwrap_or(text)
}

fn folder_of(path: &Path, text: &str) -> PathBuf {
    if text.ends_with('/') {
        return path.to_owned();
    }
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    }
}

/// `~` is the home folder, as in a shell.
pub(super) fn expand(text: &str, home: Option<&str>) -> PathBuf {
    match (text.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            PathBuf::from(format!("{home}{rest}"))
        }
        _ => PathBuf::from(text),
    }
}

/// Tags and group of one forward or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TagLines {
    pub(super) ids: Vec<ForwardId>,
    pub(super) tags: Editor,
    pub(super) group: Editor,
    /// Whether the second line has the keys.
    pub(super) on_group: bool,
    pub(super) fault: Option<String>,
}

impl TagLines {
    /// The tags, if they can be.
    pub(super) fn read(&self) -> Result<Tags, String> {
        Tags::from_text(self.tags.text()).map_err(|fault| fault.to_string())
    }
}

/// The settings; what they are is with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SettingsPane {
    pub(super) cursor: usize,
}

/// A line of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    Restore,
    Idle,
    Ttl,
    HostIdle,
    Network,
    Colours,
}

/// Times that are offered, in minutes.
const MINUTES: [u32; 12] = [0, 1, 5, 10, 15, 30, 60, 120, 240, 480, 720, 1440];

impl Setting {
    pub(super) const ALL: [Self; 6] =
        [Self::Restore, Self::Idle, Self::Ttl, Self::HostIdle, Self::Network, Self::Colours];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Restore => "Restore on start",
            Self::Idle => "Idle limit",
            Self::Ttl => "Time to live",
            Self::HostIdle => "Idle host ends",
            Self::Network => "Watch the network",
            Self::Colours => "Colours",
        }
    }

    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::Restore => "What ran when the host ended runs again when it starts.",
            Self::Idle => "A forward ends after so long without traffic, unless it says otherwise.",
            Self::Ttl => "A forward ends so long after its start, unless it says otherwise.",
            Self::HostIdle => {
                "The background host ends when nothing has run and nobody has looked for so long."
            }
            Self::Network => "Forwards redial at once when the network changes or the machine wakes.",
            Self::Colours => "auto follows the terminal; NO_COLOR always wins.",
        }
    }

    pub(super) fn value(self, settings: &Settings) -> String {
        let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
        let minutes = |minutes: u32| match minutes {
            0 => "never".to_owned(),
            minutes => super::text::span(std::time::Duration::from_secs(u64::from(minutes) * 60)),
        };
        match self {
            Self::Restore => switch(settings.restore),
            Self::Idle => minutes(settings.idle_minutes),
            Self::Ttl => minutes(settings.ttl_minutes),
            Self::HostIdle => minutes(settings.host_idle_minutes),
            Self::Network => switch(settings.network_monitor),
            Self::Colours => colours(settings).word().to_owned(),
        }
    }

    /// What changes it to the next value, or to the one before.
    pub(super) fn change(self, settings: &Settings, forward: bool) -> SettingsPatch {
        let step = |minutes: u32| {
            let next = if forward {
                MINUTES.into_iter().find(|offered| *offered > minutes)
            } else {
                MINUTES.into_iter().rev().find(|offered| *offered < minutes)
            };
            // Around at the ends.
            Some(next.unwrap_or(if forward { 0 } else { 1440 }))
        };
        let mut patch = SettingsPatch::default();
        match self {
            Self::Restore => patch.restore = Some(!settings.restore),
            Self::Idle => patch.idle_minutes = step(settings.idle_minutes),
            Self::Ttl => patch.ttl_minutes = step(settings.ttl_minutes),
            Self::HostIdle => patch.host_idle_minutes = step(settings.host_idle_minutes),
            Self::Network => patch.network_monitor = Some(!settings.network_monitor),
            Self::Colours => {
                let all = theme::Choice::ALL;
                let now = all.iter().position(|choice| *choice == colours(settings)).unwrap_or(0);
                let next = if forward { now + 1 } else { now + all.len() - 1 } % all.len();
                let word = all.get(next).copied().unwrap_or_default().word();
                patch.other.insert(COLOURS.to_owned(), Some(word.to_owned()));
            }
        }
        patch
    }
}

fn colours(settings: &Settings) -> theme::Choice {
    settings.other.get(COLOURS).and_then(|word| theme::Choice::parse(word)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(names: &[&str]) -> Vec<Seen> {
        let one =
            |name: &&str| Seen { folder: name.ends_with('/'), name: name.trim_end_matches('/').to_owned() };
        names.iter().map(one).collect()
    }

    #[test]
    fn paths_are_completed() {
        let mut line = PathLine::new("~/pro");
        assert_eq!(line.look(Some("/home/me")), Some(Effect::Look(PathBuf::from("/home/me"))));
        assert_eq!(line.look(Some("/home/me")), None, "asked once");
        line.looked(Path::new("/home/me"), seen(&["projects/", "prod.json", "other", ".hidden"]));
        line.complete();
        assert_eq!(line.editor.text(), "~/pro");
        line.editor.insert("j");
        line.complete();
        assert_eq!(line.editor.text(), "~/projects/");
        assert_eq!(line.look(Some("/home/me")), Some(Effect::Look(PathBuf::from("/home/me/projects/"))));
        line.looked(Path::new("/somewhere/else"), seen(&["late"]));
        assert!(line.suggestions().is_empty());
    }

    #[test]
    fn settings_go_around() {
        let mut settings = Settings::default();
        let patch = Setting::Idle.change(&settings, false);
        assert_eq!(patch.idle_minutes, Some(1440));
        settings.idle_minutes = 7;
        assert_eq!(Setting::Idle.change(&settings, true).idle_minutes, Some(10));
        assert_eq!(Setting::Idle.value(&settings), "7 min");
        let patch = Setting::Colours.change(&settings, true);
        assert_eq!(patch.other.get(COLOURS), Some(&Some("dark".to_owned())));
    }
}
