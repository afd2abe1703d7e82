//! Services, their slices and their ports, as tables: objects in, endpoints or a sentence out.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::*;
use crate::resolve::Way;
use crate::resolve::object::{Pod, Service, Slice};
use crate::resolve::pods::{Answer, Scene};
use crate::resolve::service::{PodsWanted, by_pods, by_slices, meaning};

fn all<T: DeserializeOwned>(values: Value) -> Vec<Arc<T>> {
    serde_json::from_value::<Vec<T>>(values).unwrap().into_iter().map(Arc::new).collect()
}

fn scene() -> Scene {
    Scene { cluster: ClusterId(1), namespace: "shop".into(), what: "service/web".into(), way: Way::default() }
}

fn read(answer: Answer) -> String {
    text(&match answer {
        Answer::Failed(problem) => Resolution::Failed(problem),
        Answer::Endpoints(endpoints, why_none) => {
            Resolution::Endpoints { endpoints: endpoints.into(), why_none }
        }
    })
}

fn sliced(service: Value, port: &RemotePort, slices: Value, pods: Option<Value>) -> (String, PodsWanted) {
    let service: Service =
        serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": service})).unwrap();
    let pods: Option<Vec<Arc<Pod>>> = pods.map(all);
    match meaning(&scene(), &service, port) {
        Err(problem) => (read(Answer::Failed(problem)), PodsWanted::No),
        Ok(meaning) => {
            let slices = all::<Slice>(slices);
            let (answer, wanted) = by_slices(&scene(), &service, &meaning, &slices, pods.as_deref());
            (read(answer), wanted)
        }
    }
}

fn listed(pod: &str, conditions: Value) -> Value {
    json!({"addresses": ["10.0.0.1"], "conditions": conditions,
           "targetRef": {"kind": "Pod", "name": pod, "uid": format!("uid-{pod}")}})
}

fn ready() -> Value {
    json!({"ready": true})
}

#[test]
fn ports_are_found_by_number_and_name_through_each_slice() {
    let spec = json!({"selector": {"app": "web"}, "ports": [
        {"name": "http", "port": 80, "targetPort": "web"}, {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "targetPort": 5353}, {"name": "sip", "port": 5060, "protocol": "SCTP"}]});
    // A named target port that is another number in the pods of another revision.
    let slices = json!([
        {"metadata": {"name": "b"}, "endpoints": [listed("new", ready())],
         "ports": [{"name": "http", "port": 9090}, {"name": "dns-tcp", "port": 5353}, {"name": "dns", "port": 53, "protocol": "UDP"}]},
        {"metadata": {"name": "a"}, "endpoints": [listed("old", ready())],
         "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns-tcp", "port": 5354}]}]);
    for (port, expected) in [
        (number(80), "new:9090, old:8080"),
        (name("http"), "new:9090, old:8080"),
        (number(53), "new:5353, old:5354"),
        (number(9999), "new:9999, old:9999"),
        (
            name("dns"),
            "target_port_missing: port dns of service/web in namespace shop is UDP only; a port-forward carries TCP \
             (its ports: http 80 -> web, dns 53/UDP, dns-tcp 53 -> 5353, sip 5060/SCTP)",
        ),
    ] {
        assert_eq!(sliced(spec.clone(), &port, slices.clone(), None).0, expected, "{port}");
    }
}

#[test]
fn unnamed_ports_headless_and_portless_services() {
    let single = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]});
    let slices = json!([{"endpoints": [listed("a", ready())], "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]}]);
    assert_eq!(sliced(single, &number(80), slices, None).0, "a:8080");
    // A headless Service without ports: every port is a container port, and its slices have none.
    let headless = json!({"clusterIP": "None", "selector": {"app": "web"}});
    let slices = json!([{"endpoints": [listed("a", ready())], "ports": null}]);
    assert_eq!(sliced(headless, &number(5432), slices, None).0, "a:5432");
    // A slice whose port has no number leaves it to the Service.
    let single = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]});
    let slices = json!([{"endpoints": [listed("a", ready())], "ports": [{"port": null}]}]);
    assert_eq!(sliced(single, &number(80), slices, None).0, "a:8080");
}

#[test]
fn conditions_follow_the_api_reference() {
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    for (conditions, expected) in [
        (json!({}), "a:80"),
        (json!({"ready": null}), "a:80"),
        (json!(null), "a:80"),
        (json!({"ready": true, "serving": true, "terminating": false}), "a:80"),
        (json!({"ready": false, "serving": true, "terminating": true}), "a:80 draining"),
        (json!({"ready": true, "serving": true, "terminating": true}), "a:80 draining"),
        (json!({"ready": false, "serving": false, "terminating": true}), "a:80 unready"),
        (json!({"ready": false, "terminating": true}), "a:80 unready"),
        (json!({"ready": false}), "a:80 unready"),
    ] {
        let slices = json!([{"endpoints": [listed("a", conditions.clone())], "ports": [{"port": 80}]}]);
        let (got, wanted) = sliced(spec.clone(), &number(80), slices, None);
        let got = got.strip_prefix('[').and_then(|got| got.split_once(']')).map_or(&*got, |(pods, _)| pods);
        assert_eq!(got, expected, "{conditions}");
        assert_eq!(wanted == PodsWanted::No, expected == "a:80", "{conditions}");
    }
}

#[test]
fn a_dual_stack_pod_is_one_endpoint() {
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    let draining = json!({"ready": false, "serving": true, "terminating": true});
    for (v4, v6, expected) in [
        (ready(), ready(), "a:80, b:80"),
        (json!({"ready": false}), ready(), "a:80, b:80"),
        (ready(), draining.clone(), "a:80 draining, b:80"),
        (draining, ready(), "a:80 draining, b:80"),
    ] {
        let slices = json!([
            {"addressType": "IPv4", "endpoints": [listed("b", ready()), listed("a", v4)], "ports": [{"port": 80}]},
            {"addressType": "IPv6", "endpoints": [listed("a", v6), listed("b", ready())], "ports": [{"port": 80}]}]);
        assert_eq!(sliced(spec.clone(), &number(80), slices, None).0, expected);
    }
}

#[test]
fn what_has_no_pods_cannot_be_forwarded_to() {
    let external = json!({"type": "ExternalName", "externalName": "db.example.com"});
    assert_eq!(
        sliced(external, &number(80), json!([]), None).0,
        "target_not_forwardable: service/web in namespace shop is only another name for the host db.example.com; it \
         has no pods"
    );
    let bare = json!({"ports": [{"port": 80}]});
    let addresses = json!([{"endpoints": [{"addresses": ["192.0.2.2"]}, {"addresses": ["192.0.2.1"]},
        {"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.3"]}, {"addresses": ["192.0.2.4"]}], "ports": [{"port": 80}]}]);
    assert_eq!(
        sliced(bare.clone(), &number(80), addresses, None).0,
        "target_not_forwardable: service/web in namespace shop leads to addresses that are not pods (192.0.2.1, \
         192.0.2.2, 192.0.2.3 and 1 more); a port-forward reaches only pods"
    );
    // Pods among other addresses will do.
    let mixed =
        json!([{"endpoints": [{"addresses": ["192.0.2.2"]}, listed("a", ready())], "ports": [{"port": 80}]}]);
    assert_eq!(sliced(bare.clone(), &number(80), mixed, None), ("a:80".to_owned(), PodsWanted::No));
    let (text, wanted) = sliced(bare, &number(80), json!([{"endpoints": null, "ports": null}]), None);
    assert_eq!(
        text,
        "[] service/web in namespace shop has no selector, and no EndpointSlice lists a ready pod for it"
    );
    assert_eq!(wanted, PodsWanted::No, "there is no selector to look pods up by");
}

#[test]
fn a_target_port_name_that_no_pod_declares_is_told() {
    let spec =
        json!({"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]});
    let slices = json!([{"endpoints": [listed("a", ready())], "ports": []}]);
    let expected = "target_port_missing: the port of service/web in namespace shop goes to the container port named \
                    web, which none of its pods declares; its ports: http 80 -> web";
    assert_eq!(sliced(spec.clone(), &number(80), slices, None).0, expected);
    let service: Service = serde_json::from_value(json!({"spec": spec})).unwrap();
    let meaning = meaning(&scene(), &service, &number(80)).unwrap();
    let pods = all::<Pod>(json!([pod("a", "web", true)]));
    assert_eq!(read(by_pods(&scene(), &service, &meaning, &pods)), expected);
}

#[test]
fn without_slices_the_pods_tell_the_same() {
    let mut gone = pod("c", "web", true);
    gone["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut over = pod("d", "web", true);
    over["status"]["phase"] = json!("Succeeded");
    let mut sidecar = pod("e", "web", true);
    sidecar["spec"]["containers"] = json!([{"name": "c", "ports": null}]);
    sidecar["spec"]["initContainers"] = json!([
        {"name": "once", "ports": [{"name": "http", "containerPort": 1}]},
        {"name": "side", "restartPolicy": "Always", "ports": [{"name": "http", "containerPort": 7, "protocol": "UDP"},
            {"name": "http", "containerPort": 8, "protocol": "TCP"}]}]);
    let pods = all::<Pod>(json!([pod("b", "web", false), gone, over, sidecar, pod("a", "web", true)]));
    for (publish, expected) in [
        (false, "a:8080, b:8080 unready, c:8080 draining, e:8"),
        (true, "a:8080, b:8080, c:8080 draining, e:8"),
    ] {
        let service: Service = serde_json::from_value(json!({"spec": {"publishNotReadyAddresses": publish,
            "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}}))
        .unwrap();
        let meaning = meaning(&scene(), &service, &number(80)).unwrap();
        assert_eq!(read(by_pods(&scene(), &service, &meaning, &pods)), expected);
    }
}

#[test]
fn order_and_result_do_not_depend_on_the_order_of_the_slices() {
    let spec = json!({"selector": {"app": "web"}, "ports": [{"name": "p", "port": 80, "targetPort": "p"}]});
    let states =
        [ready(), json!({"ready": false}), json!({"ready": false, "serving": true, "terminating": true})];
    let mut random: u32 = 1;
    let mut next = |below: u32| {
        // Numerical Recipes' generator: the same cases in every run.
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16) % below
    };
    for _ in 0..300 {
        let mut slices: Vec<Value> = (0..1 + next(4))
            .map(|slice| {
                let endpoints: Vec<Value> = (0..next(5))
                    .map(|_| listed(&format!("pod-{}", next(4)), states[next(3) as usize].clone()))
                    .collect();
                json!({"metadata": {"name": format!("s{slice}")}, "endpoints": endpoints,
                       "ports": [{"name": "p", "port": 8000 + next(2)}]})
            })
            .collect();
        let (one, _) = sliced(spec.clone(), &number(80), json!(slices), None);
        slices.reverse();
        let (other, _) = sliced(spec.clone(), &number(80), json!(slices), None);
        assert_eq!(one, other, "{slices:?}");
        for pod in 0..4 {
            assert!(one.matches(&format!("pod-{pod}:")).count() <= 1, "{one}");
        }
    }
}
