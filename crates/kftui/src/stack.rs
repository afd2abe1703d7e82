//! The one place where the engine meets Kubernetes.

use std::sync::Arc;

use kftray_commons::store::Directory;
use kftray_kube::deploy::RelayOptions;
use kftray_kube::{Environment, KubeOptions, KubePorts, Protocol, TransportChoice};
use kftray_portforward::{Engine, Limits};

use crate::cli::Transport;
use crate::relay;

/// An engine, and what is behind it.
pub(crate) struct Stack {
    pub(crate) engine: Engine,
    ports: Arc<KubePorts>,
}

impl Stack {
    /// Over whatever kubeconfigs the forwards name, with relays as the store's settings, the environment and this flag say, each
    /// before the ones named earlier. Connects to nothing yet. Within a tokio runtime.
    pub(crate) fn new(transport: Transport, relay_image: Option<&str>) -> Self {
        let environment = Environment::from_process();
        // Without the file relays work all the same; only the next process does not find those of this one.
        let mut relay = relay::identity(&environment).unwrap_or_else(|error| {
            tracing::warn!("{error:#}");
            RelayOptions::ephemeral()
        });
        relay.settings = relay::settings(Directory::of_process().ok().as_ref(), &environment, relay_image);
        let options =
            KubeOptions { environment, transport: choice(transport), relay, ..KubeOptions::from_process() };
        let ports = Arc::new(KubePorts::new(options));
        Self { engine: Engine::new(ports.clone(), ports.clone(), Limits::detect()), ports }
    }

    /// Waits, for a moment, until nothing of what was exposed is left in the cluster. All forwards have been stopped.
    pub(crate) async fn finish(self) {
        drop(self.engine);
        self.ports.finish().await;
    }
}

/// An engine with options of the caller's.
pub(crate) fn engine_with(options: KubeOptions) -> Engine {
    let ports = Arc::new(KubePorts::new(options));
    Engine::new(ports.clone(), ports, Limits::detect())
}

fn choice(transport: Transport) -> TransportChoice {
    match transport {
        Transport::Auto => TransportChoice::Auto,
        Transport::Websocket => TransportChoice::Only(Protocol::WebSocketTunnel),
        Transport::Spdy => TransportChoice::Only(Protocol::Spdy),
        Transport::Legacy => TransportChoice::Only(Protocol::Legacy),
    }
}
