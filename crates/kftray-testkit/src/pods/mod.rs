//! What runs in pods: for each container port a handler in this process, and the connections that the container runtime
//! holds into it.
//!
//! A pod's object in the store is what clients see; the [`Pods`] here are what a connection reaches. Both change
//! together: a killed pod's connections end at once, and later ones find a closed network namespace.

pub mod handlers;
mod socket;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;

pub use socket::PodStream;
pub(crate) use socket::{RuntimeStream, socket_pair};

use crate::faults::DialFailure;
use crate::sync::{Tasks, lock};

/// Annotation on pod templates that names the program: what an image is in reality.
pub(crate) const PROGRAM: &str = "testkit.kftray/program";

/// Future of a handler.
pub type BoxFuture = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// A pod, as its program knows itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Unique id.
    pub uid: String,
}

/// A connection that arrives at a container port.
#[derive(Debug)]
pub struct Inbound {
    /// The program's end of the connection.
    pub stream: PodStream,
    /// The pod it reached.
    pub pod: PodIdentity,
    /// The container port it reached.
    pub port: u16,
}

/// The program behind a container port.
pub trait PodHandler: Send + Sync + 'static {
    /// Serves one connection; when the future ends, the connection is closed.
    fn serve(&self, inbound: Inbound) -> BoxFuture;

    /// False: nothing listens on the port, connections are refused.
    fn listens(&self) -> bool {
        true
    }
}

impl<F, T> PodHandler for F
where
    F: Fn(Inbound) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    fn serve(&self, inbound: Inbound) -> BoxFuture {
        Box::pin(self(inbound))
    }
}

/// A handler as it is passed around.
pub type Handler = Arc<dyn PodHandler>;

/// Why the runtime could not connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DialError {
    /// Nothing listens; the pod is fine.
    Refused,
    /// The pod's sandbox cannot be used.
    Sandbox(DialFailure),
}

/// One running pod.
#[derive(Debug)]
struct Running {
    identity: PodIdentity,
    program: Option<String>,
    /// False between a crash and the restart: the sandbox is there, nothing listens.
    up: AtomicBool,
    /// The handlers of its connections.
    tasks: Tasks,
}

type Ports = HashMap<u16, Handler>;

/// Programs and running pods.
#[derive(Default)]
pub(crate) struct Pods {
    programs: Mutex<HashMap<String, Ports>>,
    /// By uid.
    running: Mutex<HashMap<String, Arc<Running>>>,
}

impl std::fmt::Debug for Pods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pods").field("running", &lock(&self.running).len()).finish_non_exhaustive()
    }
}

impl Pods {
    /// Sets what answers on a port of a program; takes effect for new connections of running pods, too.
    pub(crate) fn set_handler(&self, program: &str, port: u16, handler: Handler) {
        lock(&self.programs).entry(program.to_owned()).or_default().insert(port, handler);
    }

    /// The containers of a pod have started.
    pub(crate) fn start(&self, pod: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &pod["metadata"];
        let identity = PodIdentity {
            namespace: text(&metadata["namespace"]),
            name: text(&metadata["name"]),
            uid: text(&metadata["uid"]),
        };
        let uid = identity.uid.clone();
        let program = metadata["annotations"][PROGRAM].as_str().map(str::to_owned);
        let running = Running { identity, program, up: AtomicBool::new(true), tasks: Tasks::default() };
        let mut pods = lock(&self.running);
        pods.entry(uid).or_insert_with(|| Arc::new(running)).up.store(true, Ordering::SeqCst);
    }

    /// The containers have ended: their connections end now.
    pub(crate) fn stop(&self, uid: &str) {
        if let Some(running) = lock(&self.running).remove(uid) {
            running.tasks.abort();
        }
    }

    /// The program has ended, the sandbox lives on.
    pub(crate) fn crash(&self, uid: &str) {
        if let Some(running) = lock(&self.running).get(uid) {
            running.up.store(false, Ordering::SeqCst);
            running.tasks.abort();
        }
    }

    pub(crate) fn is_running(&self, uid: &str) -> bool {
        lock(&self.running).contains_key(uid)
    }

    /// Connects to `localhost:port` in the pod's network namespace.
    pub(crate) fn dial(&self, uid: &str, port: u16) -> Result<RuntimeStream, DialError> {
        let gone = || DialError::Sandbox(DialFailure::NamespaceClosed);
        let running = lock(&self.running).get(uid).cloned().ok_or_else(gone)?;
        let handler = running
            .program
            .as_ref()
            .and_then(|program| lock(&self.programs).get(program)?.get(&port).cloned())
            .filter(|handler| handler.listens() && running.up.load(Ordering::SeqCst))
            .ok_or(DialError::Refused)?;
        let (stream, runtime) = socket_pair();
        let inbound = Inbound { stream, pod: running.identity.clone(), port };
        running.tasks.start(handler.serve(inbound));
        Ok(runtime)
    }
}
