//! kube-rs' own forwarder and nothing else: one upgraded connection to the API server per local connection, as its documentation
//! shows. A contender in the benchmarks.
//!
//! `plain-kube NAMESPACE SERVICE LOCAL:CONTAINER_PORT...` forwards to the first pod with label `app=SERVICE`.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

#[tokio::main]
async fn main() -> Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok()
        .context("a TLS provider is there already")?;
    let mut arguments = std::env::args().skip(1);
    let (namespace, service) = (arguments.next().context("NAMESPACE")?, arguments.next().context("SERVICE")?);
    let pods: Api<Pod> = Api::namespaced(Client::try_default().await?, &namespace);
    let found = pods.list(&ListParams::default().labels(&format!("app={service}"))).await?;
    let pod = found.items.first().context("no pod")?.name_any();
    let mut listeners = JoinSet::new();
    for pair in arguments {
        let (near, far) = pair.split_once(':').context("LOCAL:CONTAINER_PORT")?;
        let (near, far): (u16, u16) = (near.parse()?, far.parse()?);
        let listener = TcpListener::bind(("127.0.0.1", near)).await?;
        listeners.spawn(serve(listener, pods.clone(), pod.clone(), far));
    }
    while let Some(ended) = listeners.join_next().await {
        ended??;
    }
    Ok(())
}

async fn serve(listener: TcpListener, pods: Api<Pod>, pod: String, port: u16) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted?;
                connections.spawn(forward(client, pods.clone(), pod.clone(), port));
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn forward(mut client: TcpStream, pods: Api<Pod>, pod: String, port: u16) -> Result<()> {
    client.set_nodelay(true)?;
    let mut forwarder = pods.portforward(&pod, &[port]).await?;
    let mut stream = forwarder.take_stream(port).context("a stream")?;
    tokio::io::copy_bidirectional(&mut client, &mut stream).await?;
    Ok(())
}
