//! Answers of our own: to callers that may not call, and in place of a local program that does not answer.

use bytes::Bytes;
use kftray_commons::Access;

/// Why a request gets an answer of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Malformed,
    TooLarge,
    /// Without credentials, or with wrong ones.
    Unauthorized,
    /// From an address that may not call.
    Forbidden,
    /// The local program does not answer.
    Down,
}

/// Who answers, for texts.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// The alias.
    pub(super) name: String,
    /// Where the local program should listen, as `localhost:3000`.
    pub(super) program: String,
}

impl Reason {
    fn status(self) -> &'static str {
        match self {
            Self::Malformed => "400 Bad Request",
            Self::TooLarge => "431 Request Header Fields Too Large",
            Self::Unauthorized => "401 Unauthorized",
            Self::Forbidden => "403 Forbidden",
            Self::Down => "502 Bad Gateway",
        }
    }

    fn text(self, host: &Host) -> (String, String) {
        let Host { name, program } = host;
        match self {
            Self::Malformed => ("This is no valid request".into(), "It was not passed on.".into()),
            Self::TooLarge => ("The request's head is too large".into(), "It was not passed on.".into()),
            Self::Unauthorized => {
                (format!("{name} asks for credentials"), "Ask whoever exposes it for them.".into())
            }
            Self::Forbidden => {
                (format!("{name} is not open to this address"), "Ask whoever exposes it to add it.".into())
            }
            Self::Down => (
                format!("The program behind {name} is not running"),
                format!(
                    "The tunnel is up, but nothing answers at {program} on the developer's machine. \
                     Start the program that listens there; the next request reaches it."
                ),
            ),
        }
    }

    /// The whole answer, after which the connection ends.
    pub(super) fn answer(self, host: &Host, access: &Access, html: bool, with_body: bool) -> Bytes {
        let (title, text) = self.text(host);
        let (kind, body) = if html {
            let (title, text) = (escaped(&title), escaped(&text));
            let page = format!(
                "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
                 <body style=\"font-family:sans-serif;max-width:40em;margin:4em auto\">\
                 <h1>{title}</h1><p>{text}</p></body></html>\n"
            );
            ("text/html", page)
        } else {
            ("text/plain", format!("{title}. {text}\n"))
        };
        let mut head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nConnection: close\r\n",
            self.status(),
            body.len()
        );
        if self == Self::Unauthorized {
            if access.basic.is_some() {
                let realm = host.name.replace(['"', '\\'], "");
                head.push_str(&format!("WWW-Authenticate: Basic realm=\"{realm}\", charset=\"UTF-8\"\r\n"));
            }
            if access.bearer.is_some() {
                head.push_str("WWW-Authenticate: Bearer\r\n");
            }
        }
        head.push_str("\r\n");
        if with_body {
            head.push_str(&body);
        }
        head.into()
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use kftray_commons::Secret;

    use super::*;

    #[test]
    fn a_page_says_what_to_start_and_is_whole() {
        let host = Host { name: "shop<b>".to_owned(), program: "localhost:3000".to_owned() };
        let bytes = Reason::Down.answer(&host, &Access::default(), true, true);
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 502 Bad Gateway\r\n"));
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert!(body.contains("localhost:3000") && body.contains("shop&lt;b&gt;") && !body.contains("<b>"));
        let bare = Reason::Down.answer(&host, &Access::default(), false, false);
        assert!(bare.ends_with(b"\r\n\r\n"));
    }

    #[test]
    fn credentials_are_asked_for_as_they_are_wanted() {
        let host = Host { name: "shop".to_owned(), program: "x".to_owned() };
        let access =
            Access { basic: Some(Secret::new("a:b")), bearer: Some(Secret::new("t")), ..Access::default() };
        let bytes = Reason::Unauthorized.answer(&host, &access, false, true);
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        assert!(text.contains("WWW-Authenticate: Basic realm=\"shop\""));
        assert!(text.contains("WWW-Authenticate: Bearer\r\n"));
    }
}
