//! Watches: shared, ended, resumed, recovered.

use tokio::time::Instant;

use super::apiserver::Outage;
use super::*;
use crate::resolve::lock;

#[tokio::test(start_paused = true)]
async fn five_hundred_followers_share_two_watches_and_leave_none() {
    let ground = Ground::with_web();
    // Half of them on one port, the others on as many different ones.
    let mut followers: Vec<_> = (0..500_u16)
        .map(|n| {
            let port = number(if n % 2 == 0 { 80 } else { 1000 + n });
            ground.follow(TargetObject::Service("web".into()), &port)
        })
        .collect();
    becomes(&mut followers[0], "web-1:8080").await;
    becomes(&mut followers[499], "web-1:1499").await;
    settle().await;
    let mut requests = ground.api.requests();
    requests.sort();
    assert_eq!(requests, ["list endpointslices", "list services", "watch endpointslices", "watch services"]);

    ground.api.put("endpointslices", slice("web-a", "web", &[("web-1", true), ("web-2", true)]));
    becomes(&mut followers[0], "web-1:8080, web-2:8080").await;
    becomes(&mut followers[499], "web-1:1499, web-2:1499").await;
    assert_eq!(ground.api.requests(), [""; 0]);
    assert_eq!(ground.api.open_watches(), 2);

    let last = followers.pop();
    drop(followers);
    settle().await;
    assert_eq!(ground.api.open_watches(), 2, "one follower is left");
    drop(last);
    settle().await;
    assert_eq!(ground.api.open_watches(), 0);
    assert!(lock(&ground.resolver.root.followers).is_empty());
    assert!(lock(&ground.resolver.root.feeds).values().all(|feeds| feeds.strong_count() == 0));
    assert_eq!(ground.api.requests(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_resolver_ends_everything() {
    let ground = Ground::with_web();
    let mut web = ground.service("web");
    becomes(&mut web, "web-1:8080").await;
    let Ground { api, resolver, .. } = ground;
    drop(resolver);
    settle().await;
    assert_eq!(api.open_watches(), 0);
    assert_eq!(text(&web.borrow()), "web-1:8080", "the last value stays readable");
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_comes_back_at_once_is_served() {
    let ground = Ground::with_web();
    for _ in 0..50 {
        let mut web = ground.service("web");
        becomes(&mut web, "web-1:8080").await;
        drop(web);
        // No pause: the old task may be on its way out.
        let mut again = ground.service("web");
        becomes(&mut again, "web-1:8080").await;
    }
    settle().await;
    assert_eq!(ground.api.open_watches(), 0);
}

#[tokio::test(start_paused = true)]
async fn only_what_changes_for_the_target_wakes_its_followers() {
    let ground = Ground::with_web();
    let mut web = ground.service("web");
    becomes(&mut web, "web-1:8080").await;
    ground.api.put("services", service("other", json!({"app": "o"}), json!([{"port": 80}])));
    ground.api.put("endpointslices", slice("other-a", "other", &[("o-1", true)]));
    // A write without a change that matters here, as heartbeats are.
    ground.api.put("endpointslices", slice("web-a", "web", &[("web-1", true)]));
    settle().await;
    assert!(!web.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_reset_watch_goes_on_where_it_was() {
    let ground = Ground::with_web();
    let mut web = ground.service("web");
    becomes(&mut web, "web-1:8080").await;
    settle().await;
    ground.api.requests();
    ground.api.end_watches(true);
    ground.api.put("endpointslices", slice("web-a", "web", &[("web-2", true)]));
    becomes(&mut web, "web-2:8080").await;
    let requests = ground.api.requests();
    assert!(requests.iter().all(|request| request.starts_with("watch")), "no list needed: {requests:?}");
}

#[tokio::test(start_paused = true)]
async fn gone_lists_again_and_forgets_what_was_deleted() {
    let ground = Ground::with_web();
    ground.api.put("endpointslices", slice("web-b", "web", &[("web-9", true)]));
    let mut web = ground.service("web");
    becomes(&mut web, "web-1:8080, web-9:8080").await;
    settle().await;
    ground.api.set_outage(Some(Outage::Refused));
    ground.api.delete("endpointslices", "web-b");
    ground.api.put("endpointslices", slice("web-a", "web", &[("web-1", true), ("web-3", true)]));
    ground.api.compact();
    ground.api.set_outage(None);
    becomes(&mut web, "web-1:8080, web-3:8080").await;
    assert!(ground.api.requests().contains(&"list endpointslices".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_stalled_watch_is_noticed_at_the_end_of_its_time() {
    let ground = Ground::with_web();
    let mut web = ground.service("web");
    becomes(&mut web, "web-1:8080").await;
    settle().await;
    ground.api.stall_watches();
    ground.api.put("endpointslices", slice("web-a", "web", &[("web-2", true)]));
    let stalled = Instant::now();
    becomes(&mut web, "web-2:8080").await;
    assert!(stalled.elapsed() <= Duration::from_secs(305), "{:?}", stalled.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_outage_keeps_the_endpoints_and_recovers() {
    for outage in [Outage::Refused, Outage::Status(503), Outage::Status(401), Outage::BlackHole] {
        let ground = Ground::with_web();
        let mut web = ground.service("web");
        becomes(&mut web, "web-1:8080").await;
        settle().await;
        ground.api.set_outage(Some(outage));
        ground.api.end_watches(false);
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert!(!web.has_changed().unwrap(), "{}", text(&web.borrow()));
        let attempts = ground.api.requests().len();
        assert!((10..120).contains(&attempts), "{attempts} requests in 5 minutes for 2 watches");
        ground.api.put("endpointslices", slice("web-a", "web", &[("web-2", true)]));
        ground.api.set_outage(None);
        let back = Instant::now();
        becomes(&mut web, "web-2:8080").await;
        assert!(back.elapsed() <= Duration::from_secs(66), "{:?}", back.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_from_the_start_is_told_and_recovers() {
    for (outage, expected) in [
        (Outage::Refused, "cluster_unreachable: the API server cannot be reached: connection refused"),
        (Outage::BlackHole, "cluster_unreachable: the API server has not answered for 35 s"),
        (
            Outage::Status(401),
            "unauthorized: the cluster does not accept the credentials (the server is out of order)",
        ),
    ] {
        let ground = Ground::with_web();
        ground.api.set_outage(Some(outage));
        let mut web = ground.service("web");
        becomes(&mut web, expected).await;
        ground.api.set_outage(None);
        becomes(&mut web, "web-1:8080").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_network_change_cuts_every_wait_short() {
    let ground = Ground::with_web();
    let mut web = ground.service("web");
    becomes(&mut web, "web-1:8080").await;
    settle().await;
    ground.api.set_outage(Some(Outage::BlackHole));
    ground.api.end_watches(false);
    tokio::time::sleep(Duration::from_secs(200)).await;
    ground.api.put("endpointslices", slice("web-a", "web", &[("web-2", true)]));
    ground.api.set_outage(None);
    let back = Instant::now();
    ground.resolver.network_changed();
    becomes(&mut web, "web-2:8080").await;
    assert!(back.elapsed() < Duration::from_millis(100), "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_network_change_replaces_a_watch_that_looks_alive() {
    let ground = Ground::with_web();
    let mut web = ground.service("web");
    becomes(&mut web, "web-1:8080").await;
    settle().await;
    ground.api.stall_watches();
    ground.api.put("endpointslices", slice("web-a", "web", &[("web-2", true)]));
    let stalled = Instant::now();
    ground.resolver.network_changed();
    becomes(&mut web, "web-2:8080").await;
    assert!(stalled.elapsed() < Duration::from_millis(100), "{:?}", stalled.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_closes_watches_at_once_is_not_stormed() {
    let ground = Ground::with_web();
    ground.api.close_watches_at_once(true);
    let mut web = ground.service("web");
    becomes(&mut web, "web-1:8080").await;
    ground.api.requests();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let requests = ground.api.requests().len();
    assert!(requests < 120, "{requests} requests in 5 minutes for 2 watches");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_hour_costs_only_renewals() {
    let ground = Ground::with_web();
    let mut web = ground.service("web");
    becomes(&mut web, "web-1:8080").await;
    settle().await;
    ground.api.requests();
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    let requests = ground.api.requests();
    assert!(requests.iter().all(|request| request.starts_with("watch")), "{requests:?}");
    assert!(requests.len() <= 2 * 16, "{} renewals", requests.len());
}

#[tokio::test(start_paused = true)]
async fn another_cluster_voids_what_was_known() {
    let ground = Ground::with_web();
    let mut web = ground.service("web");
    becomes(&mut web, "web-1:8080").await;
    let other = Ground::with_web();
    other.api.set_outage(Some(Outage::BlackHole));
    ground.cluster.send_replace(Given::Up(2, other.api.clone()));
    becomes(&mut web, "pending").await;
    settle().await;
    assert_eq!(ground.api.open_watches(), 0, "nobody needs the old cluster");
    other.api.set_outage(None);
    ground.resolver.network_changed();
    becomes(&mut web, "web-1:8080").await;
    let Resolution::Endpoints { endpoints, .. } = web.borrow().clone() else { panic!("no endpoints") };
    assert_eq!(endpoints[0].cluster, ClusterId(2));

    ground.cluster.send_replace(Given::Failed(problem(Code::ContextMissing)));
    becomes(&mut web, "context_missing: given").await;
    ground.cluster.send_replace(Given::Up(3, ground.api.clone()));
    becomes(&mut web, "web-1:8080").await;
}

#[tokio::test(start_paused = true)]
async fn the_context_namespace_is_the_default() {
    let ground = Ground::with_web();
    let mut named = target(TargetObject::Service("web".into()));
    named.namespace = Some("Not a namespace/..".into());
    let mut bad = ground.resolver.follow(&named, &number(80));
    becomes(&mut bad, "spec_invalid: `Not a namespace/..` cannot be the namespace of an object in a cluster")
        .await;
    let mut web = ground.service("web");
    becomes(&mut web, "web-1:8080").await;
    let Resolution::Endpoints { endpoints, .. } = web.borrow().clone() else { panic!("no endpoints") };
    assert_eq!(&*endpoints[0].namespace, "shop");
}
