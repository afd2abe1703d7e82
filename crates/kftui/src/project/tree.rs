//! A document of any format as one tree whose values know where they stand, and its way into the border.
//!
//! The border reads JSON and tells line and column. YAML and TOML are therefore written out as JSON with one token on each
//! line, and a line of that text stands for a place of the original: one reader, one set of rules and messages for all.

use kftray_commons::border::{Defaults, Import, Place, Warning, import};

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What YAML, TOML and JSON have in common.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// Decimal, as JSON writes it.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Member>),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub(crate) place: Place,
    pub(crate) key: String,
    pub(crate) node: Node,
}

/// A document that cannot be read at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub(crate) struct Fault {
    pub(crate) place: Place,
    /// Without full stop.
    pub(crate) message: String,
}

impl Value {
    /// A number if JSON can write it so, else the text.
    pub(crate) fn number_or_text(text: String) -> Self {
        if serde_json::from_str::<serde_json::Number>(&text).is_ok() {
            Self::Number(text)
        } else {
            Self::Text(text)
        }
    }

    /// The kind with its article, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "an object",
        }
    }
}

/// Reads entries through the border; every place in the answer is one of the original document.
pub(crate) fn entries(nodes: &[Node], defaults: &Defaults) -> Import {
    let mut json = Json::default();
    for node in nodes {
        json.node(node);
    }
    let mut read = import(&json.text, defaults);
    for entry in &mut read.entries {
        json.restore(&mut entry.place);
        json.restore_warnings(&mut entry.warnings);
        if let Err(fault) = &mut entry.result {
            for fault in &mut fault.faults {
                json.restore(&mut fault.place);
            }
        }
    }
    json.restore_warnings(&mut read.warnings);
    read
}

/// JSON with one token on each line, and each line's place in the original.
#[derive(Default)]
struct Json {
    text: String,
    places: Vec<Place>,
}

impl Json {
    fn token(&mut self, token: &str, place: Place) {
        self.text.push_str(token);
        self.text.push('\n');
        self.places.push(place);
    }

    fn node(&mut self, node: &Node) {
        let place = node.place;
        match &node.value {
            Value::Null => self.token("null", place),
            Value::Bool(flag) => self.token(if *flag { "true" } else { "false" }, place),
            Value::Number(number) => self.token(number, place),
            Value::Text(text) => self.token(&quoted(text), place),
            Value::List(items) => {
                self.token("[", place);
                for (number, item) in items.iter().enumerate() {
                    if number > 0 {
                        self.token(",", item.place);
                    }
                    self.node(item);
                }
                self.token("]", place);
            }
            Value::Map(members) => {
                self.token("{", place);
                for (number, member) in members.iter().enumerate() {
                    if number > 0 {
                        self.token(",", member.place);
                    }
                    self.token(&quoted(&member.key), member.place);
                    self.token(":", member.place);
                    self.node(&member.node);
                }
                self.token("}", place);
            }
        }
    }

    fn restore(&self, place: &mut Place) {
        if let Some(original) = place.line.checked_sub(1).and_then(|line| self.places.get(line)) {
            *place = *original;
        }
    }

    fn restore_warnings(&self, warnings: &mut [Warning]) {
        for warning in warnings {
            self.restore(&mut warning.place);
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize, value: Value) -> Node {
        Node { place: Place { line, column: 3 }, value }
    }

    fn member(line: usize, key: &str, value: Value) -> Member {
        Member { place: Place { line, column: 1 }, key: key.to_owned(), node: at(line, value) }
    }

    #[test]
    fn faults_and_warnings_stand_where_the_original_has_them() {
        let entry = at(
            10,
            Value::Map(vec![
                member(11, "service", Value::Text("we\n\"b".to_owned())),
                member(12, "remote_port", Value::Number("80".to_owned())),
                member(13, "nmespace", Value::Text("x".to_owned())),
                member(14, "tags", Value::Map(vec![member(15, "a b", Value::Null)])),
            ]),
        );
        let good = at(
            20,
            Value::Map(vec![
                member(21, "service", Value::Text("web".to_owned())),
                member(22, "remote_port", Value::Text("http".to_owned())),
            ]),
        );
        let read = entries(&[at(9, Value::List(vec![entry, good]))], &Defaults::default());
        let fault = read.faults().next().expect("a fault");
        let lines: Vec<usize> = fault.faults.iter().map(|fault| fault.place.line).collect();
        assert_eq!(lines, [11, 14]);
        assert_eq!(read.entries[0].warnings[0].place, Place { line: 13, column: 1 });
        assert_eq!(read.entries[1].place.line, 20);
        assert_eq!(read.specs().count(), 1);
    }

    #[test]
    fn numbers_that_json_does_not_know_stay_texts() {
        assert_eq!(Value::number_or_text("8080".into()), Value::Number("8080".into()));
        for text in ["08080", "+1", ".5", "1_000", "nan", ""] {
            assert_eq!(Value::number_or_text(text.into()), Value::Text(text.into()));
        }
    }
}
