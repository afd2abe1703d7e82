//! The one-target relay that other clients create: environment and wire as published for `kftray-server` images.
//!
//! | variable | meaning |
//! |---|---|
//! | `PROXY_TYPE` | `tcp` or `udp` |
//! | `REMOTE_ADDRESS` | name, address, or URL of the target |
//! | `REMOTE_PORT` | its port |
//! | `LOCAL_PORT` | port to listen on, at all addresses of the pod |
//!
//! TCP: bytes as they are, one connection to the target for each. UDP: one TCP connection per flow; each datagram is a
//! 32-bit big-endian length and the payload, in both directions; length 0 means "no answer within 5 s" to clients that
//! wait for one answer per datagram, and nothing to others. There is no token: whoever reaches the port uses it, as that
//! contract has it. The target is fixed, so there is nothing to allow or deny.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kftray_relay_proto::record::MAX_PAYLOAD;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::relay::listen_everywhere;
use crate::resolve::Names;

/// For one attempt to connect to the target.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Clients that ask and wait are told after this that no answer came.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// After SIGTERM; the pod's grace is 10 s in that contract.
const DRAIN: Duration = Duration::from_secs(5);

/// Rest after an accept that failed for want of files or memory.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What the environment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    /// UDP, else TCP.
    pub udp: bool,
    /// The target's host.
    pub host: String,
    /// The target's port.
    pub port: u16,
    /// The port to listen on; 0 = any (tests).
    pub local_port: u16,
}

impl Contract {
    /// Reads the contract's variables; `None` if none of it is there.
    ///
    /// # Errors
    /// When a part of it is there and the rest is missing or cannot be used.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Option<Self>> {
        let Some(kind) = variable("PROXY_TYPE") else { return Ok(None) };
        let needed =
            |name: &str| variable(name).with_context(|| format!("PROXY_TYPE is set, but {name} is not"));
        let port = |name: &str| {
            let text = needed(name)?;
            text.trim().parse::<u16>().with_context(|| format!("{name}={text:?} is no port"))
        };
        let udp = match kind.trim().to_ascii_lowercase().as_str() {
            "tcp" => false,
            "udp" => true,
            "reverse_http" => bail!(
                "PROXY_TYPE=reverse_http is the reverse tunnel of another client, which this image does not serve; use kftray's own client for exposing"
            ),
            _ => bail!("PROXY_TYPE={kind:?} is neither tcp nor udp"),
        };
        let (host, url_port) = host_of(&needed("REMOTE_ADDRESS")?)?;
        let remote_port = port("REMOTE_PORT").or_else(|error| url_port.ok_or(error))?;
        Ok(Some(Self { udp, host, port: remote_port, local_port: port("LOCAL_PORT")? }))
    }
}

/// A name or address, or the host (and port, if any) of a URL.
fn host_of(text: &str) -> anyhow::Result<(String, Option<u16>)> {
    let text = text.trim();
    if text.contains("://") {
        let url = url::Url::parse(text).with_context(|| format!("REMOTE_ADDRESS={text:?} is no URL"))?;
        let host = url.host_str().with_context(|| format!("REMOTE_ADDRESS={text:?} names no host"))?;
        return Ok((unbracketed(host).to_owned(), url.port()));
    }
    if text.is_empty() {
        bail!("REMOTE_ADDRESS is empty");
    }
    Ok((unbracketed(text.trim_end_matches('/')).to_owned(), None))
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// A one-target relay with its port bound.
pub struct OneTarget {
    contract: Arc<Contract>,
    names: Arc<Names>,
    listener: TcpListener,
}

impl OneTarget {
    /// Binds the port.
    ///
    /// # Errors
    /// When it cannot be bound: in use, or below 1,024 where the node does not let user 65532 have it.
    pub fn bind(contract: Contract, names: Names) -> anyhow::Result<Self> {
        let listener = listen_everywhere(contract.local_port)
            .with_context(|| format!("cannot listen on port {} (LOCAL_PORT)", contract.local_port))?;
        Ok(Self { contract: Arc::new(contract), names: Arc::new(names), listener })
    }

    /// The port that was bound.
    ///
    /// # Errors
    /// As the system's `getsockname`.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Serves until `stop` is done; then gives what is open a few seconds.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { contract, names, listener } = self;
        info!(host = contract.host, port = contract.port, udp = contract.udp, "relaying to one target");
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((socket, peer)) => {
                        let (contract, names) = (Arc::clone(&contract), Arc::clone(&names));
                        connections.spawn(async move {
                            if let Err(error) = connection(&contract, &names, socket).await {
                                debug!(%peer, "a connection ended: {error:#}");
                            }
                        });
                    }
                    Err(error) => {
                        warn!(%error, "cannot accept");
                        sleep(ACCEPT_REST).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = &mut stop => break,
            }
        }
        drop(listener);
        timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await.ok();
    }
}

async fn connection(contract: &Contract, names: &Names, mut socket: TcpStream) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    // Asked anew for each connection: a target that moves is followed.
    let found = names.look_up(&contract.host, None).await?;
    let mut last_error = None;
    for address in found.addresses {
        let address = (address, contract.port);
        let connected = if contract.udp {
            udp_socket(address).await.map(Target::Udp)
        } else {
            match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(connected) => connected.map(Target::Tcp),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        };
        match connected {
            Ok(Target::Tcp(mut target)) => {
                target.set_nodelay(true)?;
                if let Err(error) = copy_bidirectional(&mut socket, &mut target).await {
                    // Neither must take half for the whole.
                    for half in [&socket, &target] {
                        SockRef::from(half).set_linger(Some(Duration::ZERO)).ok();
                    }
                    return Err(error.into());
                }
                return Ok(());
            }
            Ok(Target::Udp(target)) => return Ok(flow(socket, target).await?),
            Err(error) => last_error = Some(error),
        }
    }
    Err(last_error.map_or_else(|| anyhow::anyhow!("{} has no address", contract.host), Into::into))
}

enum Target {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

async fn udp_socket(address: (std::net::IpAddr, u16)) -> io::Result<UdpSocket> {
    let any: std::net::IpAddr = if address.0.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// One flow: datagrams both ways, each direction by itself.
async fn flow(socket: TcpStream, target: UdpSocket) -> io::Result<()> {
    let (reader, writer) = socket.into_split();
    let asked = watch::Sender::new(None);
    tokio::select! {
        result = to_target(reader, &target, &asked) => result,
        result = to_client(writer, &target, asked.subscribe()) => result,
    }
}

async fn to_target(
    mut reader: OwnedReadHalf,
    target: &UdpSocket,
    asked: &watch::Sender<Option<Instant>>,
) -> io::Result<()> {
    let mut payload = Vec::new();
    loop {
        let length = match reader.read_u32().await {
            Ok(length) => length as usize,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        if length > MAX_PAYLOAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a datagram of more than 65,507 bytes"));
        }
        if length == 0 {
            // A keepalive of the client.
            continue;
        }
        payload.resize(length, 0);
        reader.read_exact(&mut payload).await?;
        // An ICMP error of an earlier datagram, or no buffer: datagrams may be lost.
        target.send(&payload).await.ok();
        asked.send_replace(Some(Instant::now()));
    }
}

async fn to_client(
    mut writer: OwnedWriteHalf,
    target: &UdpSocket,
    mut asked: watch::Receiver<Option<Instant>>,
) -> io::Result<()> {
    let mut frame = vec![0; 4 + MAX_PAYLOAD];
    // When the client is to be told that no answer came to its last datagram.
    let mut due = None;
    loop {
        let late = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let Some((head, payload)) = frame.split_at_mut_checked(4) else { return Ok(()) };
        tokio::select! {
            received = target.recv(payload) => {
                // An ICMP error: the client's time-out tells, as for any lost datagram.
                let Ok(length) = received else { continue };
                head.copy_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes());
                writer.write_all(frame.get(..4 + length).unwrap_or_default()).await?;
                due = None;
            }
            () = late => {
                writer.write_all(&[0; 4]).await?;
                due = None;
            }
            changed = asked.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                due = asked.borrow_and_update().map(|since| since + ANSWER_TIMEOUT);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> anyhow::Result<Option<Contract>> {
        Contract::read(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_contract_is_read() {
        let base = [("REMOTE_PORT", "53"), ("LOCAL_PORT", "5353")];
        for (address, host) in [
            ("kube-dns.kube-system", "kube-dns.kube-system"),
            ("10.0.0.1", "10.0.0.1"),
            ("https://example.com/x", "example.com"),
            ("http://[2001:db8::1]/", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            let variables = [&base[..], &[("PROXY_TYPE", "UDP"), ("REMOTE_ADDRESS", address)]].concat();
            let expected = Contract { udp: true, host: host.into(), port: 53, local_port: 5353 };
            assert_eq!(read(&variables).unwrap(), Some(expected), "{address}");
        }
        assert_eq!(read(&base).unwrap(), None);
        assert!(read(&[("PROXY_TYPE", "tcp")]).is_err());
        let reverse = [&base[..], &[("PROXY_TYPE", "reverse_http"), ("REMOTE_ADDRESS", "x")]].concat();
        assert!(read(&reverse).unwrap_err().to_string().contains("reverse"));
    }
}
