//! Which forwards are shown and how they are grouped: the reference's fields, the same as in its saved view.

use std::fmt;
use std::str::FromStr;

use kftray_commons::api::Config;

use super::Forward;

/// The bucket for what has no value.
pub(crate) const UNGROUPED: &str = "Ungrouped";

/// A field to filter and group by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Field {
    Context,
    Namespace,
    Kubeconfig,
    WorkloadType,
    Protocol,
    Group,
    Tag(String),
}

impl FromStr for Field {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "context" => Self::Context,
            "namespace" => Self::Namespace,
            "kubeconfig" => Self::Kubeconfig,
            "workload_type" => Self::WorkloadType,
            "protocol" => Self::Protocol,
            "group" => Self::Group,
            _ => match text.strip_prefix("tag:").map(str::trim).filter(|key| !key.is_empty()) {
                Some(key) => Self::Tag(key.to_ascii_lowercase()),
                None => {
                    let known = "context, namespace, kubeconfig, workload_type, protocol, group, tag:KEY";
                    return Err(format!("`{text}` is no field; write one of {known}"));
                }
            },
        })
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Context => "context",
            Self::Namespace => "namespace",
            Self::Kubeconfig => "kubeconfig",
            Self::WorkloadType => "workload_type",
            Self::Protocol => "protocol",
            Self::Group => "group",
            Self::Tag(key) => return write!(f, "tag:{key}"),
        })
    }
}

/// What a forward must have to be filtered and grouped.
pub(crate) trait Fields {
    /// A field's value; `None` if it is not set.
    fn value(&self, field: &Field) -> Option<String>;
}

impl Fields for Forward {
    fn value(&self, field: &Field) -> Option<String> {
        let from_config = |read: fn(&Config) -> Option<String>| self.config.as_ref().and_then(read);
        let value = match field {
            Field::Context => self.context.clone(),
            Field::Namespace => self.namespace.clone(),
            Field::Kubeconfig => from_config(|config| config.summary.kubeconfig.clone()),
            Field::WorkloadType => from_config(|config| Some(config.summary.kind.clone())),
            Field::Protocol => from_config(|config| Some(config.summary.protocol.clone())),
            Field::Group => self.group.clone(),
            // A tag without a value is set all the same.
            Field::Tag(key) => return self.tags.get(key).cloned(),
        };
        value.filter(|value| !value.is_empty())
    }
}

impl Fields for kftray_commons::ForwardSpec {
    fn value(&self, field: &Field) -> Option<String> {
        use kftray_commons::ContextRef;
        match field {
            Field::Context => match &self.cluster.context {
                ContextRef::Named(name) => Some(name.clone()),
                ContextRef::Current => None,
            },
            Field::Namespace => self.namespace.clone(),
            Field::Kubeconfig => self.cluster.kubeconfig.clone(),
            Field::WorkloadType => Some(self.workload.kind().to_owned()),
            Field::Protocol => Some(self.protocol.to_string()),
            Field::Group => None,
            Field::Tag(key) => self.tags.get(key).map(str::to_owned),
        }
    }
}

/// `FIELD=VALUE,VALUE`, or `FIELD` alone: it is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    field: Field,
    /// Empty: any.
    values: Vec<String>,
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((field, values)) = text.split_once('=') else {
            return Ok(Self { field: text.trim().parse()?, values: Vec::new() });
        };
        let values: Vec<String> =
            values.split(',').map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned).collect();
        if values.is_empty() {
            return Err(format!(
                "`{text}` has no value; write {0}=VALUE, or {0} alone for any",
                field.trim()
            ));
        }
        Ok(Self { field: field.trim().parse()?, values })
    }
}

impl Condition {
    /// Whether it holds.
    pub(crate) fn holds(&self, one: &impl Fields) -> bool {
        match one.value(&self.field) {
            Some(value) => self.values.is_empty() || self.values.contains(&value),
            None => false,
        }
    }
}

/// `--group-by FIELD` or `none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grouping(pub(crate) Option<Field>);

impl FromStr for Grouping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|field| Self(Some(field))) }
    }
}

impl Grouping {
    /// Groups by value, in the order of values, what has none last.
    pub(crate) fn apply<T: Fields>(&self, all: Vec<T>) -> Vec<(Option<String>, Vec<T>)> {
        let Some(field) = &self.0 else { return vec![(None, all)] };
        let mut groups: std::collections::BTreeMap<(bool, String), Vec<T>> =
            std::collections::BTreeMap::new();
        for one in all {
            let value = one.value(field);
            let key = (value.is_none(), value.unwrap_or_else(|| UNGROUPED.to_owned()));
            groups.entry(key).or_default().push(one);
        }
        groups.into_iter().map(|((_, name), members)| (Some(name), members)).collect()
    }
}

#[cfg(test)]
mod tests {
    use kftray_commons::ForwardSpec;
    use kftray_commons::border::{Defaults, import};

    use super::*;

    fn specs() -> Vec<ForwardSpec> {
        let text = r#"[
            {"alias": "a", "service": "x", "remote_port": 1, "namespace": "shop", "tags": {"team": "blue"}},
            {"alias": "b", "service": "x", "remote_port": 1, "namespace": "data", "tags": {"team": ""}},
            {"alias": "c", "workload_type": "pod", "target": "p", "remote_port": 1, "namespace": "shop", "context": "prod"}
        ]"#;
        import(text, &Defaults::default()).specs().cloned().collect()
    }

    #[test]
    fn conditions() {
        let named = |text: &str| {
            let condition: Condition = text.parse().expect(text);
            specs()
                .iter()
                .filter(|spec| condition.holds(*spec))
                .map(ForwardSpec::label)
                .collect::<Vec<_>>()
                .join("")
        };
        assert_eq!(named("namespace=shop"), "ac");
        assert_eq!(named("namespace=shop, data"), "abc");
        assert_eq!(named("context"), "c");
        assert_eq!(named("tag:team"), "ab");
        assert_eq!(named("tag:TEAM=blue"), "a");
        assert_eq!(named("workload_type=service"), "ab");
        assert_eq!(named("protocol=udp"), "");
        for bad in ["colour", "tag:", "namespace=", "namespace=,", "=x"] {
            assert!(bad.parse::<Condition>().is_err(), "{bad}");
        }
    }

    #[test]
    fn groups() {
        let grouped = |text: &str| {
            let grouping: Grouping = text.parse().expect(text);
            let groups = grouping.apply(specs()).into_iter();
            let told = groups.map(|(name, members)| {
                let labels: Vec<String> = members.iter().map(ForwardSpec::label).collect();
                format!("{}:{}", name.unwrap_or_default(), labels.join(""))
            });
            told.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(grouped("none"), ":abc");
        assert_eq!(grouped("namespace"), "data:b shop:ac");
        assert_eq!(grouped("context"), "prod:c Ungrouped:ab");
    }
}
