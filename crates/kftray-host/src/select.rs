//! Which forwards a selection means. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use kftray_commons::ForwardId;
use kftray_commons::api::{Config, ForwardState, Selection};

/// What a selection means.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Chosen {
    /// In order, none twice.
    pub(crate) ids: Vec<ForwardId>,
    /// What names nothing, as written.
    pub(crate) unmatched: Vec<String>,
}

/// Chooses among configs, and among forwards of which some have none.
pub(crate) fn select(
    configs: &[Arc<Config>],
    forwards: &[Arc<ForwardState>],
    selection: &Selection,
) -> Chosen {
    let Selection { ids, labels, groups, tags, all } = selection;
    let mut chosen = BTreeSet::new();
    let mut unmatched = Vec::new();
    let mut take = |found: Vec<ForwardId>, written: &dyn Fn() -> String| {
        if found.is_empty() {
            unmatched.push(written());
        }
        chosen.extend(found);
    };
    if *all {
        let everything = configs.iter().map(|c| c.id).chain(forwards.iter().map(|f| f.id)).collect();
        // Everything of nothing is nothing, and nobody's mistake.
        take(everything, &String::new);
    }
    for id in ids {
        let known = configs.iter().any(|c| c.id == *id) || forwards.iter().any(|f| f.id == *id);
        take(known.then_some(*id).into_iter().collect(), &|| id.0.to_string());
    }
    for label in labels {
        let of_configs = configs.iter().filter(|config| {
            let summary = &config.summary;
            summary.label == *label || summary.alias.as_ref() == Some(label)
        });
        let of_forwards = forwards.iter().filter(|forward| forward.label == *label);
        take(of_configs.map(|c| c.id).chain(of_forwards.map(|f| f.id)).collect(), &|| label.clone());
    }
    for group in groups {
        let of_it = configs.iter().filter(|config| config.summary.group.as_ref() == Some(group));
        take(of_it.map(|c| c.id).collect(), &|| format!("group {group}"));
    }
    for tag in tags {
        let of_it = configs.iter().filter(|config| has_tag(config, tag));
        take(of_it.map(|c| c.id).collect(), &|| format!("tag {tag}"));
    }
    unmatched.retain(|written| !written.is_empty());
    Chosen { ids: chosen.into_iter().collect(), unmatched }
}

/// `key` is any value, `key=value` this one.
fn has_tag(config: &Config, tag: &str) -> bool {
    let tags = &config.summary.tags;
    match tag.split_once('=') {
        Some((key, value)) => tags.get(key.trim()).is_some_and(|known| known == value.trim()),
        None => tags.contains_key(tag.trim()),
    }
}

#[cfg(test)]
mod tests {
    use kftray_commons::api::Summary;

    use super::*;

    fn config(id: u64, label: &str, group: Option<&str>, tags: &[(&str, &str)]) -> Arc<Config> {
        let summary = Summary {
            label: label.to_owned(),
            group: group.map(str::to_owned),
            tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..Summary::default()
        };
        Arc::new(Config {
            id: ForwardId(id),
            revision: 1,
            desired: false,
            spec: serde_json::Map::default(),
            summary,
        })
    }

    fn chosen(selection: &Selection) -> (Vec<u64>, Vec<String>) {
        let configs = [
            config(1, "db", Some("shop"), &[("env", "dev")]),
            config(2, "web", Some("shop"), &[("env", "prod")]),
            config(3, "db", None, &[]),
        ];
        let chosen = select(&configs, &[], selection);
        (chosen.ids.into_iter().map(|id| id.0).collect(), chosen.unmatched)
    }

    #[test]
    fn by_whatever_names_it() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let select = |labels: &[&str], groups: &[&str], tags: &[&str]| Selection {
            labels: texts(labels),
            groups: texts(groups),
            tags: texts(tags),
            ..Selection::default()
        };
        assert_eq!(chosen(&Selection::all()).0, [1, 2, 3]);
        assert_eq!(chosen(&Selection::ids([ForwardId(2), ForwardId(9)])), (vec![2], texts(&["9"])));
        assert_eq!(chosen(&select(&["db", "db"], &[], &[])).0, [1, 3]);
        assert_eq!(chosen(&select(&["web"], &["shop", "none"], &[])), (vec![1, 2], texts(&["group none"])));
        assert_eq!(chosen(&select(&[], &[], &["env"])).0, [1, 2]);
        assert_eq!(chosen(&select(&[], &[], &["env=prod", "env=x"])), (vec![2], texts(&["tag env=x"])));
        assert_eq!(chosen(&Selection::default()), (vec![], vec![]));
    }
}
