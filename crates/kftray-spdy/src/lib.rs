//! The wire protocols of a Kubernetes port-forward, without any input or output.
//!
//! Three protocols carry a forwarded connection between a client and the container runtime:
//!
//! * SPDY/3.1 streams ([`frame`], [`connection`]), the true protocol of the runtime's streaming server;
//! * the same SPDY bytes inside WebSocket binary messages ([`ws`], KEP-4006);
//! * the legacy channel protocol `v4.channel.k8s.io`, also inside WebSocket messages ([`channel`]).
//!
//! The crate is sans-IO: bytes go in as slices, events come out, bytes to be written are appended to a buffer of the
//! caller. No sockets, no clock, no tasks; that is what lets the same code run under property tests, fuzzers and a
//! simulated network. In the steady state neither reading nor writing a DATA frame allocates: payloads are handed out as
//! slices ([`bytes::Bytes`]) of the buffer that was read into.
//!
//! The usual chain of a reader is
//!
//! ```text
//! socket -> BytesMut -> [ws::Parser] -> Bytes -> frame::Parser -> Frame -> connection::Client -> Event
//! ```

pub mod channel;
pub mod connection;
pub mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod ws;
