//! One JSON object per line, each written out at once: a script waits for it.

use std::io::{self, Write};

use kftray_commons::Event;

use super::Screen;

pub(super) struct JsonScreen<W> {
    to: W,
}

impl<W: Write> JsonScreen<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to }
    }
}

impl<W: Write> Screen for JsonScreen<W> {
    fn event(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.to.write_all(&line)?;
        self.to.flush()
    }

    fn note(&mut self, _text: &str) -> io::Result<()> {
        Ok(())
    }

    fn waiting(&mut self, _for_what: Option<String>) {}
}
