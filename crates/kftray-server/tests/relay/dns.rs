//! A small DNS server, and resolvers that ask it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use kftray_server::resolve::Names;
use tokio::net::UdpSocket;
use tokio_util::task::AbortOnDropHandle;

/// A resolver with nobody to ask.
pub(crate) fn no_names() -> Names {
    names(SocketAddr::from(([127, 0, 0, 1], 1)), &[])
}

fn names(server: SocketAddr, search: &[&str]) -> Names {
    let mut connection = ConnectionConfig::udp();
    connection.port = server.port();
    let server = NameServerConfig::new(server.ip(), true, vec![connection]);
    let search = search.iter().map(|domain| Name::from_ascii(domain).unwrap()).collect();
    let mut options = ResolverOpts::default();
    options.ndots = 5;
    options.attempts = 1;
    Names::new(ResolverConfig::from_parts(None, search, vec![server]), options).unwrap()
}

type Zone = Arc<Mutex<Vec<(String, Vec<IpAddr>)>>>;

/// The server. Answers are changed while it runs.
pub(crate) struct Dns {
    address: SocketAddr,
    zone: Zone,
    _task: AbortOnDropHandle<()>,
}

impl Dns {
    pub(crate) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Zone::default();
        let served = Arc::clone(&zone);
        let task = tokio::runtime::Handle::current().spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                let answer = answer(&served, &buffer[..length]);
                socket.send_to(&answer, peer).await.unwrap();
            }
        });
        Self { address, zone, _task: AbortOnDropHandle::new(task) }
    }

    /// From now on `name` (with a trailing dot) has these addresses.
    pub(crate) fn set(&self, name: &str, addresses: &[&str]) {
        let mut zone = self.zone.lock().unwrap();
        zone.retain(|(known, _)| known != name);
        zone.push((name.to_owned(), addresses.iter().map(|address| address.parse().unwrap()).collect()));
    }

    pub(crate) fn names(&self, search: &[&str]) -> Names {
        names(self.address, search)
    }
}

fn answer(zone: &Zone, question: &[u8]) -> Vec<u8> {
    let mut message = Message::from_vec(question).unwrap();
    let query = message.queries.first().unwrap().clone();
    let name = query.name().to_string().to_lowercase();
    let found = zone.lock().unwrap().iter().find(|(known, _)| *known == name).map(|(_, found)| found.clone());
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    match found {
        None => message.metadata.response_code = ResponseCode::NXDomain,
        Some(addresses) => {
            for address in addresses {
                let data = match address {
                    IpAddr::V4(v4) if query.query_type() == RecordType::A => RData::A(A(v4)),
                    IpAddr::V6(v6) if query.query_type() == RecordType::AAAA => RData::AAAA(AAAA(v6)),
                    IpAddr::V4(_) | IpAddr::V6(_) => continue,
                };
                message.add_answer(Record::from_rdata(query.name().clone(), 60, data));
            }
        }
    }
    message.to_vec().unwrap()
}
