//! Through a proxy to a server: HTTP `CONNECT` (RFC 9110, section 9.3.6) and SOCKS5 (RFC 1928, RFC 1929).

use std::io;
use std::net::IpAddr;

use kftray_commons::{Code, Problem};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::carrier::{CarrierIo, Prefixed};
use super::head::Head;
use super::origin::Origin;
use super::route::{Proxy, ProxyKind};

/// Asks the proxy at the other end of `io` for a connection to `origin`.
///
/// # Errors
/// [`Code::ProxyRefused`] where the proxy does not want to, [`Code::ClusterUnreachable`] where it cannot.
pub(super) async fn open(
    io: Box<dyn CarrierIo>,
    proxy: &Proxy,
    origin: &Origin,
) -> Result<Box<dyn CarrierIo>, Problem> {
    let result = match &proxy.kind {
        ProxyKind::Http { authorization, .. } => http(io, authorization.as_ref(), proxy, origin).await,
        ProxyKind::Socks5 { login } => socks(io, login.as_ref(), proxy, origin).await,
    };
    result.map_err(|failure| match failure {
        Failure::Io(error) => Problem::new(
            Code::ClusterUnreachable,
            format!("{} broke off the way to {}: {error}", proxy.describe(), origin.target()),
        ),
        Failure::Told(problem) => problem,
    })
}

enum Failure {
    Io(io::Error),
    Told(Problem),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn refused(proxy: &Proxy, text: &str) -> Failure {
    Failure::Told(Problem::new(Code::ProxyRefused, format!("{} {text}", proxy.describe())))
}

fn unreachable(proxy: &Proxy, origin: &Origin, why: &str) -> Failure {
    Failure::Told(Problem::new(
        Code::ClusterUnreachable,
        format!("{} cannot reach {}: {why}", proxy.describe(), origin.target()),
    ))
}

async fn http(
    mut io: Box<dyn CarrierIo>,
    authorization: Option<&http::HeaderValue>,
    proxy: &Proxy,
    origin: &Origin,
) -> Result<Box<dyn CarrierIo>, Failure> {
    let target = origin.target();
    let agent = super::USER_AGENT;
    let mut request =
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: {agent}\r\n").into_bytes();
    if let Some(value) = authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    io.write_all(&request).await?;
    io.flush().await?;
    let head = Head::read(&mut io).await?;
    let answer = format!("{} {}", head.status, head.reason);
    match head.status {
        200..=299 => {
            let rest = head.rest.freeze();
            Ok(if rest.is_empty() { io } else { Box::new(Prefixed::new(rest, io)) })
        }
        407 if authorization.is_none() => Err(refused(proxy, "asks for a user name and password (407)")),
        407 => Err(refused(proxy, "does not accept the user name and password (407)")),
        // tinyproxy says 500 for a refused connection, squid 503, others 502 or 504.
        500..=599 => Err(unreachable(proxy, origin, &answer)),
        _ => Err(refused(proxy, &format!("refuses a connection to {target} ({answer})"))),
    }
}

const VERSION: u8 = 5;
const NO_LOGIN: u8 = 0;
const PASSWORD: u8 = 2;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

async fn socks(
    mut io: Box<dyn CarrierIo>,
    login: Option<&(String, String)>,
    proxy: &Proxy,
    origin: &Origin,
) -> Result<Box<dyn CarrierIo>, Failure> {
    let methods: &[u8] =
        if login.is_some() { &[VERSION, 2, NO_LOGIN, PASSWORD] } else { &[VERSION, 1, NO_LOGIN] };
    io.write_all(methods).await?;
    io.flush().await?;
    let [version, method] = take::<2>(&mut io).await?;
    if version != VERSION {
        return Err(refused(proxy, "does not speak SOCKS5"));
    }
    match (method, login) {
        (NO_LOGIN, _) => {}
        (PASSWORD, Some((user, password))) => {
            let mut message = vec![1, length(user)];
            message.extend_from_slice(user.as_bytes());
            message.push(length(password));
            message.extend_from_slice(password.as_bytes());
            io.write_all(&message).await?;
            io.flush().await?;
            let [_, verdict] = take::<2>(&mut io).await?;
            if verdict != 0 {
                return Err(refused(proxy, "does not accept the user name and password"));
            }
        }
        (_, None) => return Err(refused(proxy, "asks for a login and none is configured")),
        (_, Some(_)) => return Err(refused(proxy, "accepts neither no login nor user name and password")),
    }
    io.write_all(&request(proxy, origin)?).await?;
    io.flush().await?;
    let [_, reply, _, kind] = take::<4>(&mut io).await?;
    if reply != 0 {
        return Err(failure(proxy, origin, reply));
    }
    // The address it connects from, of no interest, in one of three lengths.
    let address = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => usize::from(io.read_u8().await?),
        _ => return Err(refused(proxy, "gives an answer that is no SOCKS5")),
    };
    let mut skipped = vec![0; address + 2];
    io.read_exact(&mut skipped).await?;
    Ok(io)
}

async fn take<const N: usize>(io: &mut Box<dyn CarrierIo>) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    io.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// At most 255: checked where the proxy's URL is parsed.
fn length(text: &str) -> u8 {
    u8::try_from(text.len()).unwrap_or(u8::MAX)
}

fn request(proxy: &Proxy, origin: &Origin) -> Result<Vec<u8>, Failure> {
    let mut message = vec![VERSION, CONNECT, 0];
    match origin.host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => {
            message.push(IPV4);
            message.extend_from_slice(&address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            message.push(IPV6);
            message.extend_from_slice(&address.octets());
        }
        Err(_) => {
            let size = u8::try_from(origin.host.len());
            let size = size.map_err(|_| refused(proxy, "takes no host name of more than 255 bytes"))?;
            message.extend_from_slice(&[NAME, size]);
            message.extend_from_slice(origin.host.as_bytes());
        }
    }
    message.extend_from_slice(&origin.port.to_be_bytes());
    Ok(message)
}

/// RFC 1928, section 6.
fn failure(proxy: &Proxy, origin: &Origin, reply: u8) -> Failure {
    match reply {
        1 => unreachable(proxy, origin, "general failure"),
        2 => refused(proxy, &format!("does not allow connections to {}", origin.target())),
        3 => unreachable(proxy, origin, "network unreachable"),
        4 => unreachable(proxy, origin, "host unreachable"),
        5 => unreachable(proxy, origin, "connection refused"),
        6 => unreachable(proxy, origin, "time to live expired"),
        7 => refused(proxy, "does not know CONNECT"),
        8 => refused(proxy, "does not know this kind of address"),
        other => unreachable(proxy, origin, &format!("failure {other}")),
    }
}
