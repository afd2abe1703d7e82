//! Heads of HTTP/1 messages: what is read from them, and how a request's is rewritten.
//!
//! A request's framing is read strictly (RFC 9112, 6.1 and 6.3): what two programs could understand differently is refused,
//! since rules about requests would else not hold for what hides inside of one. An answer's is read leniently: it is only
//! watched.

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};

use super::body::Body;

/// Longest head, in bytes: more than any browser sends, and what servers allow at most.
pub(super) const HEAD_MAX: usize = 64 * 1024;

/// Most fields in a head.
const FIELDS_MAX: usize = 128;

/// Longest path that is told to people, in bytes.
const PATH_MAX: usize = 512;

/// What the bytes so far are.
#[derive(Debug)]
pub(super) enum Read<T> {
    /// The beginning of a head.
    Partial,
    /// A whole head.
    Head(T),
    /// Not HTTP/1.
    Other,
    /// HTTP/1, but faulty.
    Bad(Fault),
}

/// What is wrong with a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Malformed,
    TooLarge,
}

/// A request's head.
#[derive(Debug)]
pub(super) struct Request {
    /// Its length in bytes, the empty line included.
    pub(super) length: usize,
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    pub(super) body: Body,
    /// It asks for another protocol (`Upgrade`), or for a tunnel (`CONNECT`).
    pub(super) upgrade: bool,
    pub(super) wants_html: bool,
    /// The one `Authorization`; of several, none counts.
    pub(super) authorization: Option<Vec<u8>>,
    pub(super) host: Option<String>,
    /// The last element of `X-Forwarded-For`, whatever it is: the one that the nearest proxy has added.
    pub(super) forwarded_for: Option<String>,
    pub(super) forwarded_proto: Option<String>,
    pub(super) forwarded_host: bool,
}

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its length in bytes, the empty line included.
    pub(super) length: usize,
    pub(super) status: u16,
    /// As if the request had not been HEAD.
    pub(super) body: Body,
}

/// Reads a request's head from the beginning of the bytes.
pub(super) fn request(bytes: &[u8]) -> Read<Request> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut fields);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_MAX => length,
        Ok(httparse::Status::Complete(_)) => return Read::Bad(Fault::TooLarge),
        Ok(httparse::Status::Partial) if bytes.len() <= HEAD_MAX => return Read::Partial,
        Ok(httparse::Status::Partial) => return fault(bytes, Fault::TooLarge),
        Err(httparse::Error::TooManyHeaders) => return Read::Bad(Fault::TooLarge),
        Err(_) => return fault(bytes, Fault::Malformed),
    };
    let method = parsed.method.unwrap_or_default().to_owned();
    let Ok(body) = request_body(parsed.headers, parsed.version == Some(1)) else {
        return Read::Bad(Fault::Malformed);
    };
    let upgrade = method == "CONNECT"
        || (values(parsed.headers, "upgrade").next().is_some()
            && tokens(parsed.headers, "connection").any(|token| token.eq_ignore_ascii_case("upgrade")));
    let mut credentials = values(parsed.headers, "authorization");
    let authorization = match (credentials.next(), credentials.next()) {
        (Some(value), None) => Some(value.to_vec()),
        (Some(_), Some(_)) | (None, _) => None,
    };
    Read::Head(Request {
        length,
        path: shown_path(parsed.path.unwrap_or_default()),
        body,
        upgrade,
        wants_html: tokens(parsed.headers, "accept").any(|token| token.starts_with("text/html")),
        authorization,
        host: values(parsed.headers, "host").next().and_then(plain_host),
        forwarded_for: values(parsed.headers, "x-forwarded-for").last().map(last_element),
        forwarded_proto: tokens(parsed.headers, "x-forwarded-proto").last().map(str::to_owned),
        forwarded_host: values(parsed.headers, "x-forwarded-host").next().is_some(),
        method,
    })
}

/// Reads the head of an answer from the beginning of the bytes.
pub(super) fn answer(bytes: &[u8]) -> Read<Answer> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut fields);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() <= HEAD_MAX => return Read::Partial,
        Ok(httparse::Status::Partial) | Err(_) => return Read::Other,
    };
    let status = parsed.code.unwrap_or_default();
    let body = match status {
        100..200 | 204 | 304 => Body::NONE,
        _ => answer_body(parsed.headers),
    };
    Read::Head(Answer { length, status, body })
}

/// What bytes are that are no valid head: faulty HTTP/1 if some program might read their first line as a request's, since
/// what is passed on unseen keeps its claims; else something else. The answer does not depend on the portions in which they
/// come: a line that may still become one is waited for.
fn fault(bytes: &[u8], fault: Fault) -> Read<Request> {
    // No further than a line is waited for.
    let (line, is_whole) = first_line(bytes.get(..=HEAD_MAX).unwrap_or(bytes));
    let asks = begins_as_request(line);
    if !asks && !line.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\r')) {
        Read::Other
    } else if is_whole {
        if is_request_line(line) { Read::Bad(fault) } else { Read::Other }
    } else if bytes.len() <= HEAD_MAX {
        Read::Partial
    } else if asks {
        Read::Bad(Fault::TooLarge)
    } else {
        Read::Other
    }
}

/// Whether bytes after which nothing comes begin with the first line of an HTTP/1 request.
pub(super) fn begins_as_http(bytes: &[u8]) -> bool {
    is_request_line(first_line(bytes).0)
}

/// The first line that says anything, without what is blank before it and its end; whether it is whole.
fn first_line(bytes: &[u8]) -> (&[u8], bool) {
    let begin = bytes.iter().position(|byte| !is_blank(*byte)).unwrap_or(bytes.len());
    let bytes = bytes.get(begin..).unwrap_or_default();
    match bytes.iter().position(|&byte| byte == b'\n') {
        Some(end) => (bytes.get(..end).unwrap_or_default(), true),
        None => (bytes, false),
    }
}

/// Whether a line begins with a word and a blank, as a request's does with its method.
fn begins_as_request(line: &[u8]) -> bool {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let behind = line.iter().position(|byte| !is_token(byte)).and_then(|end| line.get(end));
    line.first().is_some_and(u8::is_ascii_alphabetic) && behind.is_some_and(|byte| is_blank(*byte))
}

/// Whether a line names the protocol, or leaves that out as HTTP/0.9 did: some programs read fields behind that, too.
fn is_request_line(line: &[u8]) -> bool {
    let mut words = line.split(|byte| !byte.is_ascii_graphic()).filter(|word| !word.is_empty());
    let method = words.next();
    let is_named = words.any(|word| word.get(..5).is_some_and(|begin| begin.eq_ignore_ascii_case(b"HTTP/")));
    let is_http2 = line.strip_suffix(b"\r").unwrap_or(line) == b"PRI * HTTP/2.0";
    !is_http2 && (is_named || (method == Some(b"GET") && begins_as_request(line)))
}

/// What some programs take for the space between two words: Python's, for one, all that Latin-1 has.
fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b'\x0b' | b'\x1c'..=b'\x1f' | b'\x85' | b'\xa0')
}

fn values<'a>(
    fields: &'a [httparse::Header<'a>],
    name: &'static str,
) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

/// The elements of a list field, however many lines it has.
fn tokens<'a>(
    fields: &'a [httparse::Header<'a>],
    name: &'static str,
) -> impl Iterator<Item = &'a str> + use<'a> {
    values(fields, name)
        .filter_map(|value| std::str::from_utf8(value).ok())
        .flat_map(|value| value.split(','))
        .map(trimmed)
        .filter(|token| !token.is_empty())
}

/// Without the blanks that HTTP has around values. `str::trim` takes those of Unicode, which are part of a value.
fn trimmed(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// The last element of a list. What stands before it may be anything.
fn last_element(value: &[u8]) -> String {
    let last = value.rsplit(|&byte| byte == b',').next().unwrap_or_default();
    trimmed(&String::from_utf8_lossy(last)).to_owned()
}

fn request_body(fields: &[httparse::Header<'_>], may_chunk: bool) -> Result<Body, ()> {
    let chunked = values(fields, "transfer-encoding").next().is_some();
    let length = length(fields)?;
    match (chunked, length) {
        (true, Some(_)) => Err(()),
        (true, None) => {
            let codings: Vec<&str> = tokens(fields, "transfer-encoding").collect();
            let is_chunked = |coding: &&str| coding.eq_ignore_ascii_case("chunked");
            let last = codings.last().is_some_and(&is_chunked);
            let once = codings.iter().filter(|coding| is_chunked(coding)).count() == 1;
            let text = values(fields, "transfer-encoding").all(<[u8]>::is_ascii);
            if may_chunk && last && once && text { Ok(Body::chunked()) } else { Err(()) }
        }
        (false, Some(length)) => Ok(Body::Length(length)),
        (false, None) => Ok(Body::NONE),
    }
}

fn answer_body(fields: &[httparse::Header<'_>]) -> Body {
    if let Some(last) = tokens(fields, "transfer-encoding").last() {
        return if last.eq_ignore_ascii_case("chunked") { Body::chunked() } else { Body::UntilEnd };
    }
    match length(fields) {
        Ok(Some(length)) => Body::Length(length),
        Ok(None) | Err(()) => Body::UntilEnd,
    }
}

/// `Content-Length`; several equal ones are one.
fn length(fields: &[httparse::Header<'_>]) -> Result<Option<u64>, ()> {
    let mut found = None;
    for value in values(fields, "content-length") {
        for text in std::str::from_utf8(value).map_err(|_| ())?.split(',').map(trimmed) {
            if !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(());
            }
            let number: u64 = text.parse().map_err(|_| ())?;
            if found.replace(number).is_some_and(|before| before != number) {
                return Err(());
            }
        }
    }
    Ok(found)
}

fn shown_path(path: &str) -> String {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let end = path.char_indices().map(|(at, _)| at).take_while(|at| *at <= PATH_MAX).last().unwrap_or(0);
    if path.len() <= PATH_MAX { path.to_owned() } else { path.get(..end).unwrap_or_default().to_owned() }
}

/// A host that can stand in another field as it is.
fn plain_host(value: &[u8]) -> Option<String> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(byte);
    let host = std::str::from_utf8(value.trim_ascii()).ok()?;
    (!host.is_empty() && host.as_bytes().iter().all(plain)).then(|| host.to_owned())
}

/// What a program is told about who calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hop<'a> {
    /// The caller's address; `None` if it is not known.
    pub(super) caller: Option<IpAddr>,
    /// The scheme that the caller used.
    pub(super) proto: &'a str,
    /// What a proxy in front of us says is believed and kept: it is the Ingress controller.
    pub(super) behind_proxy: bool,
    /// Credentials were for us and go no further.
    pub(super) hides_credentials: bool,
}

/// The head as the program gets it: every line as it came but for those about who calls.
pub(super) fn rewritten(head: &[u8], request: &Request, hop: &Hop<'_>) -> Bytes {
    let mut out = BytesMut::with_capacity(head.len() + 256);
    let mut lines = head.split_inclusive(|&byte| byte == b'\n').peekable();
    // Empty lines before the request line belong to nothing.
    while lines.next_if(|line| is_empty(line)).is_some() {}
    out.put_slice(lines.next().unwrap_or_default());
    let mut end: &[u8] = b"\r\n";
    for line in lines {
        if is_empty(line) {
            end = line;
        } else if !is_dropped(line, hop) {
            out.put_slice(line);
        }
    }
    let mut add = |name: &str, value: &str| {
        for part in [name, ": ", value, "\r\n"] {
            out.put_slice(part.as_bytes());
        }
    };
    let caller = hop.caller.map(|ip| ip.to_string());
    if !(hop.behind_proxy && request.forwarded_for.is_some())
        && let Some(caller) = &caller
    {
        add("X-Forwarded-For", caller);
    }
    let told_proto = request.forwarded_proto.as_deref().filter(|_| hop.behind_proxy);
    if told_proto.is_none() {
        add("X-Forwarded-Proto", hop.proto);
    }
    if !(hop.behind_proxy && request.forwarded_host)
        && let Some(host) = &request.host
    {
        add("X-Forwarded-Host", host);
    }
    add("Forwarded", &forwarded(request, hop, told_proto.unwrap_or(hop.proto)));
    out.put_slice(end);
    out.freeze()
}

/// The value of `Forwarded` (RFC 7239).
fn forwarded(request: &Request, hop: &Hop<'_>, proto: &str) -> String {
    let who = match hop.caller {
        Some(IpAddr::V4(ip)) => ip.to_string(),
        Some(IpAddr::V6(ip)) => format!("\"[{ip}]\""),
        None => "unknown".to_owned(),
    };
    let host = request.host.as_ref().map(|host| format!(";host=\"{host}\"")).unwrap_or_default();
    // A word from outside goes in only if it is one.
    let proto = if proto.bytes().all(|byte| byte.is_ascii_alphanumeric()) { proto } else { hop.proto };
    format!("for={who}{host};proto={proto}")
}

fn is_empty(line: &[u8]) -> bool {
    matches!(line, b"\r\n" | b"\n")
}

/// Lines in which a caller could claim to be somebody else, or that were meant for us.
fn is_dropped(line: &[u8], hop: &Hop<'_>) -> bool {
    let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
    // Programs that read fields as variables (CGI, WSGI) take `_` for `-`; no proxy writes that.
    let disguised = name.contains(&b'_');
    let name: Vec<u8> =
        name.iter().map(|byte| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() }).collect();
    let is = |wanted: &str| name == wanted.as_bytes();
    // Controllers set the X- fields themselves; `Forwarded` they pass on as it came.
    let x_field = name.starts_with(b"x-forwarded-") || is("x-real-ip");
    let claims = is("forwarded") || (x_field && (disguised || !hop.behind_proxy));
    claims || (hop.hides_credentials && is("authorization"))
}

/// An address as it stands in `X-Forwarded-For`, with or without a port.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|at| at.ip()))?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Request {
        match request(text.as_bytes()) {
            Read::Head(head) => head,
            other @ (Read::Partial | Read::Other | Read::Bad(_)) => panic!("{text:?}: {other:?}"),
        }
    }

    fn body(fields: &str) -> Option<Body> {
        match request(format!("POST / HTTP/1.1\r\n{fields}\r\n").as_bytes()) {
            Read::Head(head) => Some(head.body),
            Read::Bad(Fault::Malformed) => None,
            other @ (Read::Partial | Read::Other | Read::Bad(_)) => panic!("{fields:?}: {other:?}"),
        }
    }

    #[test]
    fn framing_of_requests_is_strict() {
        assert_eq!(body(""), Some(Body::NONE));
        assert_eq!(body("Content-Length: 5\r\n"), Some(Body::Length(5)));
        assert_eq!(body("Content-Length: 5\r\nContent-Length: 5, 5\r\n"), Some(Body::Length(5)));
        assert_eq!(body("Transfer-Encoding: chunked\r\n"), Some(Body::chunked()));
        assert_eq!(body("Transfer-Encoding: gzip, Chunked\r\n"), Some(Body::chunked()));
        for bad in [
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: \r\n",
            "Content-Length: \u{a0}5\r\n",
            "Content-Length: 5,\u{2003}5\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: chunked, gzip\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: \r\n",
            "Transfer-Encoding : chunked\r\n",
            "X: a\r\n folded\r\n",
        ] {
            assert_eq!(body(bad), None, "{bad:?}");
        }
        let old = request(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert!(matches!(old, Read::Bad(Fault::Malformed)));
    }

    #[test]
    fn what_is_not_http_is_told_from_what_is_wrong() {
        for other in [
            &b"PRI * HTTP/2.0\r\n\r\n"[..],
            b"\x16\x03\x01\x02",
            b"EHLO me\r\n",
            b"SSH-2.0-x\r\n",
            b"*1\r\n$4\r\nPING\r\n",
        ] {
            assert!(matches!(request(other), Read::Other), "{other:?}");
        }
        for bad in [
            "GET / HTTP/1.1\r\nA B: c\r\n\r\n",
            "GET / x HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\n: x\r\n",
            "\r\nGET / HTTP/1.1\r\nA : b\r\n",
        ] {
            assert!(matches!(request(bad.as_bytes()), Read::Bad(Fault::Malformed)), "{bad:?}");
        }
        // A line that may still become one is waited for.
        for begin in ["GET /", "GET / x", "EHLO me", "\r\nGET / x HTTP/1.1"] {
            assert!(matches!(request(begin.as_bytes()), Read::Partial), "{begin:?}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200));
        assert!(matches!(request(many.as_bytes()), Read::Bad(Fault::TooLarge)));
        let long = format!("GET / HTTP/1.1\r\na: {}", "b".repeat(HEAD_MAX));
        assert!(matches!(request(long.as_bytes()), Read::Bad(Fault::TooLarge)));
    }

    #[test]
    fn upgrades_need_both_fields() {
        assert!(
            read("GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n").upgrade
        );
        assert!(!read("GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n").upgrade);
        assert!(read("CONNECT a:1 HTTP/1.1\r\n\r\n").upgrade);
        let told = read("GET /a/b?token=secret HTTP/1.1\r\n\r\n");
        assert_eq!((told.method.as_str(), told.path.as_str()), ("GET", "/a/b"));
    }

    #[test]
    fn answers() {
        let read = |text: &str| match answer(text.as_bytes()) {
            Read::Head(head) => (head.status, head.body),
            other @ (Read::Partial | Read::Other | Read::Bad(_)) => panic!("{text:?}: {other:?}"),
        };
        assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"), (200, Body::Length(3)));
        assert_eq!(read("HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n"), (304, Body::NONE));
        assert_eq!(read("HTTP/1.0 200 OK\r\n\r\n"), (200, Body::UntilEnd));
        let both = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(read(both), (200, Body::chunked()));
        assert!(matches!(answer(b"hello"), Read::Other));
    }

    const CALLER: &str = "GET /x HTTP/1.1\r\nHost: app:80\r\nX-Forwarded-For: 6.6.6.6\r\nx-forwarded-proto: ftp\r\n\
        X-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\nAccept: */*\r\nAuthorization: Basic eDp5\r\n\r\n";

    fn rewrite(hop: &Hop<'_>) -> String {
        let bytes = rewritten(CALLER.as_bytes(), &read(CALLER), hop);
        String::from_utf8(bytes.to_vec()).expect("text")
    }

    #[test]
    fn who_calls_is_told_and_claims_are_dropped() {
        let hop = Hop {
            caller: "10.0.0.9".parse().ok(),
            proto: "http",
            behind_proxy: false,
            hides_credentials: true,
        };
        assert_eq!(
            rewrite(&hop),
            "GET /x HTTP/1.1\r\nHost: app:80\r\nAccept: */*\r\nX-Forwarded-For: 10.0.0.9\r\n\
             X-Forwarded-Proto: http\r\nX-Forwarded-Host: app:80\r\n\
             Forwarded: for=10.0.0.9;host=\"app:80\";proto=http\r\n\r\n"
        );
    }

    #[test]
    fn what_the_ingress_controller_says_is_kept() {
        let hop = Hop {
            caller: "2001:db8::1".parse().ok(),
            proto: "https",
            behind_proxy: true,
            hides_credentials: false,
        };
        assert_eq!(
            rewrite(&hop),
            "GET /x HTTP/1.1\r\nHost: app:80\r\nX-Forwarded-For: 6.6.6.6\r\nx-forwarded-proto: ftp\r\n\
             X-Real-IP: 6.6.6.6\r\nAccept: */*\r\nAuthorization: Basic eDp5\r\nX-Forwarded-Host: app:80\r\n\
             Forwarded: for=\"[2001:db8::1]\";host=\"app:80\";proto=ftp\r\n\r\n"
        );
    }

    #[test]
    fn addresses() {
        let ip = |text| address(text).map(|ip| ip.to_string());
        assert_eq!(ip("192.0.2.1").as_deref(), Some("192.0.2.1"));
        assert_eq!(ip("192.0.2.1:80").as_deref(), Some("192.0.2.1"));
        assert_eq!(ip("[2001:db8::1]:80").as_deref(), Some("2001:db8::1"));
        assert_eq!(ip("[2001:db8::1]").as_deref(), Some("2001:db8::1"));
        assert_eq!(ip("::ffff:192.0.2.1").as_deref(), Some("192.0.2.1"));
        assert_eq!(ip("unknown"), None);
    }
}
