//! The one place where the engine meets Kubernetes.

use std::sync::Arc;

use kftray_kube::{KubeOptions, KubePorts, Protocol, TransportChoice};
use kftray_portforward::{Engine, Limits};

use crate::cli::Transport;

/// An engine over whatever kubeconfigs the forwards name. Connects to nothing yet. Within a tokio runtime.
pub(crate) fn engine(transport: Transport) -> Engine {
    engine_with(KubeOptions { transport: choice(transport), ..KubeOptions::from_process() })
}

/// The same with options of the caller's.
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
