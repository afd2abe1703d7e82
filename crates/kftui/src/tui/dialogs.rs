//! The small windows: questions, reports, lines to fill in, the view, the command palette.

use std::path::{Path, PathBuf};

use kftray_commons::ForwardId;
use kftray_commons::tags::Tags;

use super::arrange::Choice;
use super::data::Data;
use super::editor::Editor;
use super::keys::{Action, Binding, Scope};
use super::message::{Effect, Seen};
use super::settings::SettingLine;
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
    Setting(SettingLine),
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
}
