//! The way to a server: directly, or through which proxy.
//!
//! `proxy-url` of the kubeconfig wins and is not subject to `NO_PROXY`; else the environment decides by the server's scheme,
//! as in client-go.

use base64::Engine as _;
use http::HeaderValue;
use kftray_commons::{Code, Problem};
use percent_encoding::percent_decode_str;
use url::Url;

use super::no_proxy::NoProxy;
use super::origin::Origin;
use crate::config::Environment;

/// How connections are made.
pub(crate) enum Route {
    /// To the server itself.
    Direct,
    /// Through a proxy.
    Proxy(Proxy),
}

/// A proxy server.
pub(crate) struct Proxy {
    /// What it speaks.
    pub(crate) kind: ProxyKind,
    /// Name or address, without brackets.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
    /// Where it was configured, for messages: `proxy-url of the kubeconfig`, `HTTPS_PROXY`.
    pub(crate) origin: &'static str,
}

/// What a proxy speaks.
pub(crate) enum ProxyKind {
    /// `CONNECT`, perhaps inside TLS.
    Http {
        /// The connection to the proxy itself is encrypted.
        tls: bool,
        /// `Proxy-Authorization`.
        authorization: Option<HeaderValue>,
    },
    /// SOCKS5 with names resolved by the proxy (Go does so for `socks5` and `socks5h` alike).
    Socks5 {
        /// User and password (RFC 1929).
        login: Option<(String, String)>,
    },
}

impl Route {
    /// Decides.
    ///
    /// # Errors
    /// [`Code::ProxyRefused`] for a URL that names no proxy; its password is not in the message.
    pub(crate) fn choose(
        origin: &Origin,
        proxy_url: Option<&str>,
        environment: &Environment,
    ) -> Result<Self, Problem> {
        if let Some(url) = proxy_url.filter(|url| !url.is_empty()) {
            return Proxy::parse(url, "proxy-url of the kubeconfig").map(Self::Proxy);
        }
        let names: [&'static str; 2] =
            if origin.tls { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] };
        let found = names.into_iter().find_map(|name| Some((name, environment.text(name)?)));
        let Some((name, url)) = found else { return Ok(Self::Direct) };
        let exceptions =
            environment.text("NO_PROXY").or_else(|| environment.text("no_proxy")).unwrap_or_default();
        if NoProxy::parse(exceptions).covers(&origin.host, origin.port) {
            return Ok(Self::Direct);
        }
        Proxy::parse(url, name).map(Self::Proxy)
    }

    /// For messages and keys: `direct`, or the proxy.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Direct => "direct".to_owned(),
            Self::Proxy(proxy) => proxy.describe(),
        }
    }
}

impl Proxy {
    fn parse(text: &str, origin: &'static str) -> Result<Self, Problem> {
        const SCHEMES: [&str; 4] = ["http", "https", "socks5", "socks5h"];
        let invalid = |why: &str| Problem::new(Code::ProxyRefused, format!("{origin} names no proxy: {why}"));
        // Without a scheme it is an HTTP proxy, as everywhere; "host:3128" parses as the scheme "host".
        let url = match Url::parse(text) {
            Ok(url) if SCHEMES.contains(&url.scheme()) => url,
            Ok(url) if text.contains("://") => {
                return Err(invalid(&format!("scheme {} is none of {}", url.scheme(), SCHEMES.join(", "))));
            }
            Err(error) if text.contains("://") => return Err(invalid(&error.to_string())),
            _ => Url::parse(&format!("http://{text}")).map_err(|error| invalid(&error.to_string()))?,
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| invalid("no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let login = (!url.username().is_empty() || url.password().is_some())
            .then(|| (decode(url.username()), decode(url.password().unwrap_or_default())));
        let (kind, default_port) = match url.scheme() {
            "socks5" | "socks5h" => {
                if login.as_ref().is_some_and(|(user, password)| user.len() > 255 || password.len() > 255) {
                    return Err(invalid("user or password is longer than 255 bytes"));
                }
                (ProxyKind::Socks5 { login }, 1080)
            }
            scheme => {
                let authorization = login.map(|(user, password)| authorization(&user, &password)).transpose();
                let authorization = authorization.map_err(|_| invalid("user or password cannot be sent"))?;
                let tls = scheme == "https";
                (ProxyKind::Http { tls, authorization }, if tls { 443 } else { 80 })
            }
        };
        Ok(Self { kind, host, port: url.port().unwrap_or(default_port), origin })
    }

    /// Kind, host, port and where it was configured, without the login.
    pub(crate) fn describe(&self) -> String {
        let scheme = match self.kind {
            ProxyKind::Http { tls: false, .. } => "http",
            ProxyKind::Http { tls: true, .. } => "https",
            ProxyKind::Socks5 { .. } => "socks5",
        };
        let host = &self.host;
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        format!("proxy {scheme}://{bracketed}:{} ({})", self.port, self.origin)
    }
}

fn authorization(user: &str, password: &str) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let mut value = HeaderValue::try_from(format!("Basic {pair}"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(server: &str, proxy_url: Option<&str>, variables: &[(&str, &str)]) -> String {
        let origin = Origin::parse(server, true).unwrap();
        let environment = Environment::new(variables.iter().copied(), "/");
        Route::choose(&origin, proxy_url, &environment)
            .map_or_else(|problem| problem.message, |route| route.describe())
    }

    #[test]
    fn choice() {
        let both = [
            ("HTTPS_PROXY", "http://p:3128"),
            ("HTTP_PROXY", "http://q:3129"),
            ("NO_PROXY", "c.com,10.0.0.0/8"),
        ];
        assert_eq!(route("https://a.com", None, &[]), "direct");
        assert_eq!(route("https://a.com", None, &both), "proxy http://p:3128 (HTTPS_PROXY)");
        assert_eq!(route("http://a.com", None, &both), "proxy http://q:3129 (HTTP_PROXY)");
        assert_eq!(route("https://c.com:6443", None, &both), "direct");
        assert_eq!(route("https://10.1.1.1:6443", None, &both), "direct");
        assert_eq!(route("https://localhost:6443", None, &both), "direct");
        assert_eq!(route("https://127.0.0.1:6443", None, &both), "direct");
        assert_eq!(route("https://a.com", None, &[("https_proxy", "p")]), "proxy http://p:80 (https_proxy)");
        assert_eq!(
            route("https://a.com", None, &[("HTTPS_PROXY", ""), ("https_proxy", "p:1")]),
            "proxy http://p:1 (https_proxy)"
        );
        assert_eq!(
            route(
                "https://a.com",
                None,
                &[("HTTPS_PROXY", "http://p"), ("NO_PROXY", ""), ("no_proxy", "a.com")]
            ),
            "direct"
        );
    }

    #[test]
    fn the_kubeconfig_wins_and_knows_no_exceptions() {
        let proxy = Some("socks5://s:1080");
        let variables = [("HTTPS_PROXY", "http://p:3128"), ("NO_PROXY", "*")];
        assert_eq!(
            route("https://a.com", proxy, &variables),
            "proxy socks5://s:1080 (proxy-url of the kubeconfig)"
        );
        assert_eq!(
            route("https://127.0.0.1", proxy, &variables),
            "proxy socks5://s:1080 (proxy-url of the kubeconfig)"
        );
    }

    #[test]
    fn schemes_ports_and_logins() {
        let parse = |text| Proxy::parse(text, "HTTPS_PROXY");
        assert_eq!(parse("https://p").unwrap().describe(), "proxy https://p:443 (HTTPS_PROXY)");
        assert_eq!(parse("socks5h://[::1]").unwrap().describe(), "proxy socks5://[::1]:1080 (HTTPS_PROXY)");
        for url in ["ftp://user:geheim@p", "http://user:gehe/im@p", "http://", "://"] {
            let problem = parse(url).err().unwrap();
            assert_eq!(problem.code, Code::ProxyRefused);
            assert!(!problem.message.contains("gehe"), "{problem}");
        }
        let ProxyKind::Http { authorization: Some(value), .. } =
            parse("http://me:p%40ss%3Aword@p").unwrap().kind
        else {
            panic!("an HTTP proxy with a login");
        };
        assert_eq!(value, "Basic bWU6cEBzczp3b3Jk"); // me:p@ss:word
        let ProxyKind::Socks5 { login } = parse("socks5://me:p%40ss@p").unwrap().kind else {
            panic!("a SOCKS proxy")
        };
        assert_eq!(login, Some(("me".to_owned(), "p@ss".to_owned())));
    }
}
