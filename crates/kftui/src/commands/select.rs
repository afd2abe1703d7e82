//! Which forwards a command means: by name, number, group, tag, or all. Decided here and not by the host, because a person
//! who mistyped a name wants to be told the one that was meant.

use anyhow::{Result, bail};
use clap::Args;
use clap_complete::ArgValueCompleter;
use kftray_commons::ForwardId;

use crate::complete;
use crate::shown::Forward;

/// The words and flags that choose forwards.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SelectArgs {
    /// Forwards by name or number, as `kftui list` shows them
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::forwards))]
    pub(crate) names: Vec<String>,

    /// All of a group
    #[arg(short, long, value_name = "GROUP", add = ArgValueCompleter::new(complete::groups))]
    pub(crate) group: Vec<String>,

    /// All with a tag: KEY or KEY=VALUE
    #[arg(short, long, value_name = "TAG", add = ArgValueCompleter::new(complete::tags))]
    pub(crate) tag: Vec<String>,

    /// All forwards
    #[arg(short, long)]
    pub(crate) all: bool,
}

/// A name that nothing has.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unmatched(String);

impl SelectArgs {
    /// Whether nothing was chosen.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.group.is_empty() && self.tag.is_empty() && !self.all
    }

    /// The chosen ones, in their order, each once. Nothing chosen is nothing.
    ///
    /// # Errors
    /// [`Unmatched`] for a name, group or tag that no forward has.
    pub(crate) fn choose(&self, all: &[Forward]) -> Result<Vec<Forward>> {
        for name in &self.names {
            if !all.iter().any(|one| is_named(one, name)) {
                return Err(
                    Unmatched(no_such("forward", name, all.iter().map(|one| one.name.as_str()))).into()
                );
            }
        }
        for group in &self.group {
            if !all.iter().any(|one| one.group.as_deref() == Some(group)) {
                let there = all.iter().filter_map(|one| one.group.as_deref());
                return Err(Unmatched(no_such("group", group, there)).into());
            }
        }
        for tag in &self.tag {
            if !all.iter().any(|one| has_tag(one, tag)) {
                let there = all.iter().flat_map(|one| one.tags.keys().map(String::as_str));
                return Err(Unmatched(no_such("forward with tag", tag, there)).into());
            }
        }
        let is_chosen = |one: &&Forward| {
            self.all
                || self.names.iter().any(|name| is_named(one, name))
                || self.group.iter().any(|group| one.group.as_deref() == Some(group))
                || self.tag.iter().any(|tag| has_tag(one, tag))
        };
        Ok(all.iter().filter(is_chosen).cloned().collect())
    }

    /// As [`Self::choose`], for commands that must not take silence for everything.
    ///
    /// # Errors
    /// Also without any choice.
    pub(crate) fn must_choose(&self, all: &[Forward]) -> Result<Vec<Forward>> {
        if self.is_empty() {
            let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).take(SHOWN).collect();
            let there =
                if names.is_empty() { String::new() } else { format!(" (there are {})", names.join(", ")) };
            return Err(Unmatched(format!("say which: names{there}, --group, --tag, or --all")).into());
        }
        self.choose(all)
    }

    /// As [`Self::choose`], where silence means all.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub(crate) fn choose_or_all(&self, all: &[Forward]) -> Result<Vec<Forward>> {
        if self.is_empty() { Ok(all.to_vec()) } else { self.choose(all) }
    }
}

/// The one forward of a name or number.
///
/// # Errors
/// None has it, or several.
pub(crate) fn one<'a>(all: &'a [Forward], name: &str) -> Result<&'a Forward> {
    let found: Vec<&Forward> = all.iter().filter(|one| is_named(one, name)).collect();
    match found[..] {
        [one] => Ok(one),
        [] => Err(Unmatched(no_such("forward", name, all.iter().map(|one| one.name.as_str()))).into()),
        _ => {
            let ids: Vec<String> = found.iter().map(|one| one.id.0.to_string()).collect();
            bail!(Unmatched(format!(
                "{} forwards are called `{name}`; say which by number: {}",
                ids.len(),
                ids.join(", ")
            )))
        }
    }
}

/// The numbers of forwards, for a request.
pub(crate) fn ids(forwards: &[Forward]) -> Vec<ForwardId> {
    forwards.iter().map(|one| one.id).collect()
}

fn is_named(one: &Forward, name: &str) -> bool {
    one.name == name || name.parse() == Ok(one.id.0)
}

fn has_tag(one: &Forward, tag: &str) -> bool {
    let (key, value) = tag.split_once('=').map_or((tag, None), |(key, value)| (key, Some(value)));
    let key = key.trim().to_ascii_lowercase();
    one.tags.get(&key).is_some_and(|has| value.is_none_or(|wanted| has == wanted.trim()))
}

/// Names that are shown where none is right.
const SHOWN: usize = 6;

/// `there is no forward "x"; did you mean "y"?`, or some that are there.
fn no_such<'a>(what: &str, name: &str, there: impl Iterator<Item = &'a str>) -> String {
    let mut there: Vec<&str> = there.collect();
    there.sort_unstable();
    there.dedup();
    let near = there.iter().filter(|other| is_near(name, other)).copied().collect::<Vec<_>>();
    let hint = match (&near[..], &there[..]) {
        ([], []) => "; none is there yet (`kftui add`, `kftui import`)".to_owned(),
        ([], [..]) => {
            let more = there.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("; there are {}{more}", there.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", "))
        }
        ([..], _) => format!("; did you mean {}?", near.join(" or ")),
    };
    format!("there is no {what} `{name}`{hint}")
}

/// Capitals, a part, or two letters amiss.
fn is_near(name: &str, other: &str) -> bool {
    let (name, other) = (name.to_lowercase(), other.to_lowercase());
    if name.len() >= 3 && (other.contains(&name) || name.contains(&other) && other.len() >= 3) {
        return true;
    }
    let (a, b): (Vec<char>, Vec<char>) = (name.chars().collect(), other.chars().collect());
    let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count() + a.len().abs_diff(b.len());
    let mut swapped = (a.clone(), b.clone());
    swapped.0.sort_unstable();
    swapped.1.sort_unstable();
    a.len() > 2 && differ <= 1 || a.len() > 3 && swapped.0 == swapped.1 && differ <= 2
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn forward(id: u64, name: &str, group: Option<&str>, tags: &[(&str, &str)]) -> Forward {
        Forward {
            id: ForwardId(id),
            name: name.to_owned(),
            state: "stopped",
            addresses: Vec::new(),
            target: String::new(),
            namespace: None,
            context: None,
            group: group.map(str::to_owned),
            tags: tags
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<BTreeMap<_, _>>(),
            stored: true,
            problem: None,
            config: None,
            forward: None,
        }
    }

    fn all() -> Vec<Forward> {
        vec![
            forward(1, "db", Some("shop"), &[("team", "blue")]),
            forward(2, "web", None, &[("team", "red"), ("urgent", "")]),
            forward(3, "web", Some("shop"), &[]),
        ]
    }

    fn chosen(names: &[&str], group: &[&str], tag: &[&str], every: bool) -> Result<Vec<u64>, String> {
        let owned = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect();
        let args = SelectArgs { names: owned(names), group: owned(group), tag: owned(tag), all: every };
        match args.must_choose(&all()) {
            Ok(found) => Ok(found.iter().map(|one| one.id.0).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn by_name_number_group_tag_and_all() {
        assert_eq!(chosen(&["web"], &[], &[], false), Ok(vec![2, 3]));
        assert_eq!(chosen(&["3", "db"], &[], &[], false), Ok(vec![1, 3]));
        assert_eq!(chosen(&[], &["shop"], &["urgent"], false), Ok(vec![1, 2, 3]));
        assert_eq!(chosen(&[], &[], &["team=red"], false), Ok(vec![2]));
        assert_eq!(chosen(&[], &[], &["TEAM"], false), Ok(vec![1, 2]));
        assert_eq!(chosen(&[], &[], &[], true), Ok(vec![1, 2, 3]));
    }

    #[test]
    fn what_nothing_has_is_told() {
        let told = |names: &[&str], group: &[&str]| chosen(names, group, &[], false).expect_err("nothing");
        assert_eq!(told(&["wbe"], &[]), "there is no forward `wbe`; there are db, web");
        assert_eq!(told(&["WEB"], &[]), "there is no forward `WEB`; did you mean web?");
        assert_eq!(told(&[], &["shpo"]), "there is no group `shpo`; did you mean shop?");
        assert_eq!(told(&[], &[]), "say which: names (there are db, web, web), --group, --tag, or --all");
        assert!(one(&all(), "web").expect_err("two").to_string().contains("by number: 2, 3"));
        assert_eq!(one(&all(), "2").expect("one").id.0, 2);
    }
}
