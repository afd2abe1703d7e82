//! A small JSON reader that knows the place of every value and goes on after a broken entry.
//!
//! `serde_json` gives up at the first fault and forgets where values stood; a person who wrote forty entries by hand
//! wants the thirty-nine good ones and the line and column of the bad one. Grammar: RFC 8259, plus what hand-written files
//! have in practice: a byte order mark, commas before a closing bracket, several documents one after another.

use super::{Place, Warning};

/// Deepest nesting that is followed. An entry needs two levels; the limit keeps hostile input from exhausting the stack.
const DEPTH_MAX: usize = 64;

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// Byte offset of its first character.
    pub(super) at: usize,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// As written.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Object(Vec<Member>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Member {
    pub(super) key: String,
    pub(super) key_at: usize,
    pub(super) node: Node,
}

/// Something that is no JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyntaxFault {
    pub(super) at: usize,
    pub(super) message: String,
    pub(super) remedy: &'static str,
}

impl SyntaxFault {
    fn new(at: usize, message: impl Into<String>, remedy: &'static str) -> Self {
        Self { at, message: message.into(), remedy }
    }
}

impl Value {
    /// The kind with its article, for "expected ..., found an object".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

impl Node {
    /// The value without its places. A number keeps its digits as far as JSON readers agree on them.
    pub(super) fn plain(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(flag) => (*flag).into(),
            Value::Number(text) => serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into()),
            Value::Text(text) => text.as_str().into(),
            Value::List(nodes) => nodes.iter().map(Self::plain).collect(),
            Value::Object(members) => {
                members.iter().map(|member| (member.key.clone(), member.node.plain())).collect()
            }
        }
    }
}

/// Turns offsets into places.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(breaks).collect() }
    }

    /// Line and column of a byte offset that lies on a character boundary or beyond the end.
    pub(super) fn place(&self, at: usize) -> Place {
        let at = at.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= at).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let column = self.text.get(start..at).map_or(0, |before| before.chars().count()) + 1;
        Place { line, column }
    }
}

/// What a text holds: its entries in order, and commas that are too many.
pub(super) struct Document {
    pub(super) entries: Vec<Result<Node, SyntaxFault>>,
    pub(super) warnings: Vec<Warning>,
}

/// Reads a list of entries, one entry, or several of either one after another.
pub(super) fn read(text: &str, lines: &Lines<'_>) -> Document {
    let mut reader = Reader { text, at: 0, slips: Vec::new() };
    if text.starts_with('\u{feff}') {
        reader.at = '\u{feff}'.len_utf8();
    }
    let entries = reader.documents();
    let warnings = reader
        .slips
        .iter()
        .map(|(at, what)| Warning { place: lines.place(*at), message: (*what).to_owned() })
        .collect();
    Document { entries, warnings }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// Offset and description of what was overlooked on purpose.
    slips: Vec<(usize, &'static str)>,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at..).and_then(|rest| rest.chars().next())
    }

    fn bump(&mut self) -> Option<char> {
        let letter = self.peek()?;
        self.at += letter.len_utf8();
        Some(letter)
    }

    fn eat(&mut self, letter: char) -> bool {
        let found = self.peek() == Some(letter);
        if found {
            self.at += letter.len_utf8();
        }
        found
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\r' | '\n')) {
            self.at += 1;
        }
    }

    fn documents(&mut self) -> Vec<Result<Node, SyntaxFault>> {
        let mut entries = Vec::new();
        loop {
            self.blanks();
            match self.peek() {
                None => return entries,
                Some('[') => self.list_of_entries(&mut entries),
                Some(',') if !entries.is_empty() => {
                    self.at += 1;
                }
                Some(_) => self.entry(&mut entries),
            }
        }
    }

    /// The outer list: each element stands for itself, so a broken one does not lose the others.
    fn list_of_entries(&mut self, entries: &mut Vec<Result<Node, SyntaxFault>>) {
        let open = self.at;
        self.at += 1;
        let mut comma: Option<usize> = None;
        let mut first = true;
        loop {
            self.blanks();
            let before = self.at;
            match self.peek() {
                None => {
                    let message =
                        "the list that begins here is not closed; entries may be missing at the end";
                    entries.push(Err(SyntaxFault::new(
                        open,
                        message,
                        "Add the closing `]`, or restore the file.",
                    )));
                    return;
                }
                Some(']') => {
                    self.at += 1;
                    self.slips.extend(comma.map(extra_comma));
                    return;
                }
                Some(',') => {
                    if first || comma.is_some() {
                        self.slips.push(extra_comma(before));
                    }
                    comma = Some(before);
                    self.at += 1;
                    continue;
                }
                Some(_) => {
                    if !first && comma.is_none() && entries.last().is_some_and(Result::is_ok) {
                        self.slips.push((before, "a comma is missing before this; it is read all the same"));
                    }
                    self.entry(entries);
                }
            }
            (first, comma) = (false, None);
        }
    }

    fn entry(&mut self, entries: &mut Vec<Result<Node, SyntaxFault>>) {
        let start = self.at;
        let result = self.value(0);
        if let Err(fault) = &result {
            self.at = self.resume(start, fault.at);
        }
        entries.push(result);
    }

    /// Where to go on after a broken entry: behind its balancing bracket, or at the next line that begins like the
    /// broken one did, whichever comes first.
    fn resume(&self, start: usize, fault: usize) -> usize {
        let rest = self.text.get(start..).unwrap_or_default();
        if !rest.starts_with(['{', '[']) {
            // Stray letters: they end where something else can begin.
            let end =
                rest.char_indices().skip(1).find(|(_, c)| matches!(c, '\n' | ',' | '{' | '[' | '}' | ']'));
            return end.map_or(self.text.len(), |(offset, _)| start + offset);
        }
        let balanced = self.balanced_end(start).filter(|end| *end > start);
        let sibling = self.sibling_line(start, fault);
        match (balanced, sibling) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) | (None, Some(a)) => a,
            (None, None) => self.text.len(),
        }
    }

    fn balanced_end(&self, start: usize) -> Option<usize> {
        let mut depth = 0_usize;
        let mut in_text = false;
        let mut escaped = false;
        for (offset, byte) in self.text.as_bytes().get(start..)?.iter().enumerate() {
            let at = start + offset;
            if std::mem::take(&mut escaped) && *byte != b'\n' {
                continue;
            }
            match byte {
                // No text goes over the end of a line, so a missing quote costs one line only.
                b'\n' => in_text = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                _ if in_text => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => {
                    // A closing bracket that is not ours ends the entry before it.
                    depth = match depth.checked_sub(1) {
                        None => return Some(at),
                        Some(0) => return Some(at + 1),
                        Some(depth) => depth,
                    };
                }
                b',' if depth == 0 => return Some(at),
                _ => {}
            }
        }
        None
    }

    fn sibling_line(&self, start: usize, fault: usize) -> Option<usize> {
        let line_start = self.text.get(..start)?.rfind('\n').map_or(0, |at| at + 1);
        let indent = self.text.get(line_start..start)?;
        if !self.text.get(start..)?.starts_with('{') || !indent.trim().is_empty() {
            return None;
        }
        let from = start.max(fault.min(self.text.len()));
        // The fault itself may be the sibling's brace: look from the beginning of its line.
        let from = self.text.get(..from)?.rfind('\n').unwrap_or(from).max(start);
        let needle = format!("\n{indent}{{");
        let found = from + self.text.get(from..)?.find(&needle)?;
        Some(found + 1 + indent.len())
    }

    fn value(&mut self, depth: usize) -> Result<Node, SyntaxFault> {
        let at = self.at;
        if depth > DEPTH_MAX {
            return Err(SyntaxFault::new(at, "too deeply nested", "An entry is one flat object."));
        }
        let value = match self.peek() {
            Some('{') => self.object(depth)?,
            Some('[') => self.list(depth)?,
            Some('"') => Value::Text(self.text()?),
            Some('-' | '0'..='9') => Value::Number(self.number()?),
            Some(_) => self.word()?,
            None => return Err(self.unexpected("a value")),
        };
        Ok(Node { at, value })
    }

    fn object(&mut self, depth: usize) -> Result<Value, SyntaxFault> {
        self.at += 1;
        let mut members = Vec::new();
        let mut comma = None;
        loop {
            self.blanks();
            if self.eat('}') {
                self.slips.extend(comma.map(extra_comma));
                return Ok(Value::Object(members));
            }
            if !members.is_empty() && comma.is_none() {
                return Err(self.unexpected("`,` or `}`"));
            }
            let key_at = self.at;
            if self.peek() != Some('"') {
                return Err(self.unexpected("a field name in double quotes"));
            }
            let key = self.text()?;
            self.blanks();
            if !self.eat(':') {
                return Err(self.unexpected("`:` after the field name"));
            }
            self.blanks();
            let node = self.value(depth + 1)?;
            members.push(Member { key, key_at, node });
            self.blanks();
            comma = self.comma();
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, SyntaxFault> {
        self.at += 1;
        let mut nodes = Vec::new();
        let mut comma = None;
        loop {
            self.blanks();
            if self.eat(']') {
                self.slips.extend(comma.map(extra_comma));
                return Ok(Value::List(nodes));
            }
            if !nodes.is_empty() && comma.is_none() {
                return Err(self.unexpected("`,` or `]`"));
            }
            nodes.push(self.value(depth + 1)?);
            self.blanks();
            comma = self.comma();
        }
    }

    fn comma(&mut self) -> Option<usize> {
        let at = self.at;
        self.eat(',').then_some(at)
    }

    fn number(&mut self) -> Result<String, SyntaxFault> {
        let start = self.at;
        while matches!(self.peek(), Some('0'..='9' | '-' | '+' | '.' | 'e' | 'E')) {
            self.at += 1;
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        // One judge for what a number is, so that this reader accepts no more and no less than others do.
        match serde_json::from_str::<serde_json::Number>(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(_) => {
                let message = format!("`{}` is not a number", shorten(text));
                Err(SyntaxFault::new(start, message, "Write it in digits only, or in double quotes."))
            }
        }
    }

    fn word(&mut self) -> Result<Value, SyntaxFault> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
            self.bump();
        }
        let word = self.text.get(start..self.at).unwrap_or_default();
        match word {
            "null" => Ok(Value::Null),
            // Capitals come from Python and YAML habits.
            _ if word.eq_ignore_ascii_case("true") => Ok(Value::Bool(true)),
            _ if word.eq_ignore_ascii_case("false") => Ok(Value::Bool(false)),
            "" => {
                self.at = start;
                Err(self.unexpected("a value"))
            }
            _ => {
                let message = format!("`{}` is not a value", shorten(word));
                Err(SyntaxFault::new(start, message, "Put texts in double quotes."))
            }
        }
    }

    fn text(&mut self) -> Result<String, SyntaxFault> {
        let start = self.at;
        self.at += 1;
        let mut text = String::new();
        loop {
            let at = self.at;
            match self.bump() {
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escape(at)?),
                Some('\n' | '\r') | None => {
                    let message = "the text that begins here has no closing quote";
                    return Err(SyntaxFault::new(start, message, "Add the `\"` at its end."));
                }
                Some(letter) if u32::from(letter) < 0x20 => {
                    let message = format!("the control character U+{:04X} in a text", u32::from(letter));
                    return Err(SyntaxFault::new(at, message, "Remove it, or write it as \\u00XX."));
                }
                Some(letter) => text.push(letter),
            }
        }
    }

    fn escape(&mut self, at: usize) -> Result<char, SyntaxFault> {
        let fault = |message: String| {
            SyntaxFault::new(at, message, "Write a backslash as `\\\\`, for example in Windows paths.")
        };
        Ok(match self.bump() {
            Some(letter @ ('"' | '\\' | '/')) => letter,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let high =
                    self.hex().ok_or_else(|| fault("`\\u` needs four hexadecimal digits".to_owned()))?;
                let code = if (0xD800..0xDC00).contains(&high) && self.eat('\\') && self.eat('u') {
                    let low = self.hex().filter(|low| (0xDC00..0xE000).contains(low));
                    low.map(|low| 0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00))
                } else {
                    Some(high)
                };
                code.and_then(char::from_u32).ok_or_else(|| fault("half a surrogate pair".to_owned()))?
            }
            Some(letter) if !letter.is_control() => return Err(fault(format!("`\\{letter}` means nothing"))),
            Some(_) | None => return Err(fault("a backslash at the end of the line".to_owned())),
        })
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        let code =
            digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?;
        self.at += 4;
        code
    }

    fn unexpected(&self, expected: &str) -> SyntaxFault {
        let (found, remedy) = match self.peek() {
            None => ("the end of the text".to_owned(), "The text is cut off: add what is missing."),
            Some('\'') => ("`'`".to_owned(), "JSON knows double quotes only."),
            Some('/' | '#') => ("a comment".to_owned(), "JSON has no comments; remove it."),
            Some(letter) if letter.is_control() => {
                (format!("U+{:04X}", u32::from(letter)), "Remove that character.")
            }
            Some(letter) => {
                (format!("`{letter}`"), "Look for a missing comma, quote or bracket just before.")
            }
        };
        SyntaxFault::new(self.at, format!("expected {expected}, found {found}"), remedy)
    }
}

fn extra_comma(at: usize) -> (usize, &'static str) {
    (at, "a comma too many; it is ignored")
}

/// Enough of a text to recognise it in a message.
pub(super) fn shorten(text: &str) -> String {
    /// Longer texts break the line of a terminal.
    const SHOWN: usize = 40;
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<Result<Node, SyntaxFault>> {
        read(text, &Lines::of(text)).entries
    }

    /// One letter per entry: its first text value, or `!` for a fault.
    fn outline(text: &str) -> String {
        all(text)
            .iter()
            .map(|entry| match entry {
                Ok(Node { value: Value::Object(members), .. }) => {
                    members.first().map_or("-".to_owned(), |member| member.key.clone())
                }
                Ok(node) => node.value.kind().to_owned(),
                Err(_) => "!".to_owned(),
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn shapes() {
        assert_eq!(outline(r#"{"a":1}"#), "a");
        assert_eq!(outline(r#"[{"a":1},{"b":1}]"#), "a b");
        assert_eq!(outline("{\"a\":1}\n{\"b\":1}\n\n{\"c\":1}"), "a b c");
        assert_eq!(outline(r#"{"a":1},{"b":1},"#), "a b");
        assert_eq!(outline(r#"[{"a":1}] [{"b":1}]"#), "a b");
        assert_eq!(outline(""), "");
        assert_eq!(outline("[]"), "");
        assert_eq!(outline("\u{feff}[{\"a\":1}]"), "a");
        assert_eq!(outline("[1, \"x\", {\"a\":1}]"), "a number a text a");
    }

    #[test]
    fn a_broken_entry_does_not_lose_the_others() {
        assert_eq!(outline(r#"[{"a":1},{"b" 1},{"c":1}]"#), "a ! c");
        assert_eq!(outline("[\n  {\"a\":1},\n  {\"b\":1,\n  {\"c\":1}\n]"), "a ! c");
        assert_eq!(outline("[\n  {\"a\":\"x},\n  {\"c\":1}\n]"), "! c");
        assert_eq!(outline("[{\"a\":1},{\"b\":1}"), "a b !");
        assert_eq!(outline(r#"[{"a":1} {"b":1}]"#), "a b");
        assert_eq!(outline("{\"a\":1}\noops\n{\"b\":1}"), "a ! b");
        assert_eq!(outline(r#"[{"a":1},,{"b":1},]"#), "a b");
        assert_eq!(outline(r#"[{'a':1},{"b":1}]"#), "! b");
        assert_eq!(outline(r#"{"a":1}]{"b":1}"#), "a ! b");
    }

    #[test]
    fn places_are_in_characters() {
        let text = "[\n  {\"é\": 1, \"b\": tru}\n]";
        let lines = Lines::of(text);
        let fault = all(text).remove(0).expect_err("broken");
        assert_eq!(lines.place(fault.at), Place { line: 2, column: 17 });
        assert_eq!(lines.place(0), Place { line: 1, column: 1 });
        assert_eq!(lines.place(9999), Place { line: 3, column: 2 });
    }

    #[test]
    fn texts() {
        let text = r#"{"a":"\u00e9\ud83d\ude00\n\\ \/"}"#;
        let Ok(Node { value: Value::Object(members), .. }) = all(text).remove(0) else { panic!("no object") };
        assert_eq!(members[0].node.value, Value::Text("é😀\n\\ /".to_owned()));
        for bad in [r#"{"a":"\ud83d"}"#, r#"{"a":"\x"}"#, r#"{"a":"\u12"}"#, "{\"a\":\"\u{1}\"}"] {
            assert!(all(bad).remove(0).is_err(), "{bad}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let text = format!("{{\"a\":{}", "[".repeat(100_000));
        assert!(all(&text).iter().all(Result::is_err));
    }
}
