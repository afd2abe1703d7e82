//! Programs of this machine, reached from the cluster.

use kftray_commons::spec::{Expose, ExposeProtocol, Exposure};
use kftray_portforward::ports::{Inbound, Publication, PublicationState};

use super::super::publish;
use super::*;

fn offer(fake: &FakeCluster) -> Offer {
    let expose = Expose {
        local_host: "localhost".to_owned(),
        local_port: 3000.try_into().unwrap(),
        local_tls: false,
        access: kftray_commons::Access::default(),
        exposure: Exposure::Internal { protocol: ExposeProtocol::Tcp },
    };
    let target = target(fake, TargetObject::Host(String::new()));
    Offer { cluster: target.cluster, namespace: target.namespace, name: "mine".to_owned(), expose }
}

impl Rig {
    /// A relay that may listen on one port, and a publication on it.
    async fn exposing() -> (Self, u16, Box<dyn Publication>) {
        let port = closed_port().await;
        let rig = Self::with(&[("KFTRAY_EXPOSE_PORTS", &port.to_string())]).await;
        *rig.relays.expose_port.lock().unwrap() = port;
        let publication =
            publish(Arc::clone(&rig.relays) as Arc<dyn Relays>, &rig.tunnels, &offer(&rig.fake));
        (rig, port, publication)
    }
}

async fn up(publication: &dyn Publication) {
    let mut state = publication.state();
    let up = state.wait_for(|state| matches!(state, PublicationState::Up { .. }));
    timeout(PATIENCE, up).await.expect("up within 30 s").unwrap();
}

async fn accept(publication: &mut dyn Publication) -> Inbound {
    timeout(PATIENCE, std::future::poll_fn(|cx| publication.poll_accept(cx)))
        .await
        .expect("a caller within 30 s")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_arrive_and_are_answered() {
    let (rig, port, mut publication) = Rig::exposing().await;
    up(&*publication).await;
    let PublicationState::Up { urls, .. } = publication.state().borrow().clone() else { panic!("down") };
    assert_eq!(urls, ["http://mine"]);
    assert_eq!(*rig.relays.objects.borrow(), 1);

    let mut caller = TcpStream::connect((HOST, port)).await.unwrap();
    caller.write_all(b"question").await.unwrap();
    let Inbound { mut channel, peer } = accept(&mut *publication).await;
    assert_eq!(peer, caller.local_addr().unwrap().to_string());
    assert_eq!(take(&mut *channel, 8).await.unwrap(), b"question");
    // The caller's half-close arrives, and the answer after it.
    caller.shutdown().await.unwrap();
    assert!(rest(&mut *channel).await.unwrap().is_empty());
    send(&mut *channel, b"answer").await.unwrap();
    channel.finish();
    drop(channel);
    let mut answer = Vec::new();
    timeout(PATIENCE, caller.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"answer");

    drop(publication);
    let mut objects = rig.relays.objects.subscribe();
    timeout(PATIENCE, objects.wait_for(|count| *count == 0)).await.expect("withdrawn").unwrap();
}

/// A certificate that is not issued, say: told, while whoever gets in is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_callers_away_is_told_and_those_who_come_are_served() {
    let (rig, port, mut publication) = Rig::exposing().await;
    up(&*publication).await;
    let problem = Problem::new(Code::CertificatePending, "not issued yet");
    rig.relays.outside.send_replace(Some(problem.clone()));
    let mut state = publication.state();
    let pending = PublicationState::Pending(Some(problem));
    timeout(PATIENCE, state.wait_for(|state| *state == pending)).await.expect("told").unwrap();
    let mut caller = TcpStream::connect((HOST, port)).await.unwrap();
    caller.write_all(b"early").await.unwrap();
    let mut inbound = accept(&mut *publication).await;
    assert_eq!(take(&mut *inbound.channel, 5).await.unwrap(), b"early");
    rig.relays.outside.send_replace(None);
    up(&*publication).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_callers_at_once() {
    let (_rig, port, mut publication) = Rig::exposing().await;
    up(&*publication).await;
    let mut callers = JoinSet::new();
    for number in 0..200_u32 {
        callers.spawn(async move {
            let mut caller = TcpStream::connect((HOST, port)).await.unwrap();
            caller.write_all(&number.to_be_bytes()).await.unwrap();
            let mut echo = [0; 4];
            caller.read_exact(&mut echo).await.unwrap();
            assert_eq!(echo, number.to_be_bytes());
        });
    }
    let mut served = JoinSet::new();
    for _ in 0..200 {
        let Inbound { mut channel, .. } = accept(&mut *publication).await;
        served.spawn(async move {
            let bytes = take(&mut *channel, 4).await.unwrap();
            send(&mut *channel, &bytes).await.unwrap();
            rest(&mut *channel).await.unwrap();
        });
    }
    while let Some(caller) = timeout(PATIENCE, callers.join_next()).await.unwrap() {
        caller.unwrap();
    }
}

/// A caller that the program does not serve is told by a reset, not by an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_caller_is_reset() {
    let (_rig, port, mut publication) = Rig::exposing().await;
    up(&*publication).await;
    let mut caller = TcpStream::connect((HOST, port)).await.unwrap();
    caller.write_all(b"x").await.unwrap();
    drop(accept(&mut *publication).await);
    let mut rest = Vec::new();
    assert!(timeout(PATIENCE, caller.read_to_end(&mut rest)).await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_relay_is_found_again() {
    let (mut rig, port, mut publication) = Rig::exposing().await;
    up(&*publication).await;
    let mut state = publication.state();
    // The port is only free again when the relay that was is gone.
    rig.relay = JoinSet::new();
    let down = state.wait_for(|state| matches!(state, PublicationState::Pending(Some(_))));
    timeout(PATIENCE, down).await.unwrap().unwrap();
    let (relay, address) = start_relay(&rig.token, &[("KFTRAY_EXPOSE_PORTS", &port.to_string())]).await;
    *rig.tunnel_at.lock().unwrap() = address;
    rig.relay = relay;
    up(&*publication).await;
    let mut caller = TcpStream::connect((HOST, port)).await.unwrap();
    caller.write_all(b"again").await.unwrap();
    let mut inbound = accept(&mut *publication).await;
    assert_eq!(take(&mut *inbound.channel, 5).await.unwrap(), b"again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_the_relay_may_not_use_is_final_until_somebody_asks_again() {
    let (rig, port, mut publication) = Rig::exposing().await;
    up(&*publication).await;
    let other = rig.relays.expose_port.lock().unwrap().checked_add(1).unwrap();
    *rig.relays.expose_port.lock().unwrap() = other;
    let mut second = publish(Arc::clone(&rig.relays) as Arc<dyn Relays>, &rig.tunnels, &offer(&rig.fake));
    let mut state = second.state();
    let failed = state.wait_for(|state| matches!(state, PublicationState::Failed(_)));
    timeout(PATIENCE, failed).await.unwrap().unwrap();
    // The same port: the same user takes it over, and the first one is told.
    *rig.relays.expose_port.lock().unwrap() = port;
    second.retry();
    up(&*second).await;
    let mut state = publication.state();
    let lost = state.wait_for(|state| matches!(state, PublicationState::Failed(_)));
    let problem = timeout(PATIENCE, lost).await.unwrap().unwrap().clone();
    let PublicationState::Failed(problem) = problem else { panic!("{problem:?}") };
    assert_eq!(problem.code, Code::NameTaken, "{problem}");
    publication.retry();
    up(&*publication).await;
}
