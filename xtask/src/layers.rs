//! Which crate may depend on which (the picture in ARCHITECTURE): arrows point down only.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command::{command, output};
use crate::paths::root;

/// A crate and the workspace crates it may depend on in what it ships (dependencies of tests are free).
const ALLOWED: [(&str, &[&str]); 10] = [
    ("kftray-commons", &[]),
    ("kftray-spdy", &[]),
    ("kftray-relay-proto", &[]),
    ("kftray-server", &["kftray-relay-proto"]),
    ("kftray-portforward", &["kftray-commons"]),
    ("kftray-kube", &["kftray-commons", "kftray-portforward", "kftray-relay-proto", "kftray-spdy"]),
    ("kftray-client", &["kftray-commons"]),
    ("kftray-host", &["kftray-commons", "kftray-kube", "kftray-portforward"]),
    ("kftray-testkit", &["kftray-commons", "kftray-spdy"]),
    (
        "kftui",
        &[
            "kftray-client",
            "kftray-commons",
            "kftray-host",
            "kftray-kube",
            "kftray-portforward",
            "kftray-testkit",
        ],
    ),
];

/// The workshop: nothing is shipped from these, and nothing shipped may depend on them.
const FREE: [&str; 3] = ["kftray-e2e", "kftray-benches", "xtask"];

/// What a pure crate must not know: the runtime and the cluster.
const KEPT_OUT: [(&str, &[&str]); 4] = [
    ("kftray-commons", &["tokio", "kube", "k8s-openapi", "hyper"]),
    ("kftray-spdy", &["tokio", "kube", "k8s-openapi", "hyper", "socket2"]),
    ("kftray-relay-proto", &["tokio", "kube", "k8s-openapi", "hyper", "socket2"]),
    ("kftray-portforward", &["kube", "k8s-openapi", "hyper", "rusqlite"]),
];

/// Reads the workspace's dependencies and fails on a wrong one.
pub(crate) fn check() -> Result<()> {
    let metadata = output(
        command("cargo", ["metadata", "--no-deps", "--format-version", "1", "--locked"]).current_dir(root()),
    )?;
    let faults = faults(&serde_json::from_str(&metadata)?)?;
    if !faults.is_empty() {
        bail!(
            "wrong dependencies (see ARCHITECTURE.md; the rules are in xtask/src/layers.rs):\n{}",
            faults.join("\n")
        );
    }
    Ok(())
}

fn faults(metadata: &Value) -> Result<Vec<String>> {
    let packages =
        metadata.get("packages").and_then(Value::as_array).context("cargo metadata names no packages")?;
    let names: Vec<&str> = packages.iter().filter_map(name).collect();
    let mut faults = Vec::new();
    for package in packages {
        let Some(crate_name) = name(package) else { continue };
        if FREE.contains(&crate_name) {
            continue;
        }
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == crate_name) else {
            faults.push(format!("{crate_name} is not in the list: say which crates it may depend on"));
            continue;
        };
        let kept_out =
            KEPT_OUT.iter().find(|(known, _)| *known == crate_name).map_or(&[][..], |(_, kept_out)| kept_out);
        for dependency in shipped_dependencies(package) {
            if names.contains(&dependency) && !allowed.contains(&dependency) {
                faults.push(format!("{crate_name} must not depend on {dependency}"));
            }
            if kept_out.contains(&dependency) {
                faults.push(format!("{crate_name} must not know {dependency}"));
            }
        }
    }
    Ok(faults)
}

fn name(package: &Value) -> Option<&str> {
    package.get("name")?.as_str()
}

/// Normal and build dependencies; those of tests have kind "dev".
fn shipped_dependencies(package: &Value) -> impl Iterator<Item = &str> {
    let dependencies = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
    dependencies
        .filter(|dependency| dependency.get("kind").and_then(Value::as_str) != Some("dev"))
        .filter_map(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::faults;

    fn workspace(dependency: &str, kind: Option<&str>) -> Vec<String> {
        let package = |name: &str| json!({ "name": name, "dependencies": [] });
        let mut packages = vec![package("kftray-kube"), package("kftray-commons"), package("xtask")];
        packages.push(
            json!({ "name": "kftray-portforward", "dependencies": [{ "name": dependency, "kind": kind }] }),
        );
        faults(&json!({ "packages": packages })).unwrap()
    }

    #[test]
    fn arrows_point_down() {
        assert!(workspace("kftray-commons", None).is_empty());
        assert_eq!(workspace("kftray-kube", None), ["kftray-portforward must not depend on kftray-kube"]);
        assert_eq!(workspace("xtask", Some("build")), ["kftray-portforward must not depend on xtask"]);
    }

    #[test]
    fn tests_may_use_anything() {
        assert!(workspace("kftray-kube", Some("dev")).is_empty());
    }

    #[test]
    fn the_engine_does_not_know_the_cluster() {
        assert_eq!(workspace("kube", None), ["kftray-portforward must not know kube"]);
        assert!(workspace("tokio", None).is_empty());
    }

    #[test]
    fn a_new_crate_must_be_placed() {
        let packages = json!({ "packages": [{ "name": "kftray-new", "dependencies": [] }] });
        assert_eq!(faults(&packages).unwrap().len(), 1);
    }
}
