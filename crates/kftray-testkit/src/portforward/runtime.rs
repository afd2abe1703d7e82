//! What containerd does with a forwarded connection: dial in the pod's network namespace, copy both ways, linger, close.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Target;
use super::vices::COPY_BUFFER;
use crate::cluster::Shared;
use crate::faults::DialFailure;
use crate::pods::{DialError, RuntimeStream};

/// Bytes of the client.
pub(crate) trait Source: Send {
    /// The next bytes; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// The way to the client.
pub(crate) trait Sink: Send {
    /// Sends at most [`COPY_BUFFER`] bytes.
    fn write(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}

/// Forwards one connection; the error is the text that the client gets.
pub(crate) async fn forward(
    shared: &Shared,
    target: &Target,
    port: u16,
    source: impl Source,
    sink: impl Sink,
) -> Result<(), String> {
    // Counted from the dial to the end of the linger: the life of the locked OS thread.
    let _thread = shared.counters.pod_connections.enter();
    let context = format!("error forwarding port {port} to pod {}, uid ", target.sandbox());
    let stream = dial(shared, target, port).await.map_err(|text| format!("{context}: {text}"))?;
    copy(shared, shared.timings.linger, stream, source, sink).await.map_err(|error| {
        let netns = namespace(target);
        format!(
            "{context}: failed to execute portforward in network namespace \"{netns}\": {}",
            go_text(&error, port)
        )
    })
}

async fn dial(shared: &Shared, target: &Target, port: u16) -> Result<RuntimeStream, String> {
    let (failure, delay) = {
        let faults = shared.faults.borrow();
        (faults.dial_failure.clone(), faults.dial_delay)
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let result = match failure {
        Some(failure) => Err(DialError::Sandbox(failure)),
        None => shared.pods.dial(&target.uid, port),
    };
    result.map_err(|error| dial_text(&error, target, port))
}

/// The runtimes' own sentences (containerd `sandbox_portforward_linux.go`, CRI-O `container_portforward.go`).
fn dial_text(error: &DialError, target: &Target, port: u16) -> String {
    let sandbox = target.sandbox();
    match error {
        DialError::Refused => format!(
            "failed to execute portforward in network namespace \"{}\": failed to connect to localhost:{port} inside \
             namespace \"{sandbox}\", IPv4: dial tcp4 127.0.0.1:{port}: connect: connection refused IPv6 dial tcp6 \
             [::1]:{port}: connect: connection refused ",
            namespace(target)
        ),
        DialError::Sandbox(DialFailure::NamespaceClosed) => {
            format!("network namespace for sandbox \"{sandbox}\" is closed")
        }
        DialError::Sandbox(DialFailure::SandboxNotFound) => {
            format!("failed to find sandbox \"{sandbox}\" in store: not found")
        }
        DialError::Sandbox(DialFailure::SandboxNotRunning) => {
            format!("sandbox container \"{sandbox}\" is not running")
        }
        DialError::Sandbox(DialFailure::CrioSandboxNotFound) => {
            format!("could not find sandbox {sandbox}: PodSandbox with ID starting with {sandbox} not found")
        }
        DialError::Sandbox(DialFailure::Other(text)) => text.clone(),
    }
}

fn namespace(target: &Target) -> String {
    format!("/var/run/netns/cni-{}", target.uid)
}

fn go_text(error: &io::Error, port: u16) -> String {
    let connection = format!("tcp4 127.0.0.1:40000->127.0.0.1:{port}");
    if error.kind() == io::ErrorKind::ConnectionReset {
        format!("read {connection}: read: connection reset by peer")
    } else if error.kind() == io::ErrorKind::BrokenPipe {
        format!("write {connection}: write: broken pipe")
    } else {
        error.to_string()
    }
}

/// Two copies; when one ends, the other has `linger`, then both sides are closed. The end of one direction is never
/// passed on (no CloseWrite).
async fn copy(
    shared: &Shared,
    linger: Duration,
    stream: RuntimeStream,
    mut source: impl Source,
    mut sink: impl Sink,
) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    let up = async {
        while let Some(bytes) = source.next().await {
            write.write_all(&bytes).await?;
            shared.counters.bytes_in.add(u64::try_from(bytes.len()).unwrap_or_default());
        }
        Ok(())
    };
    let down = async {
        let mut buffer = vec![0; COPY_BUFFER];
        loop {
            let count = read.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            sink.write(buffer.get(..count).unwrap_or_default()).await?;
            shared.counters.bytes_out.add(u64::try_from(count).unwrap_or_default());
        }
    };
    tokio::pin!(up, down);
    let (first, second) = tokio::select! {
        first = &mut up => (first, tokio::time::timeout(linger, &mut down).await),
        first = &mut down => (first, tokio::time::timeout(linger, &mut up).await),
    };
    first.and(second.unwrap_or(Ok(())))
}
