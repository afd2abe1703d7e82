//! Proxies in front of the API server: HTTP CONNECT (RFC 9110 section 9.3.6) and SOCKS5 (RFC 1928, passwords RFC 1929).

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::counters::Gauge;
use crate::sync::lock;

/// Longest request head; real proxies take 8 to 16 KiB.
const MAX_HEAD: usize = 16 * 1024;

/// What a proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HTTP CONNECT.
    Http,
    /// SOCKS5; names are resolved by the proxy.
    Socks5,
}

#[derive(Debug)]
struct Settings {
    kind: Kind,
    /// User and password.
    login: Option<(String, String)>,
    tunnels: Arc<Gauge>,
    refused: Arc<Gauge>,
    targets: Mutex<Vec<String>>,
}

/// A running proxy on loopback; ends when dropped, with all tunnels.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    settings: Arc<Settings>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts one that anybody may use.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(kind: Kind) -> io::Result<Self> {
        Self::run(kind, None).await
    }

    /// Starts one that wants a password.
    ///
    /// # Errors
    /// No free port.
    pub async fn with_login(kind: Kind, user: &str, password: &str) -> io::Result<Self> {
        Self::run(kind, Some((user.to_owned(), password.to_owned()))).await
    }

    async fn run(kind: Kind, login: Option<(String, String)>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let settings = Arc::new(Settings {
            kind,
            login,
            tunnels: Arc::default(),
            refused: Arc::default(),
            targets: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&settings)));
        Ok(Self { address, settings, _tasks: tasks })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL for `proxy-url`, with the login if there is one: `http://...` or `socks5://...`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = match self.settings.kind {
            Kind::Http => "http",
            Kind::Socks5 => "socks5",
        };
        match &self.settings.login {
            Some((user, password)) => format!("{scheme}://{user}:{password}@{}", self.address),
            None => format!("{scheme}://{}", self.address),
        }
    }

    /// Its URL without the login.
    #[must_use]
    pub fn url_without_login(&self) -> String {
        match self.settings.kind {
            Kind::Http => format!("http://{}", self.address),
            Kind::Socks5 => format!("socks5://{}", self.address),
        }
    }

    /// Tunnels now and altogether.
    #[must_use]
    pub fn tunnels(&self) -> &Gauge {
        &self.settings.tunnels
    }

    /// Clients sent away, for a wrong login or a target that cannot be reached.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.settings.refused.total()
    }

    /// The targets that clients named, in order.
    #[must_use]
    pub fn targets(&self) -> Vec<String> {
        lock(&self.settings.targets).clone()
    }
}

async fn accept(listener: TcpListener, settings: Arc<Settings>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                client.set_nodelay(true).ok();
                let settings = Arc::clone(&settings);
                clients.spawn(async move {
                    let result = match settings.kind {
                        Kind::Http => connect(client, &settings).await,
                        Kind::Socks5 => socks(client, &settings).await,
                    };
                    if let Err(error) = result {
                        tracing::debug!(%error, "proxy client ended");
                    }
                });
            }
            Some(_) = clients.join_next() => {}
        }
    }
}

async fn tunnel(mut client: TcpStream, mut server: TcpStream, settings: &Settings) -> io::Result<()> {
    let _entered = settings.tunnels.enter();
    server.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

async fn reach(target: &str, settings: &Settings) -> io::Result<TcpStream> {
    lock(&settings.targets).push(target.to_owned());
    TcpStream::connect(target).await
}

async fn connect(mut client: TcpStream, settings: &Settings) -> io::Result<()> {
    let head = read_head(&mut client).await?;
    let mut lines = head.lines();
    let mut request = lines.next().unwrap_or_default().split(' ');
    let (method, target) =
        (request.next().unwrap_or_default(), request.next().unwrap_or_default().to_owned());
    let given = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization"))
        .map(|(_, value)| value.trim().to_owned());
    let answer = if !http_login(settings, given.as_deref()) {
        "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"proxy\"\r\nContent-Length: 0\r\n\r\n"
    } else if method != "CONNECT" {
        "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n"
    } else {
        match reach(&target, settings).await {
            Ok(server) => {
                client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
                return tunnel(client, server, settings).await;
            }
            Err(_) => "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        }
    };
    drop(settings.refused.enter());
    client.write_all(answer.as_bytes()).await?;
    client.shutdown().await
}

fn http_login(settings: &Settings, given: Option<&str>) -> bool {
    let Some((user, password)) = &settings.login else { return true };
    let token = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    given.and_then(|given| given.strip_prefix("Basic ")) == Some(token.as_str())
}

/// The head of a request, byte by byte: what follows it belongs to the tunnel.
async fn read_head(client: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "request head too long"));
        }
        head.push(client.read_u8().await?);
    }
    String::from_utf8(head).map_err(io::Error::other)
}

async fn socks(mut client: TcpStream, settings: &Settings) -> io::Result<()> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "not SOCKS5");
    if client.read_u8().await? != 5 {
        return Err(invalid());
    }
    let methods = read_short(&mut client).await?;
    // 0 = no login, 2 = user and password, 255 = none acceptable.
    let wanted = if settings.login.is_some() { 2 } else { 0 };
    let method = if methods.contains(&wanted) { wanted } else { 255 };
    client.write_all(&[5, method]).await?;
    if method == 255 || (method == 2 && !socks_login(&mut client, settings).await?) {
        drop(settings.refused.enter());
        return client.shutdown().await;
    }
    let mut request = [0; 4];
    client.read_exact(&mut request).await?;
    let [5, 1, _, kind] = request else { return Err(invalid()) };
    let host = match kind {
        1 => {
            let mut bytes = [0; 4];
            client.read_exact(&mut bytes).await?;
            Ipv4Addr::from(bytes).to_string()
        }
        3 => String::from_utf8(read_short(&mut client).await?).map_err(io::Error::other)?,
        4 => {
            let mut bytes = [0; 16];
            client.read_exact(&mut bytes).await?;
            format!("[{}]", std::net::Ipv6Addr::from(bytes))
        }
        _ => return Err(invalid()),
    };
    let target = format!("{host}:{}", client.read_u16().await?);
    match reach(&target, settings).await {
        Ok(server) => {
            client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
            tunnel(client, server, settings).await
        }
        Err(_) => {
            drop(settings.refused.enter());
            // 5 = connection refused.
            client.write_all(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
            client.shutdown().await
        }
    }
}

async fn socks_login(client: &mut TcpStream, settings: &Settings) -> io::Result<bool> {
    let _version = client.read_u8().await?;
    let user = read_short(client).await?;
    let password = read_short(client).await?;
    let good = settings.login.as_ref().is_some_and(|(u, p)| u.as_bytes() == user && p.as_bytes() == password);
    client.write_all(&[1, u8::from(!good)]).await?;
    Ok(good)
}

/// A byte of length, then as many bytes.
async fn read_short(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = client.read_u8().await?;
    let mut bytes = vec![0; usize::from(len)];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}
