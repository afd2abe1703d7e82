//! TOML into the tree of [`super::tree`]: `[[forwards]]` tables.

use kftray_commons::border::Place;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::tree::{Fault, Member, Node, Value};

/// Reads a text.
///
/// # Errors
/// The first thing that is no TOML, with its place.
pub(crate) fn read(text: &str) -> Result<Node, Fault> {
    let place = |at: usize| place(text, at);
    match DeTable::parse(text) {
        Ok(table) => Ok(Node { place: place(0), value: Value::Map(members(table.get_ref(), &place)) }),
        Err(error) => Err(Fault {
            place: place(error.span().map_or(0, |span| span.start)),
            // Of several lines the first says what, the others draw the place.
            message: error.message().lines().next().unwrap_or("no TOML").to_owned(),
        }),
    }
}

fn members(table: &DeTable<'_>, place: &impl Fn(usize) -> Place) -> Vec<Member> {
    let mut all: Vec<_> = table.iter().collect();
    all.sort_by_key(|(key, _)| key.span().start);
    all.into_iter()
        .map(|(key, value)| Member {
            place: place(key.span().start),
            key: key.get_ref().to_string(),
            node: node(value, place),
        })
        .collect()
}

fn node(spanned: &Spanned<DeValue<'_>>, place: &impl Fn(usize) -> Place) -> Node {
    let value = match spanned.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Number(number.to_string()),
            Err(_) => Value::Text(number.to_string()),
        },
        DeValue::Float(number) => Value::number_or_text(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Datetime(time) => Value::Text(time.to_string()),
        DeValue::Array(items) => Value::List(items.iter().map(|item| node(item, place)).collect()),
        DeValue::Table(table) => Value::Map(members(table, place)),
    };
    Node { place: place(spanned.span().start), value }
}

fn place(text: &str, at: usize) -> Place {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(line_start..).map_or(0, |line| line.chars().count()) + 1;
    Place { line: before.bytes().filter(|byte| *byte == b'\n').count() + 1, column }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_places() {
        let text = "namespace = \"é\"\n\n[[forwards]]\nservice = \"web\"\nlocal_port = 0x1F90\n\n[[forwards]]\nservice = \"db\" # x\ntags = { team = \"blue\" }\n";
        let Value::Map(members) = read(text).expect("TOML").value else { panic!("a table") };
        assert_eq!(members[0].key, "namespace");
        let Value::List(items) = &members[1].node.value else { panic!("a list") };
        assert_eq!(items.len(), 2);
        let Value::Map(first) = &items[0].value else { panic!("a table") };
        assert_eq!(first[1].key, "local_port");
        assert_eq!(first[1].node.value, Value::Number("8080".to_owned()));
        assert_eq!(first[1].node.place, Place { line: 5, column: 14 });
        let Value::Map(second) = &items[1].value else { panic!("a table") };
        assert!(matches!(&second[1].node.value, Value::Map(tags) if tags[0].key == "team"));
    }

    #[test]
    fn refused_with_the_place() {
        let fault = read("a = 1\nb = \n").expect_err("no value");
        assert_eq!(fault.place.line, 2, "{fault}");
        let fault = read("a = 1\na = 2\n").expect_err("twice");
        assert_eq!(fault.place.line, 2, "{fault}");
    }
}
