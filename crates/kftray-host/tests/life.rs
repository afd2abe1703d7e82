//! A host's beginning and end: what comes back, what is handed over, what is asked of the user.

mod support;

use std::time::Duration;

use kftray_client::{Link, State};
use kftray_commons::api::{AD_HOC_IDS, Action, ActionRequest, Selection, SettingsPatch};
use kftray_testkit::{Context, FakeCluster, Kubeconfig, Login};
use support::{Ground, LIMIT, act, add, echoes, entry, ready, start, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

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

/// Moves the runtime's clock, after what is ready has run.
async fn jump(by: Duration) {
    tokio::time::sleep(Duration::from_millis(200)).await;
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}
