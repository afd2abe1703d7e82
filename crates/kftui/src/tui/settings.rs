//! The settings. What they are is with the host; here is how they are shown and changed.

use kftray_commons::api::{Settings, SettingsPatch};
use kftray_commons::store::{Kind, Known, RELAY, SETTINGS};

use super::editor::Editor;
use super::model::COLOURS;
use super::theme;

/// The window.
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
    /// One of relays, by its name.
    Relay(&'static Known),
}

/// Times that are offered, in minutes.
const MINUTES: [u32; 12] = [0, 1, 5, 10, 15, 30, 60, 120, 240, 480, 720, 1440];

impl Setting {
    /// All, in the order in which they are shown.
    pub(super) fn all() -> Vec<Self> {
        let own = [Self::Restore, Self::Idle, Self::Ttl, Self::HostIdle, Self::Network, Self::Colours];
        let relay = SETTINGS.iter().filter(|known| known.key.starts_with(RELAY)).map(Self::Relay);
        own.into_iter().chain(relay).collect()
    }

    pub(super) fn title(self) -> String {
        match self {
            Self::Restore => "Restore on start".to_owned(),
            Self::Idle => "Idle limit".to_owned(),
            Self::Ttl => "Time to live".to_owned(),
            Self::HostIdle => "Idle host ends".to_owned(),
            Self::Network => "Watch the network".to_owned(),
            Self::Colours => "Colours".to_owned(),
            Self::Relay(known) => {
                format!("Relay: {}", known.key.trim_start_matches(RELAY).replace('_', " "))
            }
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
            Self::Relay(known) => known.meaning,
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
            Self::Relay(known) => match (known.kind, written(known, settings)) {
                (Kind::Flag, text) => switch(text == "true"),
                (_, text) if text.is_empty() => "not set".to_owned(),
                (_, text) => text,
            },
        }
    }

    /// A line to write it in, where there are no values to go through.
    pub(super) fn line(self, settings: &Settings) -> Option<SettingLine> {
        let Self::Relay(known) = self else { return None };
        let offered = matches!(known.kind, Kind::Flag | Kind::Word(_));
        let editor = Editor::of(written(known, settings));
        (!offered).then_some(SettingLine { known, editor, fault: None })
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
                let all = theme::Choice::ALL.map(theme::Choice::word);
                let word = next(&all, colours(settings).word(), forward);
                patch.other.insert(COLOURS.to_owned(), Some(word.to_owned()));
            }
            Self::Relay(known) => {
                let words = if let Kind::Word(words) = known.kind { words } else { &["true", "false"] };
                let word = next(words, &written(known, settings), forward);
                patch.other.insert(known.key.to_owned(), Some(word.to_owned()));
            }
        }
        patch
    }
}

/// The word after that one, or the one before; around at the ends.
fn next<'a>(words: &[&'a str], word: &str, forward: bool) -> &'a str {
    let now = words.iter().position(|known| *known == word).unwrap_or(0);
    let next = if forward { now + 1 } else { now + words.len() - 1 } % words.len().max(1);
    words.get(next).copied().unwrap_or_default()
}

/// As it is written; where nothing is, what holds all the same.
fn written(known: &Known, settings: &Settings) -> String {
    let relay = serde_json::to_value(&settings.relay).unwrap_or_default();
    let field = known.key.trim_start_matches(RELAY);
    let text = relay.get(field).map(|value| known.text(value)).unwrap_or_default();
    if text.is_empty() { known.default.to_owned() } else { text }
}

/// A line in which a setting is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SettingLine {
    pub(super) known: &'static Known,
    pub(super) editor: Editor,
    pub(super) fault: Option<String>,
}

impl SettingLine {
    /// What saves it; a fault in its place stays in the line.
    pub(super) fn patch(&mut self) -> Option<SettingsPatch> {
        let text = self.editor.text().trim().to_owned();
        if !text.is_empty()
            && let Err(fault) = self.known.accepts(&text)
        {
            self.fault = Some(fault);
            return None;
        }
        let mut patch = SettingsPatch::default();
        patch.other.insert(self.known.key.to_owned(), Some(text).filter(|text| !text.is_empty()));
        Some(patch)
    }
}

fn colours(settings: &Settings) -> theme::Choice {
    settings.other.get(COLOURS).and_then(|word| theme::Choice::parse(word)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn relays_are_set_by_word_and_by_line() {
        let find = |name: &str| {
            let is = |setting: &Setting| matches!(setting, Setting::Relay(known) if known.key == name);
            Setting::all().into_iter().find(is).expect("known")
        };
        let mut settings = Settings::default();
        let patch = find("relay_pull_policy").change(&settings, true);
        assert_eq!(patch.other.get("relay_pull_policy"), Some(&Some("Always".to_owned())));
        let patch = find("relay_use_installed").change(&settings, true);
        assert_eq!(patch.other.get("relay_use_installed"), Some(&Some("false".to_owned())));
        assert!(find("relay_pull_policy").line(&settings).is_none());

        settings.relay.pull_secrets = vec!["one".to_owned(), "two".to_owned()];
        let mut line = find("relay_pull_secrets").line(&settings).expect("a line");
        assert_eq!(line.editor.text(), "one,two");
        line.editor.insert(",three");
        let patch = line.patch().expect("good");
        assert_eq!(patch.other.get("relay_pull_secrets"), Some(&Some("one,two,three".to_owned())));
        line.editor = Editor::default();
        assert_eq!(line.patch().expect("taken back").other.get("relay_pull_secrets"), Some(&None));
        let mut line = find("relay_resources").line(&settings).expect("a line");
        line.editor.insert("much");
        assert_eq!(line.patch(), None);
        assert_eq!(line.fault.as_deref(), Some("Write a JSON object."));
    }
}
