//! Where the body of an HTTP/1 message ends (RFC 9112, sections 6 and 7). Bodies are not decoded, only measured: what goes
//! through keeps every byte, chunk extensions and trailers included.

/// Longest line of a chunk's size with its extensions, and longest trailer section, in bytes: what servers allow.
const LINE_MAX: u32 = 16 * 1024;

/// Digits of a chunk's size: 16 are a 64-bit number.
const DIGITS_MAX: u8 = 16;

/// How a message's body is delimited, and how much of it is still to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
    /// Everything until the connection ends.
    UntilEnd,
}

/// A chunk is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

impl Body {
    pub(super) const NONE: Self = Self::Length(0);

    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunks { state: State::Size, left: 0, digits: 0, line: 0 })
    }

    /// How many of the bytes, from the first on, belong to this body: at least one unless it is done. What is wrong is told
    /// when it is the first of them, so that the good bytes before it pass whatever the portions.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match self {
            Self::UntilEnd => Ok(bytes.len()),
            Self::Length(left) => {
                let taken = (bytes.len() as u64).min(*left);
                *left -= taken;
                // Not more than the length of a slice.
                Ok(usize::try_from(taken).unwrap_or(bytes.len()))
            }
            Self::Chunked(chunks) => chunks.take(bytes),
        }
    }

    /// Nothing more belongs to it.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.state == State::Done,
            Self::UntilEnd => false,
        }
    }
}

/// The place in a chunked body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunks {
    state: State,
    /// Bytes of the present chunk's data that are still to come.
    left: u64,
    /// Digits of the present size so far.
    digits: u8,
    /// Length of the present line, or of the trailers so far.
    line: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the beginning of a line after the last chunk.
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

impl Chunks {
    fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if self.state == State::Done {
                break;
            }
            if self.state == State::Data {
                let here = (bytes.len() - at) as u64;
                let taken = here.min(self.left);
                self.left -= taken;
                at += usize::try_from(taken).map_err(|_| Malformed)?;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            match self.next(self.state, byte) {
                Ok(state) => self.state = state,
                Err(malformed) if at == 0 => return Err(malformed),
                // It is met again, and is as wrong then.
                Err(Malformed) => break,
            }
            at += 1;
        }
        Ok(at)
    }

    fn next(&mut self, state: State, byte: u8) -> Result<State, Malformed> {
        self.line += 1;
        if self.line > LINE_MAX {
            return Err(Malformed);
        }
        Ok(match (state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if self.digits < DIGITS_MAX => {
                let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
                self.left = (self.left << 4) | u64::from(digit);
                self.digits += 1;
                State::Size
            }
            (State::Size, b';' | b' ' | b'\t') if self.digits > 0 => State::Extension,
            (State::Size, b'\r') if self.digits > 0 => State::SizeLf,
            (State::Extension, b'\r') => State::SizeLf,
            (State::Extension, byte) if byte != b'\n' => State::Extension,
            (State::SizeLf, b'\n') => {
                let last = self.left == 0;
                (self.digits, self.line) = (0, 0);
                if last { State::TrailerStart } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.line = 0;
                State::Size
            }
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart | State::Trailer, byte) if byte != b'\r' && byte != b'\n' => State::Trailer,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            _ => return Err(Malformed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Length of the body at the beginning of a text that comes in pieces of a size.
    fn measure(text: &[u8], piece: usize) -> Result<Option<usize>, Malformed> {
        let mut body = Body::chunked();
        let mut length = 0;
        for mut bytes in text.chunks(piece) {
            while !bytes.is_empty() {
                let taken = body.take(bytes)?;
                assert!(taken > 0, "it takes some as long as it is not done");
                length += taken;
                if body.is_done() {
                    return Ok(Some(length));
                }
                bytes = &bytes[taken..];
            }
        }
        Ok(None)
    }

    #[test]
    fn chunked_bodies_are_measured_whatever_the_pieces() {
        let good = [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "a;name=value\r\n0123456789\r\n1 \r\nx\r\n000\r\n\r\n",
            "1\r\nx\r\n0\r\nTrailer: yes\r\nAnother: one\r\n\r\n",
            "1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n",
        ];
        for text in good {
            for piece in 1..=text.len() + 3 {
                let whole = format!("{text}GET");
                let found = measure(whole.as_bytes(), piece);
                assert_eq!(found, Ok(Some(text.len())), "{text:?} by {piece}");
            }
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let bad = [
            "x\r\n",
            "\r\n",
            ";a\r\n",
            "5\nhello\r\n",
            "5\r\nhelloX\r\n",
            "5\r\nhello\n",
            "11111111111111111\r\n",
            "0\r\nTrailer\n\r\n",
            "-1\r\n",
            "0x5\r\n",
        ];
        for text in bad {
            for piece in 1..=text.len() {
                assert_eq!(measure(text.as_bytes(), piece), Err(Malformed), "{text:?}");
            }
        }
        let endless = format!("1;{}", "x".repeat(LINE_MAX as usize));
        assert_eq!(measure(endless.as_bytes(), 1_000), Err(Malformed));
    }

    #[test]
    fn lengths() {
        let mut body = Body::Length(5);
        assert_eq!((body.take(b"abc"), body.is_done()), (Ok(3), false));
        assert_eq!((body.take(b"defg"), body.is_done()), (Ok(2), true));
        assert!(Body::NONE.is_done());
        assert_eq!((Body::UntilEnd.take(b"abc"), Body::UntilEnd.is_done()), (Ok(3), false));
    }
}
