//! A host's beginning and end: what comes back, what is handed over, what is asked of the user.

mod support;

use std::time::Duration;

use kftray_client::{Client, Link, State};
use kftray_commons::ForwardId;
use kftray_commons::api::{AD_HOC_IDS, Action, ActionRequest, ForwardState, Selection, SettingsPatch};
use kftray_host::Host;
use kftray_testkit::{Context, FakeCluster, Kubeconfig, Login};
use serde_json::Value;
use support::{Ground, LIMIT, act, add, echoes, entry, put, raw, ready, start, told, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

#[tokio::test(flavor = "multi_thread")]
async fn what_shall_run_comes_back_if_wanted() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let (db, web) = (add(&client, "db", "db", 5432).await, add(&client, "web", "web", 80).await);
    start(&client, &[db.id]).await;
    host.stop().await;

    let host = ground.host().await;
    let client = ground.client().await;
    let mut follow = client.follow();
    let state = ready(&mut follow, db.id).await;
    echoes(&state.addresses[0]).await;
    assert!(client.forward(web.id).await.is_err(), "it was not running");
    client.set_settings(&SettingsPatch { restore: Some(false), ..Default::default() }).await.expect("set");
    host.stop().await;

    let host = ground.host().await;
    let client = ground.client().await;
    assert!(client.forwards().await.expect("listed").forwards.is_empty());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_login_for_any_number_of_forwards() {
    let ground = Ground::new().await;
    let context = Context::new("plugin", kftray_testkit::ADMIN).login(Login::Exec);
    let path = ground.cluster.kubeconfig_path();
    Kubeconfig::default().context(context).current("plugin").write(&ground.cluster, &path).expect("written");
    let host = ground.host().await;
    let client = ground.client().await;
    let mut follow = client.follow();
    let mut ids = Vec::new();
    for number in 0..20 {
        let service = if number % 2 == 0 { ("web", 80) } else { ("db", 5432) };
        ids.push(add(&client, &format!("f{number}"), service.0, service.1).await.id);
    }
    start(&client, &ids).await;
    for id in ids {
        ready(&mut follow, id).await;
    }
    let plugin = ground.cluster.exec_plugin(kftray_testkit::ADMIN).expect("it was written");
    assert_eq!(plugin.runs(), 1, "every run may be a login prompt");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_host_takes_over_with_the_listeners() {
    let ground = Ground::new().await;
    let old = ground.host().await;
    let client = ground.client().await;
    let mut follow = client.follow();
    let db = add(&client, "db", "db", 5432).await;
    start(&client, &[db.id]).await;
    let request = ActionRequest { ad_hoc: vec![entry("adhoc", "db", 5432)], ..ActionRequest::default() };
    client.act(Action::Start, &request).await.expect("started");
    let before = ready(&mut follow, db.id).await;
    let address = before.addresses[0].clone();
    let instance = client.host().instance.clone();

    // A connection that is open meanwhile, and new ones all the time: none may be refused.
    let mut open = TcpStream::connect(&address).await.expect("connect");
    exchange(&mut open).await;
    let mut traffic = JoinSet::new();
    let target = address.clone();
    let (stop_tx, mut stop) = tokio::sync::watch::channel(false);
    traffic.spawn(async move {
        let (mut done, mut longest) = (0_u32, Duration::ZERO);
        while !*stop.borrow_and_update() {
            let begun = Instant::now();
            echoes(&target).await;
            longest = longest.max(begun.elapsed());
            done += 1;
        }
        (done, longest)
    });
    let mut ending = JoinSet::new();
    ending.spawn(old.wait(true));
    let mut options = ground.options();
    options.take_over = true;
    let begun = Instant::now();
    let new = timeout(LIMIT, kftray_host::Host::start(options)).await.expect("in time").expect("takes over");
    let took = begun.elapsed();
    let is_new = |state: &State| {
        state.link == Link::Connected
            && state.host.as_ref().is_some_and(|host| host.instance != instance)
            && state.snapshot.forward(db.id).is_some_and(|forward| forward.ready_via.is_some())
    };
    let state = timeout(LIMIT, follow.wait_for(is_new)).await.expect("the new host");
    let after = ready(&mut follow, db.id).await;
    assert_eq!(after.addresses, before.addresses, "the same ports");
    let ad_hoc = state.snapshot.forwards.iter().any(|forward| forward.id.0 >= AD_HOC_IDS);
    assert!(ad_hoc, "what was written down nowhere goes on, too");
    exchange(&mut open).await;
    stop_tx.send_replace(true);
    let (done, longest) = traffic.join_next().await.expect("one").expect("no connection failed");
    println!(
        "hand-over: {took:?} until the new host serves; {done} connections meanwhile, none failed, the slowest {longest:?}; \
         an open connection went on"
    );
    drop(open);
    timeout(LIMIT, ending.join_next())
        .await
        .expect("the old host ends")
        .expect("one")
        .expect("joined")
        .expect("ended");
    echoes(&address).await;
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_go_over_to_the_next_host_with_their_forwards() {
    let ground = Ground::new().await;
    let old = ground.host().await;
    let client = ground.client().await;
    let mut follow = client.follow();
    let db = add(&client, "db", "db", 5432).await;
    let (kept, dropped) =
        (client.hold_lease().await.expect("held"), client.hold_lease().await.expect("held"));
    for (lease, ad_hoc) in [(&kept, Vec::new()), (&dropped, vec![entry("adhoc", "db", 5432)])] {
        let selection = if ad_hoc.is_empty() { Selection::ids([db.id]) } else { Selection::default() };
        let request = ActionRequest { selection, ad_hoc, lease: Some(lease.id()) };
        client.act(Action::Start, &request).await.expect("started");
    }
    let before = ready(&mut follow, db.id).await;
    let address = before.addresses[0].clone();
    let mut open = TcpStream::connect(&address).await.expect("connect");
    exchange(&mut open).await;
    let instance = client.host().instance.clone();

    let mut ending = JoinSet::new();
    ending.spawn(old.wait(true));
    let mut options = ground.options();
    options.take_over = true;
    let new = timeout(LIMIT, kftray_host::Host::start(options)).await.expect("in time").expect("takes over");
    let taken = |state: &State| {
        state.host.as_ref().is_some_and(|host| host.instance != instance)
            && state.snapshot.forward(db.id).is_some_and(|forward| forward.ready_via.is_some())
            && state.snapshot.forwards.len() == 2
    };
    timeout(LIMIT, follow.wait_for(taken)).await.expect("the new host has both");
    let after = ready(&mut follow, db.id).await;
    assert_eq!(after.addresses, before.addresses, "the same ports");
    assert_eq!(after.origin.lease(), Some(kept.id()));
    // Longer than the old host lets connections finish that it ends.
    sleep(Duration::from_millis(600)).await;
    exchange(&mut open).await;
    echoes(&address).await;
    drop(open);
    timeout(LIMIT, ending.join_next())
        .await
        .expect("the old host ends")
        .expect("one")
        .expect("joined")
        .expect("ended");

    // Each ends with its own client, now as before.
    let gone = |snapshot: &kftray_commons::api::Snapshot| snapshot.forwards.iter().all(|one| one.id == db.id);
    drop(dropped);
    until(&mut follow, "the end of the one", gone).await;
    echoes(&address).await;
    drop(kept);
    until(&mut follow, "the end of the other", |snapshot| {
        snapshot.forward(db.id).is_some_and(|forward| !forward.is_active())
    })
    .await;
    assert!(TcpStream::connect(&address).await.is_err(), "nothing listens any more");
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_go_over_to_the_next_host() {
    let ground = Ground::new().await;
    let old = ground.host().await;
    let client = ground.client().await;
    let limited = |alias: &str, ttl: u32| {
        let mut entry = entry(alias, "db", 5432);
        entry.insert("ttl_minutes".to_owned(), ttl.into());
        entry.insert("idle_minutes".to_owned(), 10.into());
        entry
    };
    let db = client.add_config(&put(limited("db", 45))).await.expect("added");
    let ad_hoc = vec![limited("adhoc", 30), entry("unlimited", "db", 5432)];
    let request = ActionRequest { selection: Selection::ids([db.id]), ad_hoc, lease: None };
    client.act(Action::Start, &request).await.expect("started");
    let before = client.forwards().await.expect("listed").forwards;
    // What is set meanwhile is not for those that run already.
    client.set_settings(&SettingsPatch { ttl_minutes: Some(5), ..Default::default() }).await.expect("set");

    let new = succeed(&ground, old).await;
    let after = ground.client().await.forwards().await.expect("listed").forwards;
    let of = |label: &str| {
        let find = |all: &[std::sync::Arc<ForwardState>]| all.iter().find(|one| one.label == label).cloned();
        (find(&before).expect("it ran"), find(&after).expect("it runs"))
    };
    for label in ["db", "adhoc"] {
        let (before, after) = of(label);
        let (told, tells) = (before.expires_at.expect("limited"), after.expires_at.expect("still limited"));
        assert!((told..told + 60_000).contains(&tells), "{label}: {told} became {tells}");
        assert!(after.idle_limit_at.is_some(), "{after:?}");
    }
    let (_, unlimited) = of("unlimited");
    assert_eq!((unlimited.expires_at, unlimited.idle_limit_at), (None, None));
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_path_of_a_socket_leaves_room_for_the_hand_over() {
    /// What a socket's path may have.
    const LONGEST: usize = 103;
    let mut ground = Ground::new().await;
    let random = 6;
    let around = std::env::temp_dir().as_os_str().len() + "/".len() + random + "/host.sock".len();
    let name = "d".repeat(LONGEST.checked_sub(around).expect("a short directory for temporary files"));
    ground.directory = tempfile::Builder::new().prefix(&name).rand_bytes(random).tempdir().expect("made");
    let old = ground.host().await;
    assert_eq!(old.place().socket.as_os_str().len(), LONGEST);
    assert!(old.place().socket.starts_with(ground.path()));
    let client = ground.client().await;
    let request = ActionRequest { ad_hoc: vec![entry("adhoc", "db", 5432)], ..ActionRequest::default() };
    client.act(Action::Start, &request).await.expect("started");
    let new = succeed(&ground, old).await;
    let forwards = ground.client().await.forwards().await.expect("listed").forwards;
    assert_eq!(forwards.len(), 1, "what is written down nowhere goes on");
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_offers_do_not_disturb_each_other() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let offered = || {
        let request =
            b"POST /v1/handover HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let (status, body) = raw(&host.place().socket, request);
        assert_eq!(status, 200, "{body}");
        let offer: Value = serde_json::from_str(&body).expect("an offer");
        offer["socket"].as_str().expect("a path").to_owned()
    };
    let (first, second) = (offered(), offered());
    assert_ne!(first, second);
    for socket in [first, second] {
        UnixStream::connect(&socket).await.expect("it waits for the new host");
    }
    host.stop().await;
}

/// A new host that has taken over from an old one, which has ended.
async fn succeed(ground: &Ground, old: Host) -> Host {
    let mut ending = JoinSet::new();
    ending.spawn(old.wait(true));
    let mut options = ground.options();
    options.take_over = true;
    let new = timeout(LIMIT, Host::start(options)).await.expect("in time").expect("takes over");
    timeout(LIMIT, ending.join_next())
        .await
        .expect("the old host ends")
        .expect("one")
        .expect("joined")
        .expect("ended");
    new
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_during_its_start_leaves_nothing() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let db = add(&client, "db", "db", 5432).await;
    start(&client, &[db.id]).await;
    let address = ready(&mut client.follow(), db.id).await.addresses[0].clone();
    // The run that ends waits a moment for this connection, and the start waits for that end.
    let mut open = TcpStream::connect(&address).await.expect("connect");
    exchange(&mut open).await;
    let lease = client.hold_lease().await.expect("held");
    let request =
        ActionRequest { selection: Selection::ids([db.id]), lease: Some(lease.id()), ..Default::default() };
    let pause = Duration::from_millis(50);
    let starting = async {
        sleep(pause).await;
        client.act(Action::Start, &request).await
    };
    let leaving = async move {
        sleep(pause * 2).await;
        drop(lease);
    };
    let (_, started, ()) = tokio::join!(stop(&client, db.id), starting, leaving);
    // On a very busy machine the client has gone before.
    println!("started: {}", started.is_ok());
    until(&mut client.follow(), "the end", |snapshot| {
        snapshot.forward(db.id).is_some_and(|forward| !forward.is_active())
    })
    .await;
    host.stop().await;
}

async fn stop(client: &Client, id: ForwardId) {
    act(client, Action::Stop, Selection::ids([id])).await;
}

async fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"ping").await.expect("sent");
    let mut answer = [0; 4];
    timeout(LIMIT, stream.read_exact(&mut answer)).await.expect("in time").expect("an echo");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_hear_that_it_ends() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let mut follow = ground.client().await.follow();
    until(&mut follow, "the first state", |_| true).await;
    timeout(LIMIT, follow.wait_for(|state| state.link == Link::Connected)).await.expect("connected");
    host.stop().await;
    let state = timeout(LIMIT, follow.wait_for(|state| matches!(state.link, Link::Disconnected { .. })));
    let Link::Disconnected { problem } = state.await.expect("in time").link else { panic!("still there") };
    println!("{problem}");
    let host = ground.host().await;
    timeout(LIMIT, follow.wait_for(|state| state.link == Link::Connected)).await.expect("found again");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_needs_no_cluster() {
    let cluster = FakeCluster::start().await.expect("a cluster");
    let ground = Ground::on(cluster).await;
    let host = ground.host().await;
    let client = ground.client().await;
    let mut follow = client.follow();
    let mut ids = Vec::new();
    for number in 0..30 {
        ids.push(add(&client, &format!("f{number}"), "db", 5432).await.id);
    }
    start(&client, &ids).await;
    for id in &ids {
        ready(&mut follow, *id).await;
    }
    let Ground { cluster, directory } = ground;
    drop(cluster);
    let begun = Instant::now();
    let report = act(&client, Action::Stop, kftray_commons::api::Selection::all()).await;
    assert_eq!(report.results.len(), ids.len());
    println!("30 forwards stopped without a cluster in {:?}", begun.elapsed());
    host.stop().await;
    drop(directory);
}

#[tokio::test]
async fn a_host_that_nobody_needs_leaves() {
    let ground = Ground::new().await;
    let mut options = ground.options();
    options.leaves_when_idle = true;
    let host = kftray_host::Host::start(options).await.expect("starts");
    let client = ground.client().await;
    let follow = client.follow();
    let mut waiting = JoinSet::new();
    waiting.spawn(host.wait(true));
    jump(Duration::from_secs(3600)).await;
    client.hello().await.expect("somebody follows, so it stays");
    drop(follow);
    while client.hello().await.expect("it is there").clients > 0 {
        tokio::task::yield_now().await;
    }
    jump(Duration::from_secs(3600)).await;
    timeout(LIMIT, waiting.join_next())
        .await
        .expect("it leaves")
        .expect("one")
        .expect("joined")
        .expect("ended");
    assert!(client.hello().await.is_err());
}

#[tokio::test]
async fn only_who_shows_the_token_keeps_a_host_by_tcp() {
    let ground = Ground::new().await;
    let mut options = ground.options();
    options.leaves_when_idle = true;
    options.tcp = true;
    let host = Host::start(options).await.expect("starts");
    let (address, token) = told(&host.place().tcp);
    let client = ground.client().await;
    let mut waiting = JoinSet::new();
    waiting.spawn(host.wait(true));
    let mut follower = TcpStream::connect(&address).await.expect("connect");
    let request =
        format!("GET /v1/events HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\r\n");
    follower.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = [0; 15];
    follower.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    jump(Duration::from_secs(3600)).await;
    client.hello().await.expect("somebody follows, so it stays");
    drop(follower);
    while client.hello().await.expect("it is there").clients > 0 {
        tokio::task::yield_now().await;
    }
    let stranger = TcpStream::connect(&address).await.expect("connect");
    jump(Duration::from_secs(3600)).await;
    timeout(LIMIT, waiting.join_next())
        .await
        .expect("it leaves")
        .expect("one")
        .expect("joined")
        .expect("ended");
    drop(stranger);
}

/// Moves the runtime's clock, after what is ready has run.
async fn jump(by: Duration) {
    tokio::time::sleep(Duration::from_millis(200)).await;
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}
