//! The border's leniency and its answers, case by case, and that no text can make it panic or lose an entry.

use kftray_commons::border::{Defaults, Import, import};
use kftray_commons::spec::{
    ExposeProtocol, Exposure, ForwardSpec, HttpLogs, LocalPort, Pods, Protocol, Workload,
};
use kftray_commons::{Access, Code, ContextRef, RemotePort, Via, WorkloadKind};
use proptest::prelude::*;

fn read(text: &str) -> Import {
    import(text, &Defaults::default())
}

fn accept(text: &str) -> ForwardSpec {
    let mut found = read(text);
    assert_eq!(found.entries.len(), 1, "{text}");
    match found.entries.remove(0).result {
        Ok(spec) => spec,
        Err(fault) => panic!("{text}: {fault:?}"),
    }
}

/// The faults of the only entry, as `line:column field: message | remedy`.
fn faults(text: &str) -> Vec<String> {
    let found = read(text);
    let faults = found.faults().flat_map(|entry| &entry.faults);
    faults
        .map(|fault| {
            let field = fault.field.as_deref().unwrap_or("-");
            let place = fault.place;
            format!("{}:{} {field}: {} | {}", place.line, place.column, fault.message, fault.remedy)
        })
        .collect()
}

fn port(number: u16) -> RemotePort {
    RemotePort::Number(number.try_into().expect("not 0"))
}

#[test]
fn ports_in_every_form() {
    for (local, expected) in [
        ("8080", 8080),
        ("\"8080\"", 8080),
        ("\" 8080 \"", 8080),
        ("8080.0", 8080),
        ("0", 0),
        ("\"0\"", 0),
        ("null", 0),
        ("\"\"", 0),
    ] {
        let spec = accept(&format!(r#"{{"service":"web","local_port":{local},"remote_port":"80"}}"#));
        assert_eq!(spec.listen.port, LocalPort::from(expected), "{local}");
        assert_eq!(spec.workload, Workload::Service { name: "web".into(), port: port(80) });
    }
    let named = accept(r#"{"service":"web","remote_port":"http"}"#);
    assert_eq!(
        named.workload,
        Workload::Service { name: "web".into(), port: RemotePort::Name("http".into()) }
    );
    assert_eq!(named.listen.port, LocalPort::Random);
}

#[test]
fn flags_in_every_form() {
    for (text, expected) in [
        ("true", true),
        ("True", true),
        ("\"TRUE\"", true),
        ("1", true),
        ("\"false\"", false),
        ("null", false),
    ] {
        let spec = accept(&format!(r#"{{"service":"web","remote_port":80,"auto_loopback_address":{text}}}"#));
        assert_eq!(spec.listen.auto_loopback, expected, "{text}");
    }
}

#[test]
fn null_everywhere_but_where_something_is_needed() {
    let spec = accept(
        r#"{"id":null,"service":"web","namespace":null,"local_port":null,"remote_port":80,"context":null,
            "workload_type":null,"protocol":null,"remote_address":null,"local_address":null,
            "auto_loopback_address":null,"alias":null,"domain_enabled":null,"kubeconfig":null,"target":null,
            "http_logs_enabled":null,"http_logs_max_file_size":null,"http_logs_retention_days":null,
            "http_logs_auto_cleanup":null,"exposure_type":null,"exposure_protocol":null,"cert_manager_enabled":null,
            "cert_issuer":null,"cert_issuer_kind":null,"ingress_class":null,"ingress_annotations":null,"tags":null}"#,
    );
    let mut plain = accept(r#"{"service":"web","remote_port":80}"#);
    plain.id = spec.id;
    assert_eq!(spec, plain);
    assert_eq!(spec.http_logs, HttpLogs::default());
}

#[test]
fn placeholders_of_the_reference_are_nothing() {
    let spec = accept(
        r#"{"service":"web","namespace":"default-namespace","remote_port":80,"context":"current-context",
            "workload_type":"default-workload","protocol":"protocol","remote_address":"default-remote-address",
            "alias":"default-alias","kubeconfig":"default","target":"default-target"}"#,
    );
    assert_eq!(spec.namespace.as_deref(), Some("default"));
    assert_eq!(spec.cluster.context, ContextRef::Current);
    assert_eq!(spec.cluster.kubeconfig, None);
    assert_eq!(spec.alias, None);
    assert_eq!(
        faults(r#"{"service":"default-service","remote_port":80}"#),
        ["1:12 service: is missing; it says which service | Add \"service\": \"web\"."]
    );
}

#[test]
fn defaults_fill_what_an_entry_does_not_say() {
    let defaults = Defaults {
        namespace: "team".into(),
        context: Some("dev".into()),
        kubeconfig: Some("a.yaml".into()),
        hosts: vec!["0.0.0.0".into()],
    };
    let found = import(
        r#"[{"service":"web","remote_port":80},
            {"service":"web","remote_port":80,"context":"@current","namespace":"x","kubeconfig":"b","local_address":"::1"}]"#,
        &defaults,
    );
    let specs: Vec<_> = found.specs().collect();
    assert_eq!(specs[0].namespace.as_deref(), Some("team"));
    assert_eq!(specs[0].cluster.context, ContextRef::Named("dev".into()));
    assert_eq!(specs[0].cluster.kubeconfig.as_deref(), Some("a.yaml"));
    assert_eq!(specs[0].listen.hosts, ["0.0.0.0"]);
    assert_eq!(specs[1].namespace.as_deref(), Some("x"));
    assert_eq!(specs[1].cluster.context, ContextRef::Current);
    assert_eq!(specs[1].cluster.kubeconfig.as_deref(), Some("b"));
    assert_eq!(specs[1].listen.hosts, ["::1"]);
}

#[test]
fn pods_by_name_selector_and_owner() {
    let pods = |text: &str| accept(text).workload;
    let name = Workload::Pod { pods: Pods::Name("web-0".into()), port: port(80) };
    assert_eq!(pods(r#"{"workload_type":"pod","target":"web-0","remote_port":80}"#), name);
    assert_eq!(pods(r#"{"workload_type":"Pod","target":"pod/web-0","remote_port":80}"#), name);
    assert_eq!(pods(r#"{"workload_type":"pod","service":"web-0","remote_port":80}"#), name);
    assert_eq!(
        pods(r#"{"workload_type":"pod","target":"app in (a, b)","remote_port":80}"#),
        Workload::Pod { pods: Pods::Selector("app in (a, b)".into()), port: port(80) }
    );
    assert_eq!(
        pods(r#"{"workload_type":"statefulset","target":"db","remote_port":"pg"}"#),
        Workload::Owner {
            owner: WorkloadKind::StatefulSet,
            name: "db".into(),
            port: RemotePort::Name("pg".into())
        }
    );
}

#[test]
fn proxy_addresses() {
    let proxy = |text: &str| accept(&format!(r#"{{"workload_type":"proxy",{text}}}"#)).workload;
    let at = |host: &str, number: u16| Workload::Proxy {
        host: host.into(),
        port: number.try_into().expect("not 0"),
    };
    assert_eq!(proxy(r#""remote_address":"db:5432","remote_port":1"#), at("db", 5432));
    assert_eq!(proxy(r#""remote_address":"db","remote_port":"5432""#), at("db", 5432));
    assert_eq!(proxy(r#""remote_address":"https://api/x""#), at("api", 443));
    assert_eq!(proxy(r#""remote_address":"https://api/x","remote_port":8443"#), at("api", 8443));
    assert_eq!(proxy(r#""remote_address":"[fd00::1]:53","protocol":"udp""#), at("fd00::1", 53));
    // A UDP service with an address of its own is a relay in the reference.
    let udp = accept(r#"{"service":"x","protocol":"UDP","remote_address":"dns.internal","remote_port":53}"#);
    assert_eq!((udp.workload, udp.protocol), (at("dns.internal", 53), Protocol::Udp));
}

#[test]
fn expose_forms() {
    let expose = |text: &str| {
        let workload =
            accept(&format!(r#"{{"workload_type":"expose","alias":"app","local_port":3000,{text}}}"#))
                .workload;
        let Workload::Expose(expose) = workload else { panic!("{workload:?}") };
        expose.exposure
    };
    let tcp = Exposure::Internal { protocol: ExposeProtocol::Tcp };
    assert_eq!(expose(r#""exposure_type":"cluster","exposure_protocol":"tcp""#), tcp);
    let h2c = Exposure::Internal { protocol: ExposeProtocol::H2c };
    assert_eq!(expose(r#""exposure_protocol":"grpc""#), h2c);
    let Exposure::Public { protocol, .. } = expose(r#""exposure_type":"public","exposure_protocol":"h2c""#)
    else {
        panic!("not public")
    };
    assert_eq!(protocol, ExposeProtocol::H2c);
    for annotations in [r#""{\"a\":\"b\",\"n\":1}""#, r#"{"a":"b","n":1}"#] {
        let text = format!(r#""exposure_type":"public","ingress_annotations":{annotations}"#);
        let Exposure::Public { annotations, certificate, .. } = expose(&text) else { panic!("not public") };
        assert_eq!(certificate, None);
        assert_eq!(
            annotations.into_iter().collect::<Vec<_>>(),
            [("a".into(), "b".into()), ("n".into(), "1".into())]
        );
    }
}

#[test]
fn the_way_of_tcp() {
    let via = |text: &str| accept(&format!(r#"{{"service":"web","remote_port":80{text}}}"#)).via;
    assert_eq!(via(""), Via::Direct);
    assert_eq!(via(r#","via":null"#), Via::Direct);
    assert_eq!(via(r#","via":"Relay""#), Via::Relay);
    assert_eq!(via(r#","via":"auto""#), Via::Auto);
    // A spec stored before there was a choice.
    let spec = accept(r#"{"service":"web","remote_port":80,"via":"relay"}"#);
    let mut stored = serde_json::to_value(&spec).expect("JSON");
    stored.as_object_mut().expect("an object").remove("via");
    assert_eq!(serde_json::from_value::<ForwardSpec>(stored).expect("a spec").via, Via::Direct);
    for (text, why) in [
        (r#"{"workload_type":"proxy","remote_address":"db:1","via":"direct"}"#, "proxy"),
        (r#"{"service":"dns","remote_port":53,"protocol":"udp","via":"direct"}"#, "UDP"),
        (r#"{"workload_type":"expose","alias":"a","local_port":1,"via":"relay"}"#, "expose"),
    ] {
        let found = read(text);
        assert_eq!(found.specs().map(|spec| spec.via).collect::<Vec<_>>(), [Via::Direct]);
        let warnings = &found.entries[0].warnings;
        assert!(warnings.len() == 1 && warnings[0].message.contains(why), "{warnings:?}");
    }
}

#[test]
fn local_programs_by_name_address_and_url() {
    let program = |text: &str| {
        let spec = accept(&format!(r#"{{"workload_type":"expose","alias":"app",{text}}}"#));
        let Workload::Expose(expose) = spec.workload else { panic!("no expose") };
        (expose.local_host, expose.local_port.get(), expose.local_tls)
    };
    let at = |host: &str, port, tls| (host.to_owned(), port, tls);
    assert_eq!(program(r#""local_port":3000"#), at("localhost", 3000, false));
    assert_eq!(program(r#""local_port":3000,"local_address":"dev.test""#), at("dev.test", 3000, false));
    assert_eq!(program(r#""local_port":3000,"bind_address":"[::1]""#), at("::1", 3000, false));
    assert_eq!(
        program(r#""local_port":3000,"local_address":"https://localhost""#),
        at("localhost", 3000, true)
    );
    assert_eq!(program(r#""local_address":"HTTPS://[::1]:8443/""#), at("::1", 8443, true));
    assert_eq!(program(r#""local_port":80,"local_address":"http://a:80""#), at("a", 80, false));
}

#[test]
fn rules_for_callers() {
    let access = |text: &str| {
        let spec = accept(&format!(r#"{{"workload_type":"expose","alias":"app","local_port":1{text}}}"#));
        let Workload::Expose(expose) = spec.workload else { panic!("no expose") };
        expose.access
    };
    assert_eq!(access(""), Access::default());
    assert!(access("").is_open());
    let all = r#","exposure_basic_auth":"ann:s3cret","exposure_bearer_token":"t0ken",
        "exposure_allow":["203.0.113.7","10.0.0.0/8"],"exposure_expires_after":"1h30m""#;
    let found = access(all);
    assert!(found.wants_credentials() && found.expires_after == Some(5_400) && found.allow.len() == 2);
    assert!(found.allows("10.9.9.9".parse().expect("ip")) && !found.allows("192.0.2.1".parse().expect("ip")));
    assert_eq!(
        access(r#","exposure_allow":" 203.0.113.7 , 10.0.0.0/8","exposure_expires_after":60"#).allow,
        found.allow
    );
    // What cannot be meant must not open the door.
    for bad in [
        r#","exposure_allow":[]"#,
        r#","exposure_allow":["everybody"]"#,
        r#","exposure_allow":[10]"#,
        r#","exposure_basic_auth":"ann""#,
        r#","exposure_bearer_token":"a b""#,
        r#","exposure_expires_after":"soon""#,
        r#","exposure_expires_after":0"#,
        r#","exposure_protocol":"tcp","exposure_basic_auth":"a:b""#,
        r#","local_address":"http://localhost:9""#,
        r#","local_address":"https://""#,
    ] {
        let text = format!(r#"{{"workload_type":"expose","alias":"app","local_port":1{bad}}}"#);
        let found = read(&text);
        assert_eq!(found.specs().count(), 0, "{bad}");
        let told = format!("{:?}", found.faults().collect::<Vec<_>>());
        assert!(!told.contains("s3cret") && !told.contains("a:b"), "{told}");
    }
}

#[test]
fn tags_as_object_and_text() {
    for tags in [r#"{"Team":"blue","n":1}"#, r#""team=blue, n=1""#] {
        let spec = accept(&format!(r#"{{"service":"web","remote_port":80,"tags":{tags}}}"#));
        assert_eq!(spec.tags.iter().collect::<Vec<_>>(), [("n", "1"), ("team", "blue")]);
    }
}

#[test]
fn every_fault_names_place_and_remedy() {
    let text = "[\n  {\n    \"service\": \"Web\",\n    \"local_port\": \"80a\",\n    \"remote_port\": 70000,\n    \
                \"protocol\": \"tpc\",\n    \"tags\": {\"a b\": \"1\"}\n  }\n]";
    insta::assert_snapshot!(faults(text).join("\n"));
}

#[test]
fn missing_fields_are_told_where_the_entry_begins() {
    insta::assert_snapshot!(faults("\n  {\"alias\": \"x\"}").join("\n"));
    insta::assert_snapshot!(faults(r#"{"workload_type":"pod"}"#).join("\n"));
    insta::assert_snapshot!(faults(r#"{"workload_type":"proxy"}"#).join("\n"));
    insta::assert_snapshot!(faults(r#"{"workload_type":"expose"}"#).join("\n"));
}

#[test]
fn wrong_values() {
    let bad = [
        r#"{"service":"web","remote_port":0}"#,
        r#"{"service":"web","remote_port":-1}"#,
        r#"{"service":"web","remote_port":80.5}"#,
        r#"{"service":"web","remote_port":true}"#,
        r#"{"service":"web","remote_port":"HTTP"}"#,
        r#"{"service":["web"],"remote_port":80}"#,
        r#"{"service":"web","remote_port":80,"local_port":"http"}"#,
        r#"{"service":"web","remote_port":80,"domain_enabled":"maybe"}"#,
        r#"{"service":"web","remote_port":80,"workload_type":"servise"}"#,
        r#"{"service":"web","remote_port":80,"local_address":"127.0.0.1:80"}"#,
        r#"{"service":"web","remote_port":80,"bind_address":"a b"}"#,
        r#"{"service":"web","remote_port":80,"http_logs_max_file_size":0}"#,
        r#"{"service":"web","remote_port":80,"http_logs_retention_days":400000}"#,
        r#"{"service":"web","remote_port":80,"tags":[1]}"#,
        r#"{"workload_type":"pod","target":"app in (a","remote_port":80}"#,
        r#"{"workload_type":"proxy","remote_address":"db:x","remote_port":80}"#,
        r#"{"workload_type":"proxy","remote_address":"db"}"#,
        r#"{"workload_type":"expose","alias":"app","local_port":0}"#,
        r#"{"workload_type":"expose","alias":"app","local_port":1,"exposure_type":"public","exposure_protocol":"tcp"}"#,
        r#"{"workload_type":"expose","alias":"app","local_port":1,"protocol":"udp"}"#,
        r#"{"workload_type":"expose","alias":"app","local_port":1,"exposure_type":"public","ingress_annotations":"x"}"#,
        "42",
        "{\"service\": 'web'}",
        "{\"service\": \"web\" // the shop\n}",
        "[{\"service\":\"web\",\"remote_port\":80}",
    ];
    let all: Vec<String> =
        bad.iter().map(|text| format!("{text}\n  {}", faults(text).join("\n  "))).collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn warnings() {
    let text = "[{\"service\":\"web\",\"remote_port\":80,\"localPort\":1,\"colour\":1,\"alias\":\"a\",\"alias\":\"b\",},,\n\
                {\"service\":\"web\",\"remote_port\":80,\"remote_address\":\"x\"}]";
    let found = read(text);
    assert_eq!(found.specs().count(), 2);
    let of_entries = found.entries.iter().flat_map(|entry| &entry.warnings);
    let all: Vec<String> = of_entries
        .chain(&found.warnings)
        .map(|warning| format!("{}: {}", warning.place, warning.message))
        .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn one_bad_entry_does_not_lose_the_others() {
    let text = r#"[
  {"alias": "a", "service": "web", "remote_port": 80},
  {"alias": "b", "service": "web", "remote_port": "??"},
  {"alias": "c", "service": "web" "remote_port": 80},
  {"alias": "d", "service": "web", "remote_port": 80},
  {"alias": "e", "service": "web", "remote_port": 80
]"#;
    let found = read(text);
    let good: Vec<_> = found.specs().map(ForwardSpec::label).collect();
    assert_eq!(good, ["a", "d"]);
    let problems: Vec<_> = found
        .faults()
        .flat_map(|fault| fault.problems().map(move |problem| (fault.entry, problem)))
        .collect();
    assert!(problems.iter().all(|(_, problem)| problem.code == Code::SpecInvalid));
    let told: Vec<String> = problems.iter().map(|(entry, problem)| format!("{entry}: {problem}")).collect();
    insta::assert_snapshot!(told.join("\n"));
}

/// JSON values of any shape, with the real field names mixed in so that the mapping is reached.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let key = prop_oneof![
        prop::sample::select(vec![
            "id",
            "service",
            "namespace",
            "local_port",
            "remote_port",
            "context",
            "workload_type",
            "protocol",
            "remote_address",
            "local_address",
            "bind_address",
            "auto_loopback_address",
            "alias",
            "domain_enabled",
            "kubeconfig",
            "target",
            "http_logs_enabled",
            "http_logs_max_file_size",
            "http_logs_retention_days",
            "exposure_type",
            "exposure_protocol",
            "cert_manager_enabled",
            "cert_issuer",
            "cert_issuer_kind",
            "ingress_class",
            "ingress_annotations",
            "tags",
        ])
        .prop_map(str::to_owned),
        ".{0,6}",
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        (0_u32..70_000).prop_map(Into::into),
        prop::sample::select(vec![
            "web",
            "pod",
            "proxy",
            "expose",
            "service",
            "udp",
            "tcp",
            "public",
            "app=web",
            "8080",
            "db:5432",
            "localhost",
            "default-service",
            "@current",
            "http",
            "TRUE",
            "a in (b)",
        ])
        .prop_map(Into::into),
        ".{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 40, 12, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::Array),
            prop::collection::vec((key.clone(), inner), 0..12)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Entries that are mostly right.
fn plausible() -> impl Strategy<Value = serde_json::Value> {
    let kind = prop::sample::select(vec!["service", "pod", "proxy", "expose", "deployment", "SERVICE"]);
    let target = prop::sample::select(vec!["web-0", "app=web", "app in (a,b)", "pod/x"]);
    (kind, target, 0_u16.., 1_u16.., prop::option::of("[a-z]{1,8}"), any::<bool>(), any::<bool>()).prop_map(
        |(kind, target, local, remote, alias, flag, udp)| {
            serde_json::json!({
                "workload_type": kind, "service": "web", "target": target, "remote_address": "db.internal",
                "local_port": local.to_string(), "remote_port": remote, "alias": alias,
                "domain_enabled": flag, "protocol": if udp { "udp" } else { "tcp" },
                "tags": {"team": "blue"}, "exposure_type": if flag { "public" } else { "internal" },
            })
        },
    )
}

proptest! {
    // Failing cases are written out as plain tests instead of a file of seeds.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(text in "(?s).{0,200}") {
        let found = read(&text);
        for entry in &found.entries {
            prop_assert!(entry.place.line >= 1 && entry.place.column >= 1);
        }
    }

    #[test]
    fn no_torn_json_panics(value in json(), cut in 0_usize..400) {
        let text = value.to_string();
        let cut = text.char_indices().map(|(at, _)| at).take_while(|at| *at <= cut).last().unwrap_or(0);
        let _found: Import = read(&text[..cut]);
    }

    #[test]
    fn every_element_of_a_list_is_one_entry(values in prop::collection::vec(json(), 0..6)) {
        // A list in a list is the one shape that is not an entry by itself.
        let text = serde_json::to_string(&values).expect("JSON");
        let found = read(&text);
        prop_assert_eq!(found.entries.len(), values.len());
        for entry in &found.entries {
            match &entry.result {
                Ok(spec) => prop_assert_eq!(spec.check(), vec![]),
                Err(fault) => prop_assert!(!fault.faults.is_empty()),
            }
        }
    }

    #[test]
    fn accepted_specs_survive_their_own_json(value in prop_oneof![json(), plausible()]) {
        for spec in read(&value.to_string()).specs() {
            let text = serde_json::to_string(spec).expect("JSON");
            let again: ForwardSpec = serde_json::from_str(&text).expect("our own JSON");
            prop_assert_eq!(spec, &again);
        }
    }

    #[test]
    fn plausible_entries_are_accepted(value in plausible()) {
        let found = read(&value.to_string());
        let expose = value["workload_type"] == "expose"
            && (value["alias"].is_null() || value["protocol"] == "udp" || value["local_port"] == "0");
        let owner = value["workload_type"] == "deployment" && value["target"] != "web-0";
        prop_assert_eq!(found.specs().count(), usize::from(!expose && !owner), "{:?}", found);
    }

    #[test]
    fn broken_between_good_ones(junk in "[a-z:\"',.0-9 ]{0,20}") {
        let good = "  {\"service\": \"web\", \"remote_port\": 80}";
        let text = format!("[\n{good},\n  {{\"x\": {junk}}},\n{good}\n]");
        let found = read(&text);
        prop_assert!(found.specs().count() >= 2, "{:?}", found);
    }
}

mod back {
    //! From specs back to entries.

    use kftray_commons::ForwardId;
    use kftray_commons::border::{compatible, object, read_object};
    use serde_json::{Map, Value, json};

    use super::*;

    fn entry(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn what_is_usual_is_not_said() {
        let spec = accept(
            r#"{"service":"web","remote_port":80,"kubeconfig":"default","local_address":"localhost"}"#,
        );
        let expected = json!({"workload_type": "service", "service": "web", "remote_port": 80, "namespace": "default",
            "context": "@current", "protocol": "tcp"});
        assert_eq!(Value::Object(object(&spec, &Map::new())), expected);
    }

    #[test]
    fn unknown_fields_come_back_and_known_ones_win() {
        let text = r#"{"workload_type":"pod","target":"app=x","service":"web","remote_port":80,"id":7,"via_tomorrow":[1,{"a":null}]}"#;
        let read = read(text).entries.remove(0);
        assert_eq!(
            Value::Object(read.extra.clone()),
            json!({"via_tomorrow": [1, {"a": null}], "service": "web"})
        );
        let written = object(&read.result.clone().expect("accepted"), &read.extra);
        assert_eq!(written["via_tomorrow"], json!([1, {"a": null}]));
        assert_eq!(written["service"], "web");
        let again = read_object(&written, ForwardId(1), &Defaults::open());
        assert_eq!((again.result, again.extra), (read.result, read.extra));

        let spec = accept(r#"{"service":"web","remote_port":80}"#);
        let extra = entry(json!({"service": "stale", "remote_port": 1}));
        assert_eq!(object(&spec, &extra)["service"], "web");
    }

    #[test]
    fn a_selector_of_one_key_is_not_taken_for_a_pod() {
        let mut spec = accept(r#"{"workload_type":"pod","target":"app=x","remote_port":80}"#);
        spec.workload = Workload::Pod { pods: Pods::Selector("app".into()), port: port(80) };
        let written = object(&spec, &Map::new());
        assert_eq!(written["target"], "app,");
        assert_eq!(read_object(&written, spec.id, &Defaults::open()).result, Ok(spec.clone()));
        assert_eq!(compatible(&spec, &Map::new()).expect("possible").object["target"], "app,app");
    }

    #[test]
    fn the_context_may_choose_the_namespace() {
        let mut spec = accept(r#"{"service":"web","remote_port":80}"#);
        spec.namespace = None;
        let written = object(&spec, &Map::new());
        assert!(!written.contains_key("namespace"));
        assert_eq!(read_object(&written, spec.id, &Defaults::open()).result, Ok(spec.clone()));
        // The reference needs one.
        assert_eq!(compatible(&spec, &Map::new()).expect("possible").object["namespace"], "default");
    }

    #[test]
    fn fields_of_the_relay_survive() {
        for text in [
            r#"{"service":"web","remote_port":80,"via":"relay"}"#,
            r#"{"service":"web","remote_port":80,"via":"auto"}"#,
            r#"{"workload_type":"expose","alias":"app","local_address":"https://[::1]:8443"}"#,
            r#"{"workload_type":"expose","alias":"app","local_port":3000,"local_address":"https://localhost",
                "exposure_basic_auth":"user:password","exposure_bearer_token":"t","exposure_allow":["10.0.0.0/8","::1"],
                "exposure_expires_after":"8h30m"}"#,
        ] {
            let spec = accept(text);
            let written = object(&spec, &Map::new());
            assert_eq!(
                read_object(&written, spec.id, &Defaults::open()).result,
                Ok(spec),
                "{text}: {written:?}"
            );
        }
        let told = |text: &str| compatible(&accept(text), &Map::new());
        let limited =
            r#"{"workload_type":"expose","alias":"app","local_port":3000,"exposure_allow":["::1"]}"#;
        let reason = told(limited).expect_err("left out");
        assert_eq!(reason, "its limits on who may call, and for how long, are kept by this program only");
        let tls = r#"{"workload_type":"expose","alias":"app","local_port":3000,"local_address":"https://localhost"}"#;
        let tls = told(tls).expect("possible");
        assert_eq!((&tls.object["local_address"], tls.warnings.len()), (&json!("localhost"), 1));
    }

    #[test]
    fn what_the_reference_cannot_read_is_told() {
        let told = |text: &str| compatible(&accept(text), &Map::new());
        let owner = told(r#"{"workload_type":"job","target":"x","remote_port":80}"#).expect_err("left out");
        assert_eq!(owner, "it forwards to a job by name, which only this program can");
        let named = told(r#"{"service":"x","remote_port":"http"}"#).expect_err("left out");
        assert_eq!(named, "its remote port is the name `http`, which only this program can look up");
        let hosts =
            told(r#"{"service":"x","remote_port":80,"local_address":"127.0.0.1,::1"}"#).expect("possible");
        assert_eq!((&hosts.object["local_address"], hosts.warnings.len()), (&json!("127.0.0.1"), 1));
        let pod = told(r#"{"workload_type":"pod","target":"web-0","remote_port":80}"#).expect("possible");
        assert_eq!(pod.warnings, ["the pod's name `web-0` is taken for a label there"]);
        let proxy = told(r#"{"workload_type":"proxy","remote_address":"[fd00::1]:80"}"#).expect("possible");
        assert_eq!(proxy.warnings.len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_accepted_entry_survives_the_way_back(value in prop_oneof![json(), plausible()]) {
            for entry in read(&value.to_string()).entries {
                let Ok(spec) = entry.result else { continue };
                let written = object(&spec, &entry.extra);
                let again = read_object(&written, spec.id, &Defaults::open());
                prop_assert_eq!(again.result.as_ref(), Ok(&spec), "{:?}", written);
                prop_assert_eq!(&again.extra, &entry.extra);
                prop_assert_eq!(again.warnings.len(), entry.extra.keys().filter(|name| *name != "service").count());
                if let Ok(compatible) = compatible(&spec, &entry.extra) {
                    let text = Value::Object(compatible.object).to_string();
                    let again = accept(&text);
                    prop_assert_eq!(again.workload.kind(), spec.workload.kind());
                    prop_assert_eq!((again.namespace, again.cluster, again.alias), (spec.namespace, spec.cluster, spec.alias));
                }
            }
        }
    }
}
