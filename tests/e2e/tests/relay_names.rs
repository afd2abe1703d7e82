//! Names that somebody else has in a real cluster: an expose is refused, told whose the name is, and changes nothing of theirs.
//!
//! Needs the relay's image in the cluster (`cargo xtask cluster up --relay`, or what `cargo xtask test --e2e` does).

use anyhow::{Result, ensure};
use kftray_e2e::exposer::waits_for;
use kftray_e2e::{Exposer, Program};
use serde_json::{Value, json};

/// What the API server has of it, to the last byte; its `resourceVersion` tells of every write.
async fn stored(exposer: &Exposer, kind: &str, name: &str) -> Result<String> {
    let get = ["-n", &exposer.namespace, "get", kind, name, "-o", "json", "--show-managed-fields"];
    exposer.ground.kubectl(&get).await
}

/// Names of what kftray has made, of all kinds that an expose makes.
async fn ours(exposer: &Exposer) -> Result<String> {
    let kinds = ["get", "jobs,services,ingresses", "-o", "name"];
    let made = ["-n", &exposer.namespace, "-l", "app.kubernetes.io/managed-by=kftray"];
    exposer.ground.kubectl(&[&kinds[..], &made[..]].concat()).await
}

fn internal(alias: &str, port: u16) -> Value {
    json!({ "alias": alias, "workload_type": "expose", "exposure_type": "internal", "local_port": port })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_somebody_else_is_left_as_it_is_and_its_owner_is_told() -> Result<()> {
    let exposer = Exposer::new("relay-names").await?;
    let program = Program::listen(0).await?;
    let configmap = ["-n", &exposer.namespace, "create", "configmap", "operator"];
    exposer.ground.kubectl(&[&configmap[..], &["-o", "name"]].concat()).await?;
    let owner = exposer.object("configmap", "operator").await?;
    let owner = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "operator", "uid": owner["metadata"]["uid"],
    }]);
    let managed_by = |who: &str| json!({ "app.kubernetes.io/managed-by": who });
    let release = json!({ "meta.helm.sh/release-name": "shop" });
    for (name, more) in [
        ("of-helm", json!({ "labels": managed_by("Helm"), "annotations": release })),
        ("of-an-operator", json!({ "ownerReferences": owner })),
        ("of-a-tool", json!({ "labels": managed_by("argocd") })),
        ("of-a-person", json!({})),
    ] {
        let mut metadata = more;
        metadata["name"] = name.into();
        metadata["namespace"] = exposer.namespace.as_str().into();
        let spec = json!({ "selector": { "app": "theirs" }, "ports": [{ "name": "theirs", "port": 80 }] });
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec });
        exposer.ground.apply(&service.to_string()).await?;
    }
    let colleague = exposer.other()?;
    let theirs = colleague.run(&[internal("of-a-colleague", program.port)]).await?;

    let made = ours(&exposer).await?;
    for (name, whose) in [
        ("of-helm", "to the Helm release shop"),
        ("of-an-operator", "to configmap operator"),
        ("of-a-tool", "to what argocd manages"),
        ("of-a-person", "to somebody who made it with kubectl-client-side-apply"),
        ("of-a-colleague", "who exposes a program with kftray"),
    ] {
        let before = stored(&exposer, "service", name).await?;
        let mut forward = exposer.start(&[internal(name, program.port)])?;
        let (message, remedy) = waits_for(&mut forward, "name_taken").await?;
        println!("{message}");
        let begin = format!("the name is taken: service relay-names/{name} belongs to ");
        ensure!(message.starts_with(&begin) && message.ends_with(whose), "{message}");
        ensure!(remedy.contains("another alias"), "{remedy}");
        drop(forward);
        let after = stored(&exposer, "service", name).await?;
        ensure!(after == before, "{name} was changed:\n{before}\n{after}");
    }
    ensure!(ours(&exposer).await? == made, "nothing was made for a name that cannot be had");
    drop(theirs);
    exposer.gone().await
}

/// The Service's name is free, the Ingress' is not.
#[tokio::test(flavor = "multi_thread")]
async fn an_ingress_of_somebody_else_is_left_as_it_is_and_its_owner_is_told() -> Result<()> {
    let exposer = Exposer::new("relay-names-ingress").await?;
    let program = Program::listen(0).await?;
    let backend = json!({ "service": { "name": "theirs", "port": { "number": 80 } } });
    let ingress = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {
            "name": "shop", "namespace": exposer.namespace,
            "annotations": { "meta.helm.sh/release-name": "shop" },
        },
        "spec": { "ingressClassName": "theirs", "defaultBackend": backend },
    });
    exposer.ground.apply(&ingress.to_string()).await?;
    let before = stored(&exposer, "ingress", "shop").await?;
    let public = json!({
        "alias": "shop.example.com", "workload_type": "expose", "exposure_type": "public",
        "local_port": program.port, "ingress_class": "none",
    });
    let mut forward = exposer.start(&[public])?;
    let (message, _) = waits_for(&mut forward, "name_taken").await?;
    let words = "the name is taken: ingress relay-names-ingress/shop belongs to the Helm release shop";
    ensure!(message == words, "{message}");
    ensure!(ours(&exposer).await?.is_empty(), "nothing was made for a name that cannot be had");
    drop(forward);
    let after = stored(&exposer, "ingress", "shop").await?;
    ensure!(after == before, "it was changed:\n{before}\n{after}");
    exposer.gone().await
}
