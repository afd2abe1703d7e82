//! The head of an HTTP/1.1 response, read without taking more than belongs to it for granted: what follows the head in the
//! same read is handed on.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A head beyond this is an attack or an error page; Go allows 10 MiB, real ones are below 2 KiB.
const HEAD_LIMIT: usize = 32 * 1024;
/// More header lines than any gateway adds.
const HEADER_COUNT: usize = 100;
/// Error bodies are a Status object or a short text; more is not shown anyway.
const BODY_LIMIT: usize = 16 * 1024;

/// A response's head, and the bytes that came behind it.
pub(super) struct Head {
    /// 100-599.
    pub(super) status: u16,
    /// What the server calls it.
    pub(super) reason: String,
    headers: Vec<(String, String)>,
    /// Already received bytes behind the head.
    pub(super) rest: BytesMut,
}

impl Head {
    /// Reads one.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the peer closes first, [`io::ErrorKind::InvalidData`] if it is no HTTP/1.x.
    pub(super) async fn read(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut buffer = BytesMut::with_capacity(4096);
        loop {
            if io.read_buf(&mut buffer).await? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the connection was closed without an answer",
                ));
            }
            if let Some(head) = Self::parse(&mut buffer)? {
                return Ok(head);
            }
            if buffer.len() > HEAD_LIMIT {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the answer's head is longer than 32 KiB",
                ));
            }
        }
    }

    fn parse(buffer: &mut BytesMut) -> io::Result<Option<Self>> {
        let mut lines = [httparse::EMPTY_HEADER; HEADER_COUNT];
        let mut response = httparse::Response::new(&mut lines);
        let invalid =
            |error| io::Error::new(io::ErrorKind::InvalidData, format!("the answer is no HTTP ({error})"));
        let length = match response.parse(buffer).map_err(invalid)? {
            httparse::Status::Partial => return Ok(None),
            httparse::Status::Complete(length) => length,
        };
        let status = response.code.unwrap_or_default();
        let reason = response.reason.unwrap_or_default().to_owned();
        let headers = response
            .headers
            .iter()
            .map(|header| {
                (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).trim().to_owned())
            })
            .collect();
        let rest = buffer.split_off(length);
        Ok(Some(Self { status, reason, headers, rest }))
    }

    /// The first header of that lower-case name.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a comma-separated header names this token, in any case.
    pub(super) fn has_token(&self, name: &str, token: &str) -> bool {
        self.headers
            .iter()
            .filter(|(key, _)| key == name)
            .any(|(_, value)| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    }

    /// The body of an error, as far as it comes: up to 16 KiB, until its end, the connection's end or an error.
    pub(super) async fn body(mut self, io: &mut (impl AsyncRead + Unpin)) -> Bytes {
        let chunked = self.has_token("transfer-encoding", "chunked");
        let length = self.header("content-length").and_then(|length| length.parse::<usize>().ok());
        let wanted = length.filter(|_| !chunked).unwrap_or(BODY_LIMIT).min(BODY_LIMIT);
        while self.rest.len() < wanted && !(chunked && self.rest.ends_with(b"0\r\n\r\n")) {
            if !matches!(io.read_buf(&mut self.rest).await, Ok(1..)) {
                break;
            }
        }
        self.rest.truncate(wanted);
        if chunked { join_chunks(&self.rest) } else { self.rest.freeze() }
    }
}

/// The content of the chunks that are complete enough.
fn join_chunks(mut raw: &[u8]) -> Bytes {
    let mut joined = BytesMut::new();
    while let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(raw) {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size == 0 {
            break;
        }
        let content = raw.get(start..).unwrap_or_default();
        joined.extend_from_slice(&content[..size.min(content.len())]);
        raw = content.get(size.saturating_add(2)..).unwrap_or_default();
    }
    joined.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(text: &str) -> io::Result<(Head, tokio::io::BufReader<&[u8]>)> {
        let mut io = tokio::io::BufReader::new(text.as_bytes());
        Ok((Head::read(&mut io).await?, io))
    }

    #[tokio::test]
    async fn what_follows_the_head_is_kept() {
        let (head, _) = read("HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nConnection: keep-alive, upgrade\r\n\r\nabc").await.unwrap();
        assert_eq!((head.status, head.header("upgrade")), (101, Some("SPDY/3.1")));
        assert!(head.has_token("connection", "Upgrade"));
        assert_eq!(&head.rest[..], b"abc");
    }

    #[tokio::test]
    async fn bodies() {
        for (text, body) in [
            ("HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nabcdef", "abc"),
            ("HTTP/1.1 403 Forbidden\r\n\r\nabcdef", "abcdef"),
            ("HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "abcde"),
            ("HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n30\r\nabc", "abc"),
        ] {
            let (head, mut io) = read(text).await.unwrap();
            assert_eq!(head.body(&mut io).await, body, "{text:?}");
        }
    }

    #[tokio::test]
    async fn nonsense_is_an_error() {
        assert_eq!(read("").await.err().unwrap().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read("HTTP/1.1 200 OK\r\n").await.err().unwrap().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read("SSH-2.0-OpenSSH\r\n\r\n").await.err().unwrap().kind(), io::ErrorKind::InvalidData);
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(HEAD_LIMIT));
        assert_eq!(read(&endless).await.err().unwrap().kind(), io::ErrorKind::InvalidData);
    }
}
