//! The JSON Schema of project files, for completion in editors. Made from one table of fields; a test holds the table
//! against the border that reads them, and `docs/schema/kftray.schema.json` against this.
//!
//! Draft 7, because that is what editors' YAML and TOML plug-ins understand. It describes what to write; the border
//! forgives more (ports in quotes, `"true"`, old names).

use serde_json::{Map, Value, json};

/// Where the schema is published, for `$schema`.
const ID: &str = "https://raw.githubusercontent.com/kftray/kftray/main/docs/schema/kftray.schema.json";

/// What a field takes.
enum Kind {
    Text,
    Words(&'static [&'static str]),
    Flag,
    /// A port, or 0 for any free one.
    LocalPort,
    /// A port by number or name.
    RemotePort,
    Count {
        max: u64,
    },
    Texts,
    List,
}

/// The fields of an entry, in the order in which people write them.
const FIELDS: &[(&str, Kind, &str)] = &[
    (
        "alias",
        Kind::Text,
        "What you call it. With domain_enabled also a host name; for an expose the name in the cluster.",
    ),
    (
        "workload_type",
        Kind::Words(&[
            "service",
            "pod",
            "deployment",
            "statefulset",
            "daemonset",
            "replicaset",
            "job",
            "proxy",
            "expose",
        ]),
        "What is at the other end. Default: service.",
    ),
    ("service", Kind::Text, "Name of the Service (workload_type service)."),
    (
        "target",
        Kind::Text,
        "A pod's name or a label selector such as app=web (workload_type pod), or the workload's name.",
    ),
    ("namespace", Kind::Text, "Namespace. Default: the file's, else `default`."),
    (
        "context",
        Kind::Text,
        "Context of the kubeconfig. Without it, or with @current, the current one is followed.",
    ),
    (
        "kubeconfig",
        Kind::Text,
        "Kubeconfig file, or several separated as in PATH. Asked about once in a project file.",
    ),
    ("protocol", Kind::Words(&["tcp", "udp"]), "Default: tcp."),
    (
        "local_port",
        Kind::LocalPort,
        "Port on this machine; 0 or absent is any free one. For an expose: your program's port.",
    ),
    ("remote_port", Kind::RemotePort, "The Service's port, or the container's; a number or a name."),
    (
        "local_address",
        Kind::Text,
        "Where to listen; several separated by commas. Default: localhost. Beyond loopback is asked about once.",
    ),
    ("remote_address", Kind::Text, "Host, or host:port, that the cluster reaches (workload_type proxy)."),
    (
        "via",
        Kind::Words(&["direct", "relay", "auto"]),
        "By port-forward, by the relay, or by the relay where one is. Default: direct.",
    ),
    ("auto_loopback_address", Kind::Flag, "Listen on a loopback address of its own."),
    ("domain_enabled", Kind::Flag, "Make the alias a host name on this machine."),
    ("tags", Kind::Texts, "Marks for grouping and filtering, such as {\"team\": \"blue\"}."),
    ("idle_minutes", Kind::Count { max: 525_600 }, "End after so many minutes without traffic; 0: never."),
    ("ttl_minutes", Kind::Count { max: 525_600 }, "End so many minutes after the start; 0: never."),
    ("http_logs_enabled", Kind::Flag, "Record HTTP requests."),
    (
        "http_logs_max_file_size",
        Kind::Count { max: 104_857_600 },
        "Largest log file in bytes. Default: 10485760.",
    ),
    (
        "http_logs_retention_days",
        Kind::Count { max: 365 },
        "Days after which a log file is removed. Default: 7.",
    ),
    ("http_logs_auto_cleanup", Kind::Flag, "Remove old log files. Default: true."),
    (
        "exposure_type",
        Kind::Words(&["internal", "public"]),
        "Who reaches an expose: the cluster, or the internet.",
    ),
    (
        "exposure_protocol",
        Kind::Words(&["http", "tcp", "h2c"]),
        "What an expose carries; tcp only where it is internal, h2c for gRPC. Default: http.",
    ),
    ("exposure_allow", Kind::List, "Addresses and networks that may call an expose. Default: all."),
    (
        "exposure_basic_auth",
        Kind::Text,
        "user:password that callers of an expose must give. Better not in a repository.",
    ),
    (
        "exposure_bearer_token",
        Kind::Text,
        "Token that callers of an expose must give. Better not in a repository.",
    ),
    ("exposure_expires_after", Kind::Text, "End an expose after so long, such as 8h."),
    ("cert_manager_enabled", Kind::Flag, "TLS by cert-manager for a public expose."),
    ("cert_issuer", Kind::Text, "cert-manager issuer. Default: letsencrypt-prod."),
    ("cert_issuer_kind", Kind::Words(&["ClusterIssuer", "Issuer"]), "Its kind. Default: ClusterIssuer."),
    ("ingress_class", Kind::Text, "ingressClassName of a public expose."),
    ("ingress_annotations", Kind::Texts, "Annotations of the Ingress."),
];

/// The schema.
pub(crate) fn schema() -> Value {
    let properties: Map<String, Value> =
        FIELDS.iter().map(|(name, kind, about)| ((*name).to_owned(), field(kind, about))).collect();
    let shared = |about: &str| json!({ "type": "string", "description": about });
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": ID,
        "title": "kftray forwards",
        "description": "Forwards of a project (.kftray.yaml, .kftray.json, .kftray.toml) or of a file for `kftui run` and `kftui import`.",
        "oneOf": [
            { "$ref": "#/definitions/project" },
            { "type": "array", "items": { "$ref": "#/definitions/forward" } },
            { "$ref": "#/definitions/forward" },
        ],
        "definitions": {
            "project": {
                "type": "object",
                "required": ["forwards"],
                "additionalProperties": false,
                "properties": {
                    "$schema": { "type": "string" },
                    "namespace": shared("Namespace of every forward that names none."),
                    "context": shared("Context of every forward that names none."),
                    "kubeconfig": shared("Kubeconfig of every forward that names none. Asked about once."),
                    "forwards": { "type": "array", "items": { "$ref": "#/definitions/forward" } },
                },
            },
            "forward": {
                "type": "object",
                "not": { "required": ["forwards"] },
                "additionalProperties": false,
                "properties": properties,
            },
        },
    })
}

fn field(kind: &Kind, about: &str) -> Value {
    let mut schema = match kind {
        Kind::Text => json!({ "type": "string" }),
        Kind::Words(words) => json!({ "enum": words }),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::LocalPort => json!({ "type": "integer", "minimum": 0, "maximum": 65_535 }),
        Kind::RemotePort => json!({ "oneOf": [
            { "type": "integer", "minimum": 1, "maximum": 65_535 },
            { "type": "string", "pattern": "^([a-z0-9-]{1,15}|[0-9]{1,5})$" },
        ] }),
        Kind::Count { max } => json!({ "type": "integer", "minimum": 0, "maximum": max }),
        Kind::Texts => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Kind::List => json!({ "type": "array", "items": { "type": "string" } }),
    };
    schema["description"] = about.into();
    schema
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kftray_commons::border::{Defaults, import};

    use super::*;

    /// `UPDATE_SCHEMA=1` writes it.
    #[test]
    fn the_published_one_is_this_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema/kftray.schema.json");
        let text = format!("{:#}\n", schema());
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(&path, &text).expect("written");
        }
        let published = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(published == text, "docs/schema/kftray.schema.json is old: run with UPDATE_SCHEMA=1");
    }

    /// A field that the border does not know would be ignored with a warning.
    #[test]
    fn the_border_knows_every_field() {
        for (name, _, _) in FIELDS {
            let entry = json!({ "service": "web", "remote_port": 80, *name: null });
            let read = import(&entry.to_string(), &Defaults::default());
            let warnings = &read.entries[0].warnings;
            assert!(
                warnings.iter().all(|one| !one.message.contains("unknown field")),
                "{name}: {warnings:?}"
            );
        }
    }

    /// What the border knows and people may write is in the table; `bind_address` is an older name.
    #[test]
    fn no_field_of_the_border_is_missing() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kftray-commons/src/border/fields.rs");
        let source = std::fs::read_to_string(path).expect("the border's fields");
        let known =
            source.split_once("const KNOWN").and_then(|(_, rest)| rest.split_once("];")).expect("the list").0;
        let names: Vec<&str> = known.split('"').skip(1).step_by(2).collect();
        assert!(names.len() > 25);
        for name in names.into_iter().filter(|name| !matches!(*name, "id" | "bind_address")) {
            assert!(FIELDS.iter().any(|(known, ..)| *known == name), "{name} is not in the schema");
        }
    }

    /// And every word of a field with few words.
    #[test]
    fn the_border_knows_every_word() {
        for (name, kind, _) in FIELDS {
            let Kind::Words(words) = kind else { continue };
            for word in *words {
                let entry = json!({ "alias": "a.example.com", "service": "web", "target": "web", "remote_address": "x",
                    "local_port": 1, "remote_port": 80, *name: word });
                let read = import(&entry.to_string(), &Defaults::default());
                assert_eq!(read.faults().count(), 0, "{name}: {word}: {read:?}");
            }
        }
    }
}
