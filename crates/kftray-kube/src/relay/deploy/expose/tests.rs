//! The objects of an expose, and whose a name is.

use std::num::NonZeroU16;

use kftray_commons::Access;

use super::*;
use crate::relay::deploy::InstallationKey;

type Wish = (&'static str, Expose);

fn offer(alias: &'static str, exposure: Exposure) -> Wish {
    let expose = Expose {
        local_host: "localhost".to_owned(),
        local_port: NonZeroU16::new(3000).unwrap(),
        local_tls: false,
        exposure,
        access: Access::default(),
    };
    (alias, expose)
}

fn public(annotations: &[(&str, &str)], certificate: bool) -> Exposure {
    Exposure::Public {
        protocol: ExposeProtocol::Http,
        ingress_class: Some("nginx".to_owned()),
        annotations: annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        certificate: certificate
            .then(|| Certificate { issuer: "letsencrypt-prod".to_owned(), kind: IssuerKind::ClusterIssuer }),
    }
}

fn internal(protocol: ExposeProtocol) -> Exposure {
    Exposure::Internal { protocol }
}

fn identity() -> Identity {
    Identity {
        key: InstallationKey::of_test(),
        owner: "Jane Doe".to_owned(),
        created_by: "jane@laptop".to_owned(),
    }
}

fn owner() -> Owner {
    Owner { name: "kftray-expose-jane-1".to_owned(), uid: "job-uid".to_owned(), nonce: "12ab".to_owned() }
}

#[test]
fn objects() {
    let mut told = String::new();
    let sticky = "traefik.ingress.kubernetes.io/service.sticky.cookie";
    let mut grpc = offer("grpc.example.com", public(&[(sticky, "true")], false));
    if let Exposure::Public { protocol, .. } = &mut grpc.1.exposure {
        *protocol = ExposeProtocol::H2c;
    }
    for offer in [
        offer("internal-api", internal(ExposeProtocol::Http)),
        offer("db", internal(ExposeProtocol::Tcp)),
        offer("MyApp.Example.com", public(&[("nginx.ingress.kubernetes.io/proxy-body-size", "0")], true)),
        grpc,
    ] {
        let plan = Plan::new(offer.0, "shop", &offer.1).unwrap();
        let objects = [Some(plan.service(&identity(), &owner())), plan.ingress(&identity(), &owner())];
        for object in objects.into_iter().flatten() {
            told.push_str(&crate::relay::deploy::yaml::to_yaml(&object));
            told.push_str("---\n");
        }
        told.push_str(&format!("# {:?} {:?}\n", plan.urls(), plan.notes()));
    }
    insta::assert_snapshot!(told.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[test]
fn names_that_cannot_be_are_told() {
    for (name, exposure, words) in [
        ("no-host", public(&[], false), "host name"),
        ("a..b", public(&[], false), "host name"),
        ("1abc", internal(ExposeProtocol::Http), "cannot be the name of a Service"),
        ("", internal(ExposeProtocol::Http), "cannot be the name of a Service"),
        ("my app", internal(ExposeProtocol::Http), "cannot be the name of a Service"),
        ("web.shop", internal(ExposeProtocol::Http), "has a dot"),
    ] {
        let offer = offer(name, exposure);
        let problem = Plan::new(offer.0, "shop", &offer.1)
            .err()
            .unwrap_or_else(|| panic!("{name} is taken for a name"));
        assert_eq!(problem.code, Code::SpecInvalid);
        assert!(problem.message.contains(words), "{}", problem.message);
    }
}

#[test]
fn a_change_takes_away_what_is_not_wanted_any_more() {
    let before = offer("a.example.com", public(&[("x/y", "1"), ("x/z", "2")], true));
    let after = offer("a.example.com", public(&[("x/z", "3")], false));
    let plan =
        |wish: &Wish| Plan::new(wish.0, "shop", &wish.1).unwrap().ingress(&identity(), &owner()).unwrap();
    let changes = changes(&plan(&before), &plan(&after));
    assert_eq!(changes["metadata"]["annotations"]["x/y"], Value::Null);
    assert!(changes["metadata"]["annotations"].get("x/y").is_some(), "null is said, not left out");
    assert_eq!(changes["metadata"]["annotations"]["x/z"], "3");
    assert_eq!(changes["metadata"]["annotations"]["cert-manager.io/cluster-issuer"], Value::Null);
    assert_eq!(changes["spec"].get("tls"), Some(&Value::Null));
    assert_eq!(changes["spec"]["ingressClassName"], "nginx");
}

#[test]
fn the_owner_of_a_taken_name_is_named() {
    let cases = [
        (
            json!({"labels": {"app.kubernetes.io/managed-by": "kftray"}, "annotations": {"kftray.app/created-by": "bob@desk"}}),
            "bob@desk",
        ),
        (json!({"annotations": {"meta.helm.sh/release-name": "shop"}}), "Helm release shop"),
        (json!({"ownerReferences": [{"kind": "Gateway", "name": "g"}]}), "gateway g"),
        (json!({"labels": {"app.kubernetes.io/managed-by": "argocd"}}), "argocd"),
        (json!({"managedFields": [{"manager": "kubectl-client-side-apply"}]}), "kubectl-client-side-apply"),
        (json!({}), "somebody else"),
    ];
    for (metadata, words) in cases {
        let mut found = json!({"metadata": metadata});
        found["metadata"]["name"] = json!("web");
        found["metadata"]["namespace"] = json!("shop");
        let problem = taken(SERVICES, &found);
        assert_eq!(problem.code, Code::NameTaken);
        assert!(problem.message.contains(words) && problem.message.contains("service shop/web"), "{problem}");
    }
}

#[test]
fn only_the_same_installation_and_alias_are_own() {
    let identity = identity();
    let offer = offer("web", internal(ExposeProtocol::Http));
    let service = Plan::new(offer.0, "shop", &offer.1).unwrap().service(&identity, &owner());
    assert!(is_own(&service, &identity, "web"));
    assert!(!is_own(&service, &identity, "web.example.com"), "the same Service name, another expose");
    let other = Identity { key: InstallationKey::ephemeral(), ..identity };
    assert!(!is_own(&service, &other, "web"));
}
