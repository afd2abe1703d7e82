//! UDP by way of the relay.

use std::collections::BTreeSet;

use kftray_portforward::ports::DatagramChannel;
use tokio::net::UdpSocket;

use super::*;

impl Rig {
    async fn flow(&self, to: u16) -> Box<dyn DatagramChannel> {
        let endpoint = self.endpoint(Protocol::Udp, to).await;
        timeout(PATIENCE, self.tunnels.dial_udp(&endpoint, HOST)).await.unwrap().unwrap()
    }

    /// Sends every datagram back.
    async fn udp_echo(&mut self) -> u16 {
        let socket = UdpSocket::bind((HOST, 0)).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        self.tasks.spawn(async move {
            let mut buffer = vec![0; 65_535];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                socket.send_to(&buffer[..length], from).await.ok();
            }
        });
        port
    }
}

async fn receive(flow: &mut dyn DatagramChannel) -> Result<Option<Bytes>, ChannelError> {
    timeout(PATIENCE, std::future::poll_fn(|cx| flow.poll_recv(cx))).await.expect("a datagram within 30 s")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_of_every_size_stay_whole() {
    let mut rig = Rig::new().await;
    let echo = rig.udp_echo().await;
    let mut flow = rig.flow(echo).await;
    for length in [0, 1, 512, 1_472, 9_000, 16_383, 16_384, 65_507, 0, 3] {
        let datagram = Bytes::from(pattern(length, length));
        flow.send(datagram.clone());
        let back = receive(&mut *flow).await.unwrap().unwrap();
        assert!(back == datagram, "{length} came back as {}", back.len());
    }
    flow.send(Bytes::from(vec![0; 65_508]));
    assert_eq!(flow.dropped(), 1, "what is no datagram");
}

/// One carrier is enough for UDP, whatever keeps it warm; TCP brings its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_alone_opens_no_carrier_for_tcp() {
    let mut rig = Rig::new().await;
    let echo = rig.udp_echo().await;
    let endpoint = rig.endpoint(Protocol::Udp, echo).await;
    let _warm = timeout(PATIENCE, rig.tunnels.warm(&endpoint)).await.unwrap().unwrap();
    let mut flow = rig.flow(echo).await;
    flow.send(Bytes::from_static(b"hello"));
    assert_eq!(receive(&mut *flow).await.unwrap().unwrap(), &b"hello"[..]);
    assert_eq!(rig.carriers.load(Ordering::SeqCst), 1);
    let web = rig.echo().await;
    let mut channel = rig.dial(HOST, web, b"hello").await.unwrap();
    assert_eq!(take(&mut *channel, 5).await.unwrap(), b"hello");
    assert_eq!(rig.carriers.load(Ordering::SeqCst), 2);
}

/// Each flow has a socket of its own in the cluster: an answer finds its way back, and only that way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_do_not_mix_and_what_is_lost_is_counted() {
    const FLOWS: u32 = 50;
    const EACH: u32 = 200;
    let mut rig = Rig::new().await;
    let echo = rig.udp_echo().await;
    let mut all = JoinSet::new();
    for peer in 0..FLOWS {
        let mut flow = rig.flow(echo).await;
        all.spawn(async move {
            let mut seen = BTreeSet::new();
            for number in 0..EACH {
                let mut datagram = vec![0; 8 + usize::try_from(number * 7 % 1_400).unwrap()];
                datagram[..4].copy_from_slice(&peer.to_be_bytes());
                datagram[4..8].copy_from_slice(&number.to_be_bytes());
                flow.send(Bytes::from(datagram));
                let Ok(next) =
                    timeout(Duration::from_secs(2), std::future::poll_fn(|cx| flow.poll_recv(cx))).await
                else {
                    continue;
                };
                let back = next.unwrap().unwrap();
                assert_eq!(back[..4], peer.to_be_bytes(), "another peer's datagram");
                assert!(seen.insert(u32::from_be_bytes(back[4..8].try_into().unwrap())), "twice");
            }
            (u32::try_from(seen.len()).unwrap(), u32::try_from(flow.dropped()).unwrap())
        });
    }
    let (mut back, mut dropped) = (0, 0);
    while let Some(flow) = all.join_next().await {
        let (seen, lost) = flow.unwrap();
        back += seen;
        dropped += lost;
    }
    assert!(
        back + dropped >= FLOWS * EACH,
        "{back} came back and {dropped} were counted of {}",
        FLOWS * EACH
    );
    assert!(back > FLOWS * EACH * 9 / 10, "{back} of {}", FLOWS * EACH);
    assert_eq!(rig.carriers.load(Ordering::SeqCst), 1, "one carrier for UDP");
}

/// Syslog and statsd never answer; a game server speaks unasked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_way_traffic_and_push_need_no_answer() {
    let rig = Rig::new().await;
    let sink = UdpSocket::bind((HOST, 0)).await.unwrap();
    let mut flow = rig.flow(sink.local_addr().unwrap().port()).await;
    for number in 0..100_u8 {
        flow.send(Bytes::from(vec![number]));
    }
    let mut buffer = [0; 16];
    let mut from = None;
    for number in 0..100_u8 {
        let (length, peer) = timeout(PATIENCE, sink.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(buffer[..length], [number]);
        from = Some(peer);
    }
    for number in 0..100_u8 {
        sink.send_to(&[number], from.unwrap()).await.unwrap();
    }
    for number in 0..100_u8 {
        assert_eq!(receive(&mut *flow).await.unwrap().unwrap()[..], [number]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_told() {
    let rig = Rig::new().await;
    let closed = UdpSocket::bind((HOST, 0)).await.unwrap().local_addr().unwrap().port();
    let mut flow = rig.flow(closed).await;
    flow.send(Bytes::from_static(b"hello"));
    let error = receive(&mut *flow).await.unwrap_err();
    assert_eq!(error.problem.code, Code::RemoteRefused, "{error}");
}

/// A burst beyond what may wait: the newest arrive, and the rest is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_cut_and_counted() {
    const SENT: u64 = 2_000;
    let rig = Rig::new().await;
    let sink = UdpSocket::bind((HOST, 0)).await.unwrap();
    socket2::SockRef::from(&sink).set_recv_buffer_size(64 << 20).ok();
    let mut flow = rig.flow(sink.local_addr().unwrap().port()).await;
    for number in 0..SENT {
        let mut datagram = vec![0; 10_000];
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        flow.send(Bytes::from(datagram));
    }
    let mut buffer = [0; 10_000];
    let mut last = 0;
    while last != SENT - 1 {
        timeout(PATIENCE, sink.recv(&mut buffer)).await.expect("the newest arrives").unwrap();
        last = u64::from_be_bytes(buffer[..8].try_into().unwrap());
    }
    assert!(flow.dropped() > 0, "20 MB at once do not fit into 256 KiB");
}
