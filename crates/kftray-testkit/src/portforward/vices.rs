//! The true behaviour of the server side, in numbers: what makes a client that only works against a kind fake fail.
//!
//! * Bytes that arrive before the 101 are dropped (in [`upgrade`](super::upgrade)).
//! * Five workers take the frames of a session, each from a queue of fifty; a stream's frames always go to the same
//!   worker (`id % 5`), PINGs to one after the other. A stream whose reader has stopped blocks its worker, then its
//!   queue, then the whole session with its PING answers.
//! * Such a session does not notice that its client has gone, either, while the client's last bytes fill the buffers: only
//!   `Faults::drop_connections` or the end of the cluster frees it.
//! * All writes of a session go through one lock: a client that does not read blocks every stream.
//! * A frame leaves in several socket writes: three for DATA, four for PING and SYN_REPLY's start. In the tunnel each is
//!   a WebSocket message.
//! * Messages over 8 KiB arrive as one large non-final frame and an empty final one, smaller ones in fragments of the
//!   4 KiB buffer.
//! * No flow control: windows are ignored and never sent.
//! * When one direction of a forwarded connection ends, the other has one second, then both are closed. Half-close is
//!   never passed on.
//! * Errors: text on the error stream, then RST on both.

use std::time::Duration;

/// Frame workers of a session (spdystream `FRAME_WORKERS`).
pub(crate) const WORKERS: u32 = 5;

/// Frames in a worker's queue (spdystream `QUEUE_SIZE`).
pub(crate) const QUEUE: usize = 50;

/// Longest payload of a server's DATA frame: the buffer of Go's `io.Copy`.
pub(crate) const COPY_BUFFER: usize = 32 * 1024;

/// Payload that fits the API server's WebSocket write buffer: net/http's 4 KiB less room for a header.
pub(crate) const FRAGMENT: usize = 4096 - 14;

/// Messages longer than this (twice the buffer) bypass it.
pub(crate) const UNBUFFERED: usize = 2 * 4096;

/// Every time span the cluster keeps. The defaults are the true values where a real cluster has a fixed one; tests that
/// cannot wait lower them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// How long the second direction of a connection lives after the first has ended. True: 1 s (containerd and CRI-O).
    pub linger: Duration,
    /// How long a data stream may wait for its error stream. True: 30 s.
    pub stream_creation: Duration,
    /// How long a session may be without any frame. True: 4 h.
    pub session_idle: Duration,
    /// How often a watch gets a bookmark. True: about once a minute.
    pub bookmark: Duration,
    /// From a pod's creation to its containers running. Real: seconds; here 50 ms.
    pub pod_start: Duration,
    /// From containers running to the first readiness probe that succeeds. Real: seconds; here 50 ms.
    pub pod_ready: Duration,
    /// From a pod's deletion to the end of its processes: what programs take on SIGTERM, cut off at the grace period.
    /// Real: up to 30 s; here 300 ms. Workloads may set their own.
    pub pod_stop: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            linger: Duration::from_secs(1),
            stream_creation: Duration::from_secs(30),
            session_idle: Duration::from_secs(4 * 3600),
            bookmark: Duration::from_secs(60),
            pod_start: Duration::from_millis(50),
            pod_ready: Duration::from_millis(50),
            pod_stop: Duration::from_millis(300),
        }
    }
}
