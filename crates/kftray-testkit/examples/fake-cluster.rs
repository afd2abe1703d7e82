//! A fake cluster to look at with kubectl: three web pods and a database, until Ctrl-C.
//!
//! ```text
//! cargo run -p kftray-testkit --example fake-cluster
//! export KUBECONFIG=...   # as it prints
//! kubectl get pods; kubectl port-forward svc/web 8080:80
//! ```

use std::io::Write as _;

use kftray_testkit::{ClusterError, FakeCluster, handlers};

#[tokio::main]
async fn main() -> Result<(), ClusterError> {
    let begin = tokio::time::Instant::now();
    let cluster = FakeCluster::start().await?;
    let took = begin.elapsed();
    let web = cluster.deployment("web").replicas(3).port("http", 8080, handlers::http_hello());
    web.port("echo", 7, handlers::echo()).port("bulk", 19, handlers::chargen(Some(100 << 20))).create()?;
    cluster.service("web").named_port("http", 80, "http").named_port("echo", 7, 7).create()?;
    cluster.stateful_set("db").port("sql", 5432, handlers::greet("ready for queries\n")).create()?;
    cluster.service("db").port(5432, "sql").headless().create()?;
    cluster.wait_ready("default", "web", 3).await?;
    writeln!(
        std::io::stdout(),
        "export KUBECONFIG={}  # started in {took:?}",
        cluster.kubeconfig_path().display()
    )?;
    tokio::signal::ctrl_c().await?;
    writeln!(std::io::stdout(), "{:#?}", cluster.counters())?;
    Ok(())
}
