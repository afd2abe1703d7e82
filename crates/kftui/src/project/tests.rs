//! The same project in three formats, in every shape, and what is told about mistakes in each.

use super::*;

fn told(import: &Import) -> Vec<String> {
    let faults = import.faults().flat_map(|fault| {
        fault.problems().map(|problem| format!("{} {}", fault.entry, problem.message)).collect::<Vec<_>>()
    });
    let warnings = import.warnings.iter().chain(import.entries.iter().flat_map(|entry| &entry.warnings));
    let warnings = warnings.map(|warning| format!("{}: {}", warning.place, warning.message));
    faults.chain(warnings).collect()
}

fn labels(import: &Import) -> Vec<String> {
    import
        .specs()
        .map(|spec| format!("{} {}", spec.label(), spec.namespace.as_deref().unwrap_or("-")))
        .collect()
}

const JSON: &str = r#"{
  "$schema": "https://example.com/kftray.schema.json", "namespace": "shop", "colour": 1,
  "forwards": [
    {"alias": "é", "service": "web", "remote_port": 80},
    {"service": "db", "remote_port": "x y", "namespace": "data"}
  ]
}"#;

const YAML: &str = "# the team's\n$schema: x\nnamespace: shop\ncolour: 1\nforwards:\n  - alias: é\n    service: web\n    remote_port: 80\n  - service: db\n    remote_port: x y\n    namespace: data\n";

const TOML: &str = "\"$schema\" = \"x\"\nnamespace = \"shop\"\ncolour = 1\n\n[[forwards]]\nalias = \"é\"\nservice = \"web\"\nremote_port = 80\n\n[[forwards]]\nservice = \"db\"\nremote_port = \"x y\"\nnamespace = \"data\"\n";

#[test]
fn one_project_in_three_formats() {
    for (format, text, fault, warning) in [
        (Format::Json, JSON, "line 5, column 38", "line 2, column 87"),
        (Format::Yaml, YAML, "line 10, column 18", "line 4, column 1"),
        (Format::Toml, TOML, "line 12, column 15", "line 3, column 1"),
    ] {
        let import = read(text, format, &Defaults::default());
        assert_eq!(labels(&import), ["é shop"], "{format:?}");
        let told = told(&import);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with(&format!("2 {fault}: remote_port: ")), "{told:?}");
        assert!(told[1].starts_with(&format!("{warning}: unknown field `colour`")), "{told:?}");
    }
}

#[test]
fn every_shape_of_yaml() {
    let list = read(
        "- {service: a, remote_port: 1}\n- {service: b, remote_port: 2}\n",
        Format::Yaml,
        &Defaults::default(),
    );
    let one = read("service: a\nremote_port: 1\n", Format::Yaml, &Defaults::default());
    let several = read(
        "service: a\nremote_port: 1\n---\nforwards: [{service: b, remote_port: 2}]\n---\n- {service: c}\n",
        Format::Yaml,
        &Defaults::default(),
    );
    assert_eq!(labels(&list), ["svc/a:1 default", "svc/b:2 default"]);
    assert_eq!(labels(&one), ["svc/a:1 default"]);
    assert_eq!(labels(&several), ["svc/a:1 default", "svc/b:2 default"]);
    assert_eq!(several.specs().map(|spec| spec.id.0).collect::<Vec<_>>(), [1, 2]);
    assert!(told(&several)[0].starts_with("3 line 6, column 3: remote_port: is missing"), "{several:?}");
    assert!(read("", Format::Yaml, &Defaults::default()).entries.is_empty());
}

#[test]
fn json_stays_as_forgiving_as_it_was() {
    let text = "[{\"service\": \"a\", \"remote_port\": 1}, {\"service\": \"b\" \"x\"}, {\"service\": \"c\", \"remote_port\": 3},]";
    let import = read(text, Format::Json, &Defaults::default());
    assert_eq!(labels(&import), ["svc/a:1 default", "svc/c:3 default"]);
    // An object that is one entry.
    assert_eq!(
        labels(&read(r#"{"service": "a", "remote_port": 1}"#, Format::Json, &Defaults::default())).len(),
        1
    );
}

#[test]
fn a_slip_in_the_object_form_is_told_with_its_place() {
    let import = read(
        "{\n  \"forwards\": [\n    {\"service\": \"a\" \"remote_port\": 1}\n  ]\n}\n",
        Format::Json,
        &Defaults::default(),
    );
    let told = told(&import);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("1 line 3, column 21: expected `,` or `}`"), "{told:?}");
    for (format, text) in [(Format::Yaml, "forwards: [\n"), (Format::Toml, "forwards = [\n")] {
        let import = read(text, format, &Defaults::default());
        assert_eq!((import.entries.len(), import.specs().count()), (1, 0), "{format:?}");
    }
}

#[test]
fn the_nearest_file_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let deep = folder.path().join("a/b/c");
    std::fs::create_dir_all(&deep).expect("made");
    std::fs::write(folder.path().join(".kftray.json"), "[]").expect("written");
    assert_eq!(find(&deep), Some(folder.path().join(".kftray.json")));
    std::fs::write(folder.path().join("a/b/.kftray.toml"), "").expect("written");
    std::fs::create_dir(folder.path().join("a/b/c/.kftray.yaml")).expect("made");
    assert_eq!(find(&deep), Some(folder.path().join("a/b/.kftray.toml")));
    std::fs::write(folder.path().join("a/b/.kftray.yaml"), "").expect("written");
    assert_eq!(find(&deep), Some(folder.path().join("a/b/.kftray.yaml")));
}
