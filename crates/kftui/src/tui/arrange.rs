//! By what the list is grouped and what of it is shown; kept in the settings in the reference's form, so that both show
//! the same.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::data::{Data, Entry};
use super::theme;

/// The key in the settings.
pub(super) const SETTING: &str = "config_view";

/// Title of those that have not what the list is grouped by.
const UNGROUPED: &str = "Ungrouped";

/// Title of those that are written down nowhere.
const AD_HOC: &str = "Not written down";

/// Something that forwards are grouped and filtered by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    Context,
    Group,
    Namespace,
    Kind,
    Protocol,
    Kubeconfig,
    State,
    Tag(String),
}

/// What is shown and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arrangement {
    pub(super) group_by: Option<Field>,
    /// All of them must hold; of the values of one, any. No values: the field is there at all.
    pub(super) filters: BTreeMap<Field, BTreeSet<String>>,
}

impl Default for Arrangement {
    fn default() -> Self {
        Self { group_by: Some(Field::Context), filters: BTreeMap::new() }
    }
}

impl Field {
    /// Those that need no tag, most useful first.
    pub(super) const PLAIN: [Self; 7] = [
        Self::Context,
        Self::Group,
        Self::Namespace,
        Self::Kind,
        Self::Protocol,
        Self::Kubeconfig,
        Self::State,
    ];

    /// The name in the settings: the reference's where it has one.
    fn key(&self) -> String {
        match self {
            Self::Context => "context".to_owned(),
            Self::Group => "group".to_owned(),
            Self::Namespace => "namespace".to_owned(),
            Self::Kind => "workload_type".to_owned(),
            Self::Protocol => "protocol".to_owned(),
            Self::Kubeconfig => "kubeconfig".to_owned(),
            Self::State => "state".to_owned(),
            Self::Tag(key) => format!("tag:{key}"),
        }
    }

    fn parse(key: &str) -> Option<Self> {
        if let Some(tag) = key.strip_prefix("tag:") {
            return (!tag.is_empty()).then(|| Self::Tag(tag.to_owned()));
        }
        Self::PLAIN.into_iter().find(|field| field.key() == key)
    }

    /// The name for people.
    pub(super) fn title(&self) -> String {
        match self {
            Self::Kind => "kind".to_owned(),
            Self::Tag(key) => format!("tag {key}"),
            Self::Context
            | Self::Group
            | Self::Namespace
            | Self::Protocol
            | Self::Kubeconfig
            | Self::State => self.key(),
        }
    }

    /// What an entry has of it.
    pub(super) fn of(&self, entry: &Entry) -> Option<String> {
        if *self == Self::State {
            return Some(theme::word(entry.status()).to_owned());
        }
        let summary = entry.summary()?;
        match self {
            // Following the current context is a place of its own, and not the lack of one.
            Self::Context => Some(summary.context.clone().unwrap_or_else(|| "current context".to_owned())),
            Self::Group => summary.group.clone(),
            Self::Namespace => summary.namespace.clone(),
            Self::Kind => Some(summary.kind.clone()),
            Self::Protocol => Some(summary.protocol.clone()),
            Self::Kubeconfig => summary.kubeconfig.clone(),
            Self::State => None,
            Self::Tag(key) => summary.tags.get(key).cloned(),
        }
    }
}

impl Arrangement {
    /// As stored; what cannot be read is the default.
    pub(super) fn read(text: Option<&str>) -> Self {
        let Some(Value::Object(stored)) = text.and_then(|text| serde_json::from_str(text).ok()) else {
            return Self::default();
        };
        let field = |value: &Value| value.as_str().and_then(Field::parse);
        let group_by = match stored.get("group_by") {
            None => Self::default().group_by,
            Some(Value::Null) => None,
            Some(value) => field(value).or(Self::default().group_by),
        };
        let mut filters = BTreeMap::new();
        for filter in stored.get("filters").and_then(Value::as_array).into_iter().flatten() {
            let Some(field) = filter.get("field").and_then(field) else { continue };
            let values = filter.get("values").and_then(Value::as_array).into_iter().flatten();
            filters.insert(field, values.filter_map(Value::as_str).map(str::to_owned).collect());
        }
        Self { group_by, filters }
    }

    /// To be stored.
    pub(super) fn write(&self) -> String {
        let filters: Vec<Value> = self
            .filters
            .iter()
            .map(|(field, values)| json!({ "field": field.key(), "values": values }))
            .collect();
        json!({ "group_by": self.group_by.as_ref().map(Field::key), "filters": filters }).to_string()
    }

    /// Whether an entry is shown.
    pub(super) fn shows(&self, entry: &Entry) -> bool {
        self.filters.iter().all(|(field, values)| {
            field.of(entry).is_some_and(|value| values.is_empty() || values.contains(&value))
        })
    }

    /// The group of an entry, its place among the groups included; `None` without grouping.
    pub(super) fn group(&self, entry: &Entry) -> Option<(u8, String)> {
        let field = self.group_by.as_ref()?;
        Some(match field.of(entry) {
            Some(value) if !value.is_empty() => (0, value),
            Some(_) => (1, UNGROUPED.to_owned()),
            None if entry.config.is_none() => (2, AD_HOC.to_owned()),
            None => (1, UNGROUPED.to_owned()),
        })
    }

    /// What is filtered, in words.
    pub(super) fn words(&self) -> Option<String> {
        if self.filters.is_empty() {
            return None;
        }
        let one = |(field, values): (&Field, &BTreeSet<String>)| {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            if values.is_empty() { field.title() } else { format!("{} {}", field.title(), values.join(", ")) }
        };
        Some(self.filters.iter().map(one).collect::<Vec<_>>().join("; "))
    }
}

/// A line of the window in which the view is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    Heading(String),
    /// Group by this; `None`: not at all.
    GroupBy(Option<Field>),
    /// Show only those with this value.
    Only(Field, String, usize),
}

/// Everything that can be chosen with the present forwards.
pub(super) fn choices(data: &Data, arrangement: &Arrangement) -> Vec<Choice> {
    let mut values: BTreeMap<Field, BTreeMap<String, usize>> = BTreeMap::new();
    let mut tags = BTreeSet::new();
    for entry in data.iter() {
        if let Some(summary) = entry.summary() {
            tags.extend(summary.tags.keys().cloned());
        }
    }
    let fields: Vec<Field> = Field::PLAIN.into_iter().chain(tags.into_iter().map(Field::Tag)).collect();
    for entry in data.iter() {
        for field in &fields {
            if let Some(value) = field.of(entry).filter(|value| !value.is_empty()) {
                *values.entry(field.clone()).or_default().entry(value).or_default() += 1;
            }
        }
    }
    // What is filtered must be there to be taken away, even if nothing has it any more.
    for (field, wanted) in &arrangement.filters {
        for value in wanted {
            values.entry(field.clone()).or_default().entry(value.clone()).or_default();
        }
    }
    let mut choices = vec![Choice::Heading("Group by".to_owned())];
    choices.extend(fields.iter().cloned().map(|field| Choice::GroupBy(Some(field))));
    choices.push(Choice::GroupBy(None));
    for field in &fields {
        let Some(values) = values.get(field) else { continue };
        if values.len() < 2 && !arrangement.filters.contains_key(field) {
            continue;
        }
        choices.push(Choice::Heading(format!("Show only, by {}", field.title())));
        choices
            .extend(values.iter().map(|(value, count)| Choice::Only(field.clone(), value.clone(), *count)));
    }
    choices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_the_reference() {
        let text = r#"{"group_by":"tag:team","filters":[{"field":"workload_type","values":["pod","proxy"]},{"field":"x"}]}"#;
        let read = Arrangement::read(Some(text));
        assert_eq!(read.group_by, Some(Field::Tag("team".into())));
        assert_eq!(read.words().as_deref(), Some("kind pod, proxy"));
        assert_eq!(Arrangement::read(Some(&read.write())), read);
        let none = Arrangement::read(Some(r#"{"group_by":null,"filters":[]}"#));
        assert_eq!(none.group_by, None);
        assert_eq!(Arrangement::read(Some(&none.write())), none);
        for broken in [None, Some(""), Some("[]"), Some(r#"{"group_by":"colour"}"#)] {
            assert_eq!(Arrangement::read(broken), Arrangement::default(), "{broken:?}");
        }
    }
}
