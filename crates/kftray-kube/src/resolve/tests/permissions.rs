//! What happens where the cluster says no.

use kftray_portforward::ports::Endpoint;
use tokio::time::Instant;

use super::*;

const NO_SLICES: &str = "may not list endpointslices.discovery.k8s.io in namespace shop (as user jane)";

fn web() -> TargetObject {
    TargetObject::Service("web".into())
}

fn only(receiver: &watch::Receiver<Resolution>) -> Endpoint {
    match &*receiver.borrow() {
        Resolution::Endpoints { endpoints, .. } => endpoints[0].clone(),
        other @ (Resolution::Pending | Resolution::Failed(_)) => panic!("{}", text(other)),
    }
}

#[tokio::test(start_paused = true)]
async fn without_slices_the_pods_are_watched() {
    let ground = Ground::with_web();
    ground.api.deny(&["list", "watch"], "endpointslices");
    let mut follower = ground.service("web");
    becomes(&mut follower, "web-1:8080").await;
    assert_eq!(ground.notes(web()), [NO_SLICES]);
    ground.api.put("pods", pod("web-1", "web", false));
    becomes(
        &mut follower,
        &format!(
            "[web-1:8080 unready] no pod of service/web in namespace shop is ready: web-1: container c runs but does \
             not pass its readiness probe (note: {NO_SLICES})"
        ),
    )
    .await;
    settle().await;
    ground.api.requests();
    // The second forward does not ask again for what was denied.
    let mut second = ground.follow(web(), &name("http"));
    ground.api.put("pods", pod("web-1", "web", true));
    becomes(&mut second, "web-1:8080").await;
    assert_eq!(ground.api.requests(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_service_goes_down_to_a_single_read() {
    let ground = Ground::with_web();
    ground.api.deny(&["list", "watch"], "services");
    let mut follower = ground.service("web");
    becomes(&mut follower, "web-1:8080").await;
    assert_eq!(ground.notes(web()), ["may not list services in namespace shop (as user jane)"]);
    let requests = ground.api.requests();
    let services: Vec<&str> = requests.iter().map(|r| &**r).filter(|r| r.contains("services")).collect();
    assert_eq!(services, ["list services", "list services?metadata.name=web", "get services/web"]);
}

#[tokio::test(start_paused = true)]
async fn a_list_without_a_watch_is_read_again_upon_a_hint_only() {
    let ground = Ground::with_web();
    ground.api.deny(&["watch"], "endpointslices");
    let mut follower = ground.service("web");
    becomes(&mut follower, "web-1:8080").await;
    settle().await;
    assert_eq!(
        ground.notes(web()),
        ["may not watch endpointslices.discovery.k8s.io in namespace shop (as user jane)"]
    );
    ground.api.requests();
    ground.api.put("endpointslices", slice("web-a", "web", &[("web-2", true)]));
    tokio::time::sleep(Duration::from_secs(240)).await;
    assert_eq!(text(&follower.borrow()), "web-1:8080");
    assert!(ground.api.requests().iter().all(|request| request == "watch services"));
    ground.resolver.refresh(&only(&follower));
    becomes(&mut follower, "web-2:8080").await;
}

#[tokio::test(start_paused = true)]
async fn nothing_permitted_for_a_service_names_verb_and_resource() {
    let ground = Ground::with_web();
    ground.api.deny(&["get", "list", "watch"], "services");
    let mut follower = ground.service("web");
    becomes(&mut follower, "forbidden: may not get services in namespace shop (as user jane)").await;

    let ground = Ground::with_web();
    ground.api.deny(&["get", "list", "watch"], "endpointslices");
    ground.api.deny(&["get", "list", "watch"], "pods");
    let mut follower = ground.service("web");
    becomes(
        &mut follower,
        &format!("forbidden: {NO_SLICES}, and may not list pods in namespace shop (as user jane)"),
    )
    .await;
    let Resolution::Failed(problem) = follower.borrow().clone() else { panic!("not failed") };
    assert!(problem.remedy.contains("verb list on endpointslices.discovery.k8s.io"), "{}", problem.remedy);
    assert!(problem.remedy.contains("by name"), "{}", problem.remedy);
}

#[tokio::test(start_paused = true)]
async fn a_role_that_comes_later_is_noticed() {
    let ground = Ground::with_web();
    ground.api.deny(&["get", "list", "watch"], "services");
    let mut follower = ground.service("web");
    becomes(&mut follower, "forbidden: may not get services in namespace shop (as user jane)").await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let requests = ground.api.requests().len();
    assert!(requests < 150, "{requests} requests in an hour");
    ground.api.allow_all();
    let granted = Instant::now();
    becomes(&mut follower, "web-1:8080").await;
    assert!(granted.elapsed() <= Duration::from_secs(301), "{:?}", granted.elapsed());
}

#[tokio::test(start_paused = true)]
async fn hundreds_that_are_denied_ask_like_one() {
    let ground = Ground::with_web();
    ground.api.deny(&["get", "list", "watch"], "services");
    let mut followers: Vec<_> = (1..300).map(|port| ground.follow(web(), &number(port))).collect();
    for follower in &mut followers {
        becomes(follower, "forbidden: may not get services in namespace shop (as user jane)").await;
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let requests = ground.api.requests().len();
    assert!(requests < 500, "{requests} requests in an hour");
    ground.api.allow_all();
    ground.resolver.network_changed();
    for (port, follower) in (1..300).zip(&mut followers) {
        becomes(follower, &format!("web-1:{}", if port == 80 { 8080 } else { port })).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_denial_that_lasts_a_moment_does_not_last_a_minute() {
    for asked in [false, true] {
        let ground = Ground::with_web();
        ground.api.deny(&["get", "list", "watch"], "services");
        let mut follower = ground.service("web");
        becomes(&mut follower, "forbidden: may not get services in namespace shop (as user jane)").await;
        let begin = tokio::time::Instant::now();
        ground.api.allow_all();
        let most = if asked {
            ground.resolver.try_again();
            Duration::from_secs(1)
        } else {
            // The first pause.
            Duration::from_secs(11)
        };
        becomes(&mut follower, "web-1:8080").await;
        assert!(begin.elapsed() <= most, "{:?}", begin.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_role_that_is_taken_away_steps_down() {
    let ground = Ground::with_web();
    let mut follower = ground.service("web");
    becomes(&mut follower, "web-1:8080").await;
    settle().await;
    ground.api.deny(&["list", "watch"], "endpointslices");
    ground.api.end_watches(false);
    ground.api.compact();
    ground.api.put("pods", pod("web-2", "web", true));
    // The watch is refused, and then the list that would replace it.
    becomes(&mut follower, "web-1:8080, web-2:8080").await;
    assert_eq!(ground.notes(web()), [NO_SLICES]);
    // With a new network comes another try of the best way.
    ground.api.allow_all();
    ground.resolver.network_changed();
    becomes(&mut follower, "web-1:8080").await;
    assert_eq!(ground.notes(web()), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn with_get_pods_alone_a_pod_is_read_once_and_again_when_its_session_is_lost() {
    let ground = Ground::with_web();
    ground.api.deny(&["list", "watch"], "pods");
    let pod_target = || TargetObject::Pod("web-1".into());
    let mut follower = ground.follow(pod_target(), &name("http"));
    becomes(&mut follower, "web-1:8080").await;
    assert_eq!(ground.api.requests(), ["list pods?metadata.name=web-1", "get pods/web-1"]);
    assert_eq!(
        ground.resolver.notes(&target(pod_target()), &name("http")),
        ["may not list pods in namespace shop (as user jane)"]
    );
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(ground.api.requests(), [""; 0], "no timer while all is well");

    // A successor of the same name.
    let mut successor = pod("web-1", "web", false);
    successor["metadata"]["uid"] = json!("uid-new");
    let running = std::mem::replace(
        &mut successor["status"]["containerStatuses"][0]["state"],
        json!({"waiting": {"reason": "ContainerCreating"}}),
    );
    ground.api.put("pods", successor.clone());
    for _ in 0..100 {
        ground.resolver.refresh(&only(&follower));
    }
    becomes(
        &mut follower,
        "[web-1:8080 unready] pod/web-1 in namespace shop does not run: container c is being created (note: may not \
         list pods in namespace shop (as user jane))",
    )
    .await;
    assert!(ground.api.requests().len() <= 2, "hints are gathered");
    successor["status"]["containerStatuses"][0]["state"] = running;
    ground.api.put("pods", successor);
    becomes(&mut follower, "web-1:8080").await;
    assert_eq!(&*only(&follower).uid, "uid-new");
    settle().await;
    ground.api.requests();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(ground.api.requests().len() <= 1, "quiet again");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_may_not_be_read_is_taken_on_trust_if_the_port_is_a_number() {
    let ground = Ground::with_web();
    ground.api.deny(&["get", "list", "watch"], "pods");
    let mut by_number = ground.follow(TargetObject::Pod("web-1".into()), &number(5432));
    becomes(&mut by_number, "web-1:5432").await;
    assert_eq!(&*only(&by_number).uid, "");
    let mut by_name = ground.follow(TargetObject::Pod("web-1".into()), &name("http"));
    becomes(&mut by_name, "forbidden: may not get pods in namespace shop (as user jane)").await;
    let mut by_label = ground.follow(TargetObject::Labels("app=web".into()), &number(80));
    becomes(&mut by_label, "forbidden: may not list pods in namespace shop (as user jane)").await;
}

#[tokio::test(start_paused = true)]
async fn an_unready_service_without_pod_rights_still_says_what_it_can() {
    let ground = Ground::with_web();
    ground.api.put("endpointslices", slice("web-a", "web", &[("web-1", false)]));
    ground.api.deny(&["get", "list", "watch"], "pods");
    let mut follower = ground.service("web");
    becomes(
        &mut follower,
        "[web-1:8080 unready] no pod of service/web in namespace shop is ready (note: may not list pods in namespace \
         shop (as user jane))",
    )
    .await;
    ground.api.put("endpointslices", slice("web-a", "web", &[("web-1", true)]));
    becomes(&mut follower, "web-1:8080").await;
}
