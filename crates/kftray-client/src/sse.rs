//! Server-sent events out of bytes, as the HTML standard has them (section 9.2.6), as far as the host uses them: fields
//! `id`, `event`, `data`, comments, lines ended by LF or CRLF.

/// The largest event that is read: several times the snapshot of 5,000 configs.
const EVENT_MAX: usize = 256 * 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Event {
    pub(crate) id: Option<String>,
    pub(crate) name: String,
    pub(crate) data: String,
}

/// An event larger than anything the host says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLarge;

/// Bytes that have come but are no whole event yet.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
}

impl Reader {
    /// Takes bytes; answers the events that are complete with them.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLarge> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.line(&String::from_utf8_lossy(&line), &mut events);
        }
        self.line.extend_from_slice(rest);
        if self.line.len() + self.event.data.len() > EVENT_MAX { Err(TooLarge) } else { Ok(events) }
    }

    fn line(&mut self, line: &str, events: &mut Vec<Event>) {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                events.push(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.event.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_the_bytes_are_cut() {
        let text = ": alive\n\nid: a.1\r\nevent: delta\r\ndata: {\"x\":\r\ndata: 1}\r\n\r\nevent: empty\n\ndata:y\n\n";
        let whole = Reader::default().push(text.as_bytes()).expect("small");
        assert_eq!(whole.len(), 2);
        assert_eq!(whole[0].id.as_deref(), Some("a.1"));
        assert_eq!(whole[0].name, "delta");
        assert_eq!(whole[0].data, "{\"x\":\n1}");
        assert_eq!(whole[1], Event { id: None, name: String::new(), data: "y".to_owned() });
        let mut reader = Reader::default();
        let cut: Vec<Event> = text.bytes().flat_map(|byte| reader.push(&[byte]).expect("small")).collect();
        assert_eq!(cut, whole);
    }
}
