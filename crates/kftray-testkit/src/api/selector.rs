//! Label and field selectors of list and watch requests.

use serde_json::Value;

use super::status::Status;

/// What a list or watch wants to see.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, String, bool)>,
}

#[derive(Clone, Debug)]
enum Requirement {
    Equals(String, String),
    Differs(String, String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    /// From the query parameters `labelSelector` and `fieldSelector`.
    pub(crate) fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, Status> {
        let mut selector = Self::default();
        for term in split_terms(labels.unwrap_or_default()) {
            selector.labels.push(Requirement::parse(term)?);
        }
        for term in fields.unwrap_or_default().split(',').filter(|term| !term.trim().is_empty()) {
            selector.fields.push(parse_field(term)?);
        }
        Ok(selector)
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let label = |name: &str| object["metadata"]["labels"][name].as_str();
        self.labels.iter().all(|requirement| requirement.holds(&label))
            && self.fields.iter().all(|(path, value, equal)| (field(object, path) == value) == *equal)
    }
}

impl Requirement {
    fn parse(term: &str) -> Result<Self, Status> {
        let term = term.trim();
        let pair = |name: &str, value: &str| (name.trim().to_owned(), value.trim().to_owned());
        if let Some((name, set)) = term.split_once(" notin ") {
            return Ok(Self::NotIn(name.trim().to_owned(), parse_set(set)?));
        }
        if let Some((name, set)) = term.split_once(" in ") {
            return Ok(Self::In(name.trim().to_owned(), parse_set(set)?));
        }
        if let Some((name, value)) = term.split_once("!=") {
            let (name, value) = pair(name, value);
            return Ok(Self::Differs(name, value));
        }
        if let Some((name, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
            let (name, value) = pair(name, value);
            return Ok(Self::Equals(name, value));
        }
        if term.contains(char::is_whitespace) || term.contains('(') {
            return Err(Status::bad_request(format!("unable to parse requirement: {term}")));
        }
        Ok(match term.strip_prefix('!') {
            Some(name) => Self::Absent(name.trim().to_owned()),
            None => Self::Exists(term.to_owned()),
        })
    }

    fn holds<'a>(&self, label: &impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::Equals(name, value) => label(name) == Some(value),
            Self::Differs(name, value) => label(name) != Some(value),
            Self::In(name, set) => label(name).is_some_and(|label| set.iter().any(|value| value == label)),
            Self::NotIn(name, set) => {
                !label(name).is_some_and(|label| set.iter().any(|value| value == label))
            }
            Self::Exists(name) => label(name).is_some(),
            Self::Absent(name) => label(name).is_none(),
        }
    }
}

/// Splits at commas outside of parentheses.
fn split_terms(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |letter: char| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        letter == ',' && depth == 0
    })
    .filter(|term| !term.trim().is_empty())
}

fn parse_set(text: &str) -> Result<Vec<String>, Status> {
    let inner = text.trim().strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    let inner = inner.ok_or_else(|| Status::bad_request(format!("unable to parse requirement: {text}")))?;
    Ok(inner.split(',').map(|value| value.trim().to_owned()).collect())
}

fn parse_field(term: &str) -> Result<(String, String, bool), Status> {
    let (path, value, equal) = if let Some((path, value)) = term.split_once("!=") {
        (path, value, false)
    } else if let Some((path, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (path, value, true)
    } else {
        return Err(Status::bad_request(format!("invalid selector: '{term}'; can't understand '{term}'")));
    };
    match path.trim() {
        path @ ("metadata.name" | "metadata.namespace" | "status.phase" | "spec.nodeName"
        | "involvedObject.uid") => Ok((path.to_owned(), value.trim().to_owned(), equal)),
        path => Err(Status::bad_request(format!("field label not supported: {path}"))),
    }
}

fn field<'a>(object: &'a Value, path: &str) -> &'a str {
    path.split('.').fold(object, |value, step| &value[step]).as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_terms_follow_the_documented_grammar() {
        let pod = json!({ "metadata": { "name": "a", "labels": { "app": "web", "tier": "front" } } });
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (api, web),tier", true),
            ("app notin (web)", false),
            ("!app", false),
            ("!missing,tier=front", true),
            ("app=api", false),
        ] {
            let selector = Selector::parse(Some(text), None).unwrap();
            assert_eq!(selector.matches(&pod), expected, "{text}");
        }
        assert!(Selector::parse(Some("app web"), None).is_err());
    }

    #[test]
    fn fields_are_a_short_list() {
        let pod = json!({ "metadata": { "name": "a" } });
        assert!(Selector::parse(None, Some("metadata.name=a")).unwrap().matches(&pod));
        assert!(!Selector::parse(None, Some("metadata.name=b")).unwrap().matches(&pod));
        assert!(Selector::parse(None, Some("spec.colour=b")).is_err());
    }
}
