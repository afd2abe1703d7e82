//! The API server's address, taken apart.

use kftray_commons::{Code, Problem};
use url::Url;

/// Scheme, host, port and path prefix of a server URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// `https`.
    pub(crate) tls: bool,
    /// Name or address, without brackets.
    pub(crate) host: String,
    /// The port, 1-65535.
    pub(crate) port: u16,
    /// What goes before every path (a gateway's `/k8s/clusters/x`), without a trailing slash.
    pub(crate) prefix: String,
}

impl Origin {
    /// Parses `server` of a kubeconfig. Without a scheme it is `https` if `tls_configured` (CA, client certificate or
    /// `insecure-skip-tls-verify`), else `http`, as in client-go.
    ///
    /// # Errors
    /// [`Code::KubeconfigInvalid`].
    pub(crate) fn parse(server: &str, tls_configured: bool) -> Result<Self, Problem> {
        let invalid =
            |why: &str| Problem::new(Code::KubeconfigInvalid, format!("server {server:?} is no URL: {why}"));
        let text = if server.contains("://") {
            server.to_owned()
        } else {
            format!("{}://{server}", if tls_configured { "https" } else { "http" })
        };
        let url = Url::parse(&text).map_err(|error| invalid(&error.to_string()))?;
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            scheme => return Err(invalid(&format!("scheme {scheme} is neither https nor http"))),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| invalid("no host"))?;
        Ok(Self {
            tls,
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port().unwrap_or(if tls { 443 } else { 80 }),
            prefix: url.path().trim_end_matches('/').to_owned(),
        })
    }

    /// `host:port`, with brackets where needed; the port is left out where it is the scheme's own.
    pub(crate) fn authority(&self) -> String {
        let default_port = if self.tls { 443 } else { 80 };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == default_port { host } else { format!("{host}:{}", self.port) }
    }

    /// `host:port`, always with the port.
    pub(crate) fn target(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The whole URL.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (server, tls_configured, url, target) in [
            ("https://k8s.example.com", false, "https://k8s.example.com", "k8s.example.com:443"),
            ("https://10.0.0.1:6443/", false, "https://10.0.0.1:6443", "10.0.0.1:6443"),
            (
                "http://[::1]:8080/k8s/clusters/c-1/",
                false,
                "http://[::1]:8080/k8s/clusters/c-1",
                "[::1]:8080",
            ),
            ("k8s.example.com:6443", true, "https://k8s.example.com:6443", "k8s.example.com:6443"),
            ("k8s.example.com", false, "http://k8s.example.com", "k8s.example.com:80"),
        ] {
            let origin = Origin::parse(server, tls_configured).unwrap();
            assert_eq!((origin.url().as_str(), origin.target().as_str()), (url, target));
        }
        for server in ["unix:///run/x", "https://", "https://a b", "https://a:99999"] {
            assert_eq!(Origin::parse(server, true).unwrap_err().code, Code::KubeconfigInvalid, "{server}");
        }
    }
}
