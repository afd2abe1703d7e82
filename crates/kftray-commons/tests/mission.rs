//! Every JSON snippet of the project's five user documents, as written there (`tests/data`, one file per snippet; the
//! document "how it works" has none): each must be understood, and as the documents mean it.

use kftray_commons::border::{Defaults, import};
use kftray_commons::spec::{
    Certificate, ExposeProtocol, Exposure, ForwardSpec, IssuerKind, LocalPort, Pods, Protocol, Workload,
};
use kftray_commons::{ContextRef, RemotePort};

fn one(text: &str) -> ForwardSpec {
    let found = import(text, &Defaults::default());
    assert_eq!(found.entries.len(), 1, "{text}");
    let entry = found.entries.into_iter().next().expect("one entry");
    assert_eq!(entry.warnings, [], "{text}");
    assert!(found.warnings.is_empty(), "{text}");
    entry.result.expect("accepted")
}

macro_rules! snippet {
    ($name:literal) => {
        one(include_str!(concat!("data/", $name, ".json")))
    };
}

fn fixed(port: u16) -> LocalPort {
    LocalPort::from(port)
}

fn number(port: u16) -> RemotePort {
    RemotePort::Number(port.try_into().expect("not 0"))
}

/// What the short snippets share: context, namespace and protocol are left out.
fn assert_short(spec: &ForwardSpec, service: &str, local: u16, remote: u16, alias: Option<&str>) {
    assert_eq!(spec.workload, Workload::Service { name: service.into(), port: number(remote) });
    assert_eq!(spec.listen.port, fixed(local));
    assert_eq!(spec.alias.as_deref(), alias);
    assert_eq!(spec.namespace.as_deref(), Some("default"));
    assert_eq!(spec.cluster.context, ContextRef::Current);
    assert_eq!(spec.protocol, Protocol::Tcp);
    assert_eq!(spec.listen.hosts, ["localhost"]);
}

#[test]
fn port_forwarding_1() {
    let spec = snippet!("port-forwarding-1");
    assert_eq!(spec.workload, Workload::Service { name: "web-service".into(), port: number(80) });
    assert_eq!(spec.cluster.context, ContextRef::Named("my-cluster".into()));
    assert_eq!(spec.listen.port, fixed(8080));
    assert_eq!(spec.label(), "web");
}

#[test]
fn port_forwarding_2_udp() {
    let spec = snippet!("port-forwarding-2");
    assert_eq!(spec.protocol, Protocol::Udp);
    assert_eq!(spec.workload, Workload::Service { name: "dns-service".into(), port: number(53) });
}

#[test]
fn port_forwarding_3_to_5() {
    assert_short(&snippet!("port-forwarding-3"), "frontend", 3000, 80, Some("web"));
    assert_short(&snippet!("port-forwarding-4"), "postgres", 5432, 5432, Some("db"));
    assert_short(&snippet!("port-forwarding-5"), "api-gateway", 8080, 8080, Some("gateway"));
}

#[test]
fn networking_bind_address() {
    let local = snippet!("networking-1");
    assert_eq!(local.listen.hosts, ["127.0.0.1"]);
    assert_eq!(local.workload, Workload::Service { name: "web-app".into(), port: number(80) });
    assert_eq!(snippet!("networking-2").listen.hosts, ["0.0.0.0"]);
}

#[test]
fn proxy_workloads() {
    let cases = [
        (snippet!("proxy-workloads-1"), "internal-service.cluster.local", 8080, 80, "internal-proxy"),
        (snippet!("proxy-workloads-2"), "auth-service.internal.company.com", 8443, 443, "corp-auth"),
        (snippet!("proxy-workloads-3"), "database.region.rds.amazonaws.com", 5432, 5432, "cloud-db"),
        (
            snippet!("proxy-workloads-4"),
            "payment-service.payments.svc.cluster.local",
            8080,
            8080,
            "mesh-payments",
        ),
    ];
    for (spec, host, local, remote, alias) in cases {
        let port = u16::try_into(remote).expect("not 0");
        assert_eq!(spec.workload, Workload::Proxy { host: host.into(), port });
        assert_eq!(spec.listen.port, fixed(local));
        assert_eq!(spec.alias.as_deref(), Some(alias));
        assert_eq!(spec.namespace.as_deref(), Some("default"));
    }
}

#[test]
fn workload_types_service_and_pod() {
    let service = snippet!("workload-types-1");
    assert_eq!(service.workload, Workload::Service { name: "postgres".into(), port: number(5432) });
    assert_eq!(service.cluster.context, ContextRef::Named("dev".into()));
    let pod = snippet!("workload-types-2");
    // The selector decides; the service field is the pod forward's title there.
    assert_eq!(pod.workload, Workload::Pod { pods: Pods::Selector("app=myapp".into()), port: number(9229) });
}

#[test]
fn workload_types_proxy_port_in_the_address_wins() {
    let spec = snippet!("workload-types-3");
    let port = 443.try_into().expect("not 0");
    assert_eq!(spec.workload, Workload::Proxy { host: "internal-api.company.com".into(), port });
    assert_eq!(spec.listen.port, fixed(8443));
}

#[test]
fn workload_types_expose() {
    let public = snippet!("workload-types-4");
    let Workload::Expose(expose) = &public.workload else { panic!("{public:?}") };
    assert_eq!((expose.local_host.as_str(), expose.local_port.get()), ("localhost", 3000));
    assert_eq!(
        expose.exposure,
        Exposure::Public {
            protocol: ExposeProtocol::Http,
            ingress_class: Some("nginx".into()),
            annotations: std::collections::BTreeMap::new(),
            certificate: Some(Certificate {
                issuer: "letsencrypt-prod".into(),
                kind: IssuerKind::ClusterIssuer
            }),
        }
    );
    assert!(public.domain_enabled);
    let internal = snippet!("workload-types-5");
    let Workload::Expose(expose) = &internal.workload else { panic!("{internal:?}") };
    assert_eq!(expose.exposure, Exposure::Internal { protocol: ExposeProtocol::Http });
    assert_eq!(internal.namespace.as_deref(), Some("development"));
}

#[test]
fn all_of_them_in_one_file() {
    let snippets = [
        include_str!("data/port-forwarding-1.json"),
        include_str!("data/port-forwarding-2.json"),
        include_str!("data/networking-2.json"),
        include_str!("data/proxy-workloads-1.json"),
        include_str!("data/workload-types-4.json"),
    ];
    let listed = format!("[{}]", snippets.join(","));
    for text in [snippets.concat(), listed] {
        let found = import(&text, &Defaults::default());
        assert_eq!(found.entries.len(), snippets.len());
        assert_eq!(found.faults().count(), 0);
        let ids: Vec<_> = found.specs().map(|spec| spec.id.0).collect();
        assert_eq!(ids, [1, 2, 3, 4, 5]);
    }
}
