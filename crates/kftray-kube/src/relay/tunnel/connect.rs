//! From a relay pod to a carrier: a port-forward to its tunnel port, and the hello.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use kftray_commons::{Code, Problem};
use kftray_portforward::ports::{Channel, Condition, Delivery, Dial, DialError, Endpoint, Route};
use kftray_relay_proto::handshake::ClientHandshake;
use kftray_relay_proto::hello::{ClientHello, Purpose, ServerHello};
use kftray_relay_proto::version::SUPPORTED;
use tokio::time::{Instant, timeout};

use super::carrier::Start;
use crate::relay::RelayPod;

/// How long a relay may take for its hello; it has nothing to do for it but compare a hash. Long enough for a node that
/// has just started it.
const HELLO: Duration = Duration::from_secs(10);

/// The port-forward of a carrier and the relay's hello on it.
///
/// # Errors
/// No port-forward, no answer, or the relay does not let us in. Nothing of any connection was sent yet.
pub(super) async fn connect(
    dial: &dyn Dial,
    relay: &RelayPod,
    purpose: Purpose,
    client: &str,
) -> Result<Start, DialError> {
    let name = format!("{}/{}", relay.namespace, relay.pod);
    let hello =
        ClientHello { versions: SUPPORTED, token: relay.token.clone(), client: client.to_owned(), purpose };
    let mut out = BytesMut::new();
    let handshake = ClientHandshake::new(&hello, &mut out);
    let begin = Instant::now();
    let endpoint = Endpoint {
        cluster: relay.cluster,
        namespace: Arc::clone(&relay.namespace),
        pod: Arc::clone(&relay.pod),
        uid: Arc::clone(&relay.uid),
        node: relay.node.clone(),
        port: relay.port,
        condition: Condition::Ready,
        route: Route::Direct,
    };
    let mut channel = dial.dial(&endpoint, out.freeze()).await.map_err(|error| nothing(error.problem))?;
    let mut input = BytesMut::new();
    let answer = timeout(HELLO, hello_of(channel.as_mut(), &handshake, &mut input, &name)).await;
    let hello = match answer {
        Ok(hello) => hello.map_err(nothing)?,
        Err(_) => {
            let message = format!("relay {name} does not answer");
            return Err(nothing(Problem::new(Code::ConnectionLost, message)));
        }
    };
    Ok(Start {
        channel,
        left: input.freeze(),
        hello,
        relay: Arc::clone(&relay.uid),
        name,
        purpose,
        rtt: begin.elapsed(),
    })
}

async fn hello_of(
    channel: &mut dyn Channel,
    handshake: &ClientHandshake,
    input: &mut BytesMut,
    name: &str,
) -> Result<ServerHello, Problem> {
    loop {
        if let Some(hello) =
            handshake.advance(input).map_err(|error| super::explain::handshake(name, &error))?
        {
            return Ok(hello);
        }
        match std::future::poll_fn(|cx| channel.poll_recv(cx)).await {
            Ok(Some(bytes)) => input.extend_from_slice(&bytes),
            Ok(None) => {
                let message = format!("relay {name} has closed the tunnel before its hello");
                return Err(Problem::new(Code::ConnectionLost, message));
            }
            Err(error) => {
                let message = format!("no tunnel to relay {name}: {}", error.problem.message);
                return Err(Problem::new(Code::ConnectionLost, message));
            }
        }
    }
}

/// An error before anything of a connection was sent.
pub(super) fn nothing(problem: Problem) -> DialError {
    DialError { problem, delivery: Delivery::Nothing }
}
