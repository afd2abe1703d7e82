//! TCP by way of the relay.

use kftray_portforward::ports::{Condition, Delivery, HalfClose};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_both_ways_and_a_half_close_is_one() {
    let mut rig = Rig::new().await;
    let (echo, count) = (rig.echo().await, rig.count().await);

    let mut channel = rig.dial(HOST, echo, b"first ").await.unwrap();
    assert_eq!(channel.half_close(), HalfClose::Passed);
    send(&mut *channel, b"second").await.unwrap();
    assert_eq!(take(&mut *channel, 12).await.unwrap(), b"first second");
    channel.finish();
    assert!(rest(&mut *channel).await.unwrap().is_empty());

    let mut channel = rig.dial(HOST, count, b"12345").await.unwrap();
    channel.finish();
    assert_eq!(rest(&mut *channel).await.unwrap(), b"5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_each_way_arrive_as_they_were() {
    const TOTAL: usize = 64 << 20;
    const PIECE: usize = 60_000;
    let mut rig = Rig::new().await;
    let echo = rig.echo().await;
    let mut channel = rig.dial(HOST, echo, b"").await.unwrap();
    let (mut sent, mut received, mut finished) = (0, 0, false);
    let moved = std::future::poll_fn(|cx| {
        // One task moves both directions, as the engine does.
        while sent < TOTAL && channel.poll_send_ready(cx).is_ready() {
            let length = PIECE.min(TOTAL - sent);
            channel.send(Bytes::from(pattern(sent, length)));
            sent += length;
        }
        if sent == TOTAL && !std::mem::replace(&mut finished, true) {
            channel.finish();
        }
        loop {
            match channel.poll_recv(cx) {
                std::task::Poll::Ready(Ok(Some(bytes))) => {
                    assert!(bytes == pattern(received, bytes.len()), "wrong bytes after {received}");
                    received += bytes.len();
                }
                std::task::Poll::Ready(Ok(None)) => return std::task::Poll::Ready(()),
                std::task::Poll::Ready(Err(error)) => panic!("{error} after {received}"),
                std::task::Poll::Pending => return std::task::Poll::Pending,
            }
        }
    });
    timeout(4 * PATIENCE, moved).await.expect("moved");
    assert_eq!((sent, received), (TOTAL, TOTAL));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_up_nobody_else() {
    let mut rig = Rig::new().await;
    let echo = rig.echo().await;
    let flood =
        rig.serve(|mut stream| async move { while stream.write_all(&[7; 65536]).await.is_ok() {} }).await;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut channel = rig.dial(HOST, flood, b"").await.unwrap();
        take(&mut *channel, 1).await.unwrap();
        stalled.push(channel);
    }
    for _ in 0..20 {
        let mut channel = rig.dial(HOST, echo, b"ping").await.unwrap();
        assert_eq!(take(&mut *channel, 4).await.unwrap(), b"ping");
    }
    // And it goes on where it was.
    for channel in &mut stalled {
        take(&mut **channel, 1 << 20).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_come_in_words_and_deliver_nothing() {
    let rig = Rig::with(&[("KFTRAY_ALLOW", "127.0.0.1,*.invalid")]).await;
    let refused = closed_port().await;
    for (host, port, code) in [
        (HOST, refused, Code::RemoteRefused),
        ("192.0.2.1", 80, Code::RelayDenied),
        ("no-such-name.invalid", 80, Code::HostNotFound),
    ] {
        let mut channel = rig.dial(host, port, b"request").await.unwrap();
        let error = recv(&mut *channel).await.unwrap_err();
        assert_eq!(error.problem.code, code, "{error}");
        assert_eq!(error.delivery, Delivery::Nothing, "{error}");
        assert!(error.problem.message.contains(&format!("{host}:{port}")), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_no_end_even_after_a_half_close() {
    let mut rig = Rig::new().await;
    let reset = rig
        .serve(|mut stream| async move {
            let mut buffer = [0; 5];
            stream.read_exact(&mut buffer).await.ok();
            stream.write_all(b"half").await.ok();
            tokio::time::sleep(Duration::from_millis(100)).await;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        })
        .await;
    for half_closed in [false, true] {
        let mut channel = rig.dial(HOST, reset, b"hello").await.unwrap();
        if half_closed {
            channel.finish();
        }
        assert_eq!(take(&mut *channel, 4).await.unwrap(), b"half");
        let error = recv(&mut *channel).await.unwrap_err();
        assert_eq!(error.problem.code, Code::ConnectionLost, "{error}");
    }
}

/// A client that goes away in the middle of an upload: the server must not take what came for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_channel_resets_and_a_closed_one_delivers() {
    let mut rig = Rig::new().await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let upload = rig
        .serve(move |mut stream| {
            let tell = tell.clone();
            async move {
                let mut bytes = Vec::new();
                let end = stream.read_to_end(&mut bytes).await;
                tell.send((bytes.len(), end.is_ok())).ok();
                // More than any window: who has closed does not read it.
                let mut more = 0;
                while more < 256 && stream.write_all(&[1; 65536]).await.is_ok() {
                    more += 1;
                }
            }
        })
        .await;

    let mut channel = rig.dial(HOST, upload, b"part").await.unwrap();
    send(&mut *channel, b" of it").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(channel);
    let (_, whole) = timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    assert!(!whole, "a reset was taken for the end");

    let mut channel = rig.dial(HOST, upload, b"").await.unwrap();
    for _ in 0..64 {
        send(&mut *channel, &[5; 65536]).await.unwrap();
    }
    channel.finish();
    assert!(channel.close());
    drop(channel);
    assert_eq!(timeout(PATIENCE, told.recv()).await.unwrap().unwrap(), (64 * 65536, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_relay_ends_its_connections_and_the_next_is_dialled_anew() {
    let mut rig = Rig::new().await;
    let echo = rig.echo().await;
    let endpoint = rig.endpoint(Protocol::Tcp, echo).await;
    let warm = timeout(PATIENCE, rig.tunnels.warm(&endpoint)).await.unwrap().unwrap();
    assert_eq!(warm.transport, "relay");
    let mut channel = rig.dial(HOST, echo, b"x").await.unwrap();
    take(&mut *channel, 1).await.unwrap();

    rig.restart_relay().await;
    let error = recv(&mut *channel).await.unwrap_err();
    assert_eq!((error.problem.code, error.delivery), (Code::ConnectionLost, Delivery::Unknown), "{error}");
    let lost = timeout(PATIENCE, warm.lost).await.unwrap();
    assert_eq!(lost.code, Code::ConnectionLost, "{lost}");

    let mut channel = rig.dial(HOST, echo, b"again").await.unwrap();
    assert_eq!(take(&mut *channel, 5).await.unwrap(), b"again");
}

/// A NAT that has forgotten the connection: nothing is delivered into the void, so the client never notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_carrier_is_left_before_anything_is_lost() {
    let mut rig = Rig::new().await;
    let echo = rig.echo().await;
    let mut channel = rig.dial(HOST, echo, b"before").await.unwrap();
    take(&mut *channel, 6).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    rig.fake.faults().freeze_carriers();
    let mut channel = rig.dial(HOST, echo, b"after").await.unwrap();
    assert_eq!(take(&mut *channel, 5).await.unwrap(), b"after");
    assert!(rig.carriers.load(Ordering::SeqCst) >= 2, "a carrier that was frozen");

    // And one that is only quiet is used on.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let before = rig.carriers.load(Ordering::SeqCst);
    let mut channel = rig.dial(HOST, echo, b"again").await.unwrap();
    assert_eq!(take(&mut *channel, 5).await.unwrap(), b"again");
    assert_eq!(rig.carriers.load(Ordering::SeqCst), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_share_two_carriers() {
    let mut rig = Rig::new().await;
    let echo = rig.echo().await;
    let mut open = Vec::new();
    for number in 0..300_u32 {
        let mut channel = rig.dial(HOST, echo, &number.to_be_bytes()).await.unwrap();
        assert_eq!(take(&mut *channel, 4).await.unwrap(), number.to_be_bytes());
        open.push(channel);
    }
    assert_eq!(rig.carriers.load(Ordering::SeqCst), 2, "port-forwards for 300 connections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_is_told_and_doubted() {
    let mut rig = Rig::new().await;
    rig.token = Token::new([8; 32]);
    rig.relay_up().await;
    let error = rig.dial(HOST, 80, b"").await.map(drop).unwrap_err();
    assert_eq!((error.problem.code, error.delivery), (Code::RelayRefused, Delivery::Nothing), "{error}");
    assert_eq!(rig.relays.doubts.borrow().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_on_its_way_is_told() {
    let rig = Rig::new().await;
    let up = rig.relays.state.borrow().clone();
    let problem = Problem::new(Code::RelayStarting, "waiting for the relay: pulling image");
    rig.relays.state.send_replace(RelayState::Starting(problem.clone()));
    let mut following = rig.routes.follow(&rig.wanted(Protocol::Tcp, 80));
    let told = timeout(
        PATIENCE,
        following.wait_for(|known| match known {
            Resolution::Endpoints { endpoints, why_none } => {
                endpoints.is_empty() && *why_none == Some(problem.clone())
            }
            Resolution::Pending | Resolution::Failed(_) => false,
        }),
    );
    told.await.unwrap().unwrap();
    rig.relays.state.send_replace(up);
    let endpoint = ready(&mut following).await;
    assert_eq!(endpoint.route, Route::Relay { host: HOST.into() });
    assert_eq!(endpoint.condition, Condition::Ready);
}

/// `via: relay` and `via: auto` for a pod: its address, as the cluster tells it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_reached_by_their_addresses() {
    let rig = Rig::new().await;
    let up = rig.relays.state.borrow().clone();
    let wanted = |via| Wanted {
        target: target(&rig.fake, TargetObject::Pod("relay".to_owned())),
        port: port(TUNNEL),
        protocol: Protocol::Tcp,
        via,
    };
    let mut by_relay = rig.routes.follow(&wanted(Via::Relay));
    let Route::Relay { host } = ready(&mut by_relay).await.route else { panic!("direct") };
    assert!(host.starts_with("10.244."), "{host}");

    rig.relays.state.send_replace(RelayState::Absent);
    let mut auto = rig.routes.follow(&wanted(Via::Auto));
    assert_eq!(ready(&mut auto).await.route, Route::Direct);
    rig.relays.state.send_replace(up);
    let by_relay = auto.wait_for(|known| match known {
        Resolution::Endpoints { endpoints, .. } => endpoints.iter().any(|found| found.route != Route::Direct),
        Resolution::Pending | Resolution::Failed(_) => false,
    });
    timeout(PATIENCE, by_relay).await.unwrap().unwrap();
    rig.relays.state.send_replace(RelayState::Absent);
    let direct = auto.wait_for(|known| match known {
        Resolution::Endpoints { endpoints, .. } => endpoints.iter().any(|found| found.route == Route::Direct),
        Resolution::Pending | Resolution::Failed(_) => false,
    });
    timeout(PATIENCE, direct).await.unwrap().unwrap();
    rig.pool.network_changed();
}
