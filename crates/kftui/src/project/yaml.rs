//! YAML into the tree of [`super::tree`], by the core schema of YAML 1.2, with aliases and merge keys.
//!
//! Built on the parser's events and not on serde, because every value needs its line and column.

use std::collections::HashMap;

use kftray_commons::border::Place;
use serde_saphyr::granit_parser::{self, Event, Marker, Parser, ScalarStyle, ScanError, Span};

use super::tree::{Fault, Member, Node, Value};

/// Deepest nesting: an entry needs four levels; the limit keeps a hostile file from exhausting the stack.
const DEPTH_MAX: usize = 32;

/// Most values of a file, aliases counted as what they stand for: 5,000 entries of twenty fields. Above it a file is an
/// accident or an attack ("billion laughs").
const NODES_MAX: usize = 100_000;

/// Reads every document of a text.
///
/// # Errors
/// The first thing that is no YAML, with its place.
pub(crate) fn read(text: &str) -> Result<Vec<Node>, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // Comments are no values, and the parser bounds how many it hands on.
    let options = granit_parser::options! { emit_comments: false };
    let events = Parser::new_from_str_with_options(text, options);
    let mut reader = Reader { events, anchors: HashMap::new(), nodes: 0 };
    let mut documents = Vec::new();
    while let Some((event, span)) = reader.next()? {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the parser's set of events grows; the rest are brackets"
        )]
        match event {
            Event::StreamEnd => break,
            Event::DocumentStart(..) => reader.anchors.clear(),
            Event::StreamStart | Event::DocumentEnd => {}
            event => {
                let node = reader.node(event, span, 0)?;
                // An empty document is a comment or a stray `---`.
                if node.value != Value::Null {
                    documents.push(node);
                }
            }
        }
    }
    Ok(documents)
}

struct Reader<'a, I: Iterator<Item = Result<(Event<'a>, Span), ScanError>>> {
    events: I,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'a, I: Iterator<Item = Result<(Event<'a>, Span), ScanError>>> Reader<'a, I> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, Fault> {
        let told = |error: ScanError| Fault { place: place(error.marker()), message: error.info() };
        self.events.next().transpose().map_err(told)
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Fault> {
        let here = place(&span.start);
        let fault = |message: &str| Fault { place: here, message: message.to_owned() };
        self.nodes += 1;
        if depth > DEPTH_MAX {
            return Err(fault("too deeply nested"));
        }
        if self.nodes > NODES_MAX {
            return Err(fault("too many values in one file"));
        }
        #[expect(clippy::wildcard_enum_match_arm, reason = "every other event is no value")]
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                (if plain { scalar(&text) } else { Value::Text(text.into_owned()) }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.map(depth)?, anchor),
            Event::Alias(id) => {
                let node = self.anchors.get(&id).cloned().ok_or_else(|| fault("this alias names itself"))?;
                self.nodes += size(&node);
                return Ok(Node { place: here, value: node.value });
            }
            _ => return Err(fault("a value was expected here")),
        };
        let node = Node { place: here, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Value, Fault> {
        let mut items = Vec::new();
        while let Some((event, span)) = self.next()? {
            if matches!(event, Event::SequenceEnd) {
                break;
            }
            items.push(self.node(event, span, depth + 1)?);
        }
        Ok(Value::List(items))
    }

    fn map(&mut self, depth: usize) -> Result<Value, Fault> {
        let mut members: Vec<Member> = Vec::new();
        let mut merged: Vec<Member> = Vec::new();
        while let Some((event, span)) = self.next()? {
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let key = self.node(event, span, depth + 1)?;
            let Some((event, span)) = self.next()? else { break };
            let node = self.node(event, span, depth + 1)?;
            let name = match key.value {
                Value::Text(text) | Value::Number(text) => text,
                Value::Bool(flag) => flag.to_string(),
                other @ (Value::Null | Value::List(_) | Value::Map(_)) => {
                    let message = format!("a key must be a text, found {}", other.kind());
                    return Err(Fault { place: key.place, message });
                }
            };
            if name == "<<" {
                merge(node, &mut merged);
            } else {
                members.push(Member { place: key.place, key: name, node });
            }
        }
        // What is written in the map itself wins over what is merged in.
        merged.retain(|one| members.iter().all(|own| own.key != one.key));
        members.extend(merged);
        Ok(Value::Map(members))
    }
}

/// `<<: *base` or `<<: [*a, *b]`; earlier ones win.
fn merge(node: Node, merged: &mut Vec<Member>) {
    match node.value {
        Value::Map(members) => {
            for member in members {
                if merged.iter().all(|known| known.key != member.key) {
                    merged.push(member);
                }
            }
        }
        Value::List(items) => items.into_iter().for_each(|item| merge(item, merged)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {}
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(size).sum::<usize>(),
        Value::Map(members) => members.iter().map(|member| size(&member.node)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => 0,
    }
}

/// A scalar without quotes (YAML 1.2.2, 10.3.2).
fn scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let radix = [("0x", 16), ("0o", 8)];
    let in_radix =
        radix.iter().find_map(|(mark, radix)| u64::from_str_radix(text.strip_prefix(mark)?, *radix).ok());
    match in_radix {
        Some(number) => Value::Number(number.to_string()),
        None => Value::number_or_text(text.to_owned()),
    }
}

fn place(marker: &Marker) -> Place {
    Place { line: marker.line().max(1), column: marker.col() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(node: &Node) -> String {
        match &node.value {
            Value::Null => "null".to_owned(),
            Value::Bool(flag) => flag.to_string(),
            Value::Number(number) => number.clone(),
            Value::Text(text) => format!("{text:?}"),
            Value::List(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(",")),
            Value::Map(members) => {
                let all = members.iter().map(|member| format!("{}:{}", member.key, shown(&member.node)));
                format!("{{{}}}", all.collect::<Vec<_>>().join(","))
            }
        }
    }

    fn all(text: &str) -> String {
        read(text).expect("YAML").iter().map(shown).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn scalars() {
        assert_eq!(
            all("[80, '80', 0x50, 0o120, 1.5, true, ~, null, web, \"\", 08, yes]"),
            r#"[80,"80",80,80,1.5,true,null,null,"web","","08","yes"]"#
        );
    }

    #[test]
    fn documents_anchors_and_merge_keys() {
        assert_eq!(all("# only a comment\n---\na: 1\n---\n- b: 2\n"), "{a:1} [{b:2}]");
        assert_eq!(all(""), "");
        let text = "- &base {namespace: shop, port: 1}\n- <<: *base\n  port: 2\n- *base\n";
        assert_eq!(
            all(text),
            "[{namespace:\"shop\",port:1},{port:2,namespace:\"shop\"},{namespace:\"shop\",port:1}]"
        );
    }

    #[test]
    fn places() {
        let read = read("forwards:\n  - service: web\n    remote_port: x\n").expect("YAML");
        let Value::Map(members) = &read[0].value else { panic!("a map") };
        let Value::List(items) = &members[0].node.value else { panic!("a list") };
        let Value::Map(fields) = &items[0].value else { panic!("a map") };
        assert_eq!((members[0].place.line, members[0].place.column), (1, 1));
        assert_eq!((fields[1].place.line, fields[1].place.column), (3, 5));
        assert_eq!((fields[1].node.place.line, fields[1].node.place.column), (3, 18));
    }

    #[test]
    fn refused_with_the_place() {
        for (text, line) in [("a: 1\nb: [1, 2\n", 2), ("a: b: c\n", 1), ("x: *nothing\n", 1)] {
            let fault = read(text).expect_err(text);
            assert_eq!(fault.place.line, line, "{text:?}: {fault}");
            assert!(!fault.message.is_empty());
        }
    }

    #[test]
    fn hostile_files_end_soon() {
        let deep = "[".repeat(10_000);
        assert!(read(&deep).is_err());
        let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{},", level - 1).repeat(10);
            laughs.push_str(&format!("a{level}: &a{level} [{before}]\n"));
        }
        assert!(read(&laughs).expect_err("too many").message.contains("too many"));
    }
}
