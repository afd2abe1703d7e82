//! Every number of the data path, each with its reason. Sources: research on the Go peers (`moby/spdystream`,
//! `kubernetes/cri-streaming`, containerd's `sandbox_portforward_linux.go`) and our own measurements.

use std::time::Duration;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Room for one read: two of the server's DATA frames of 32 KiB and their headers, so that a frame mostly lies in one
/// piece, in a buffer that an idle process can afford.
pub(super) const READ_BUFFER: usize = 64 * KIB + 512;
/// What a read must at least have room for: one TLS record (16 KiB), or the TLS layer hands it out in two.
pub(super) const READ_ROOM: usize = 16 * KIB;
/// Bytes taken in before they are handed out: one lock and one wake-up for up to eight DATA frames.
pub(super) const READ_BATCH: usize = 256 * KIB;
/// Slices below this are copied out of the read buffer: a client that is slow to take 100 bytes must not pin 64 KiB.
/// At this size a pinned buffer is at most eight times what the budget counts, and a copy costs less than a microsecond.
pub(super) const COPY_BELOW: usize = 8 * KIB;

/// Plaintext of one TLS record (RFC 8446, section 5.1).
pub(super) const TLS_RECORD: usize = 16 * KIB;

/// Payload of a DATA frame that we send: what Go's `io.Copy` uses. The server queues 50 *frames* per worker, so larger
/// ones enlarge its buffers.
pub(super) const SLICE: usize = 32 * KIB;
/// Most DATA frames of one batch.
pub(super) const BATCH_FRAMES: usize = 64;
/// Most payload of one batch: what the TLS layer seals at a stretch while control frames wait behind it (some 100 us).
pub(super) const BATCH_BYTES: usize = 256 * KIB;
/// Bytes of one stream that wait to be written. One batch: enough to keep the writer busy, little enough that a thousand
/// uploads do not fill the memory.
pub(super) const STREAM_QUEUE: usize = 256 * KIB;
/// Bytes of all streams of a session that wait to be written. Beyond it only streams with an empty queue may add.
pub(super) const SESSION_QUEUE: usize = 2 * MIB;

/// Received bytes that one slow client may leave lying. There is no flow control in this protocol: beyond it the session
/// takes no new streams, and nothing more is read if nobody else lives on it.
pub(super) const STREAM_BUDGET: usize = MIB;
/// Received bytes in all streams of a session before its carrier is not read any more, neighbours or not.
pub(super) const SESSION_BUDGET: usize = 16 * MIB;
/// Received bytes in all sessions of the process.
pub(super) const PROCESS_BUDGET: usize = 256 * MIB;
/// While the process budget is gone a session may still hold this much: one batch, so that none starves for others' fault.
pub(super) const STARVING_SESSION: usize = READ_BATCH;
/// A stream that moved this much makes its session a bulk session; later streams go elsewhere.
pub(super) const BULK: u64 = MIB as u64;
/// A client that has taken nothing for this long is cut off once [`SESSION_BUDGET`] lies unread and a neighbour has asked
/// for something that cannot come before that is read. The pool gives connections sessions of their own as long as there are few,
/// so this is rare; then one lost download is the lesser evil than neighbours that hang (`docs/decisions/0003`).
pub(super) const NEIGHBOUR_LIMIT: Duration = Duration::from_secs(1);
/// A client that has taken nothing for this long is cut off while the process budget is gone, the longest stalled one first.
/// People pause downloads, so it is as long as a browser waits for an answer.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(30);

/// Silence after which a PING asks whether the session is alive. With [`PING_DEADLINE`] a black hole on an idle session is
/// noticed after 14 s (asked: below 15), and it is far below the minute after which nginx and some load balancers cut.
pub(super) const PING_IDLE: Duration = Duration::from_secs(9);
/// The same after bytes were written and nothing came back.
pub(super) const PING_UNANSWERED: Duration = Duration::from_secs(1);
/// Time for the answer of a PING; four round trips if that is more.
pub(super) const PING_DEADLINE: Duration = Duration::from_secs(5);
/// The same after a wake-up or a change of network, when a dead carrier is likely.
pub(super) const PING_DEADLINE_SUSPECT: Duration = Duration::from_secs(2);
/// Upper bound of four round trips: a round trip measured behind a large upload says little about the path.
pub(super) const PING_DEADLINE_MAX: Duration = Duration::from_secs(10);
/// A deadline that fires this late fired because the process did not run (stopped, suspended); the PING is repeated.
pub(super) const OVERSLEPT: Duration = Duration::from_secs(1);
/// Written bytes without any answer above which a late PING means a blocked server, not a dead path: the PING waits behind
/// them. Two DATA frames; requests and handshakes stay below.
pub(super) const LARGE_UPLOAD: u64 = 2 * SLICE as u64;
/// A blocked session is given up after this long without a byte from the server, if the carrier's own time limits
/// (TCP_USER_TIMEOUT, keepalive) did not end it before.
pub(super) const CONGESTED_LIMIT: Duration = Duration::from_secs(300);

/// On a session that has heard nothing for this long a new connection withholds the client's bytes until it hears
/// something: NAT entries and VPNs die in silence.
pub(super) const DOUBT_AFTER: Duration = Duration::from_secs(2);
/// How long it listens before it moves to a new session; four round trips if that is more.
pub(crate) const DOUBT_LIMIT: Duration = Duration::from_secs(1);
/// How long it listens before the replacement is dialled in parallel; two round trips if that is more. Below it most
/// answers have come, and moving must be done within three seconds.
pub(crate) const DOUBT_HEDGE: Duration = Duration::from_millis(250);

/// Time for the answer to the opening of a stream, while the session itself answers: what kubectl grants
/// (`spdystream`'s creation timeout). A runtime under load may take seconds; one that never answers has lost the stream.
pub(super) const OPEN_ANSWER: Duration = Duration::from_secs(30);

/// Time for the error stream to end after the data stream did. The runtime ends the error stream first, so this is for
/// exotic servers only, and must not be felt by a client that waits for the end of file.
pub(super) const ERROR_TEXT_WAIT: Duration = Duration::from_millis(250);
/// A client's end is withheld while the pod may still answer, until the connection has been idle this long.
pub(super) const WITHHOLD_IDLE: Duration = Duration::from_secs(60);
/// The same for a client that ended *after* an answer and has sent nothing since: nearly always it has closed altogether,
/// and each open stream pins a thread on the node. The runtime grants one second more.
pub(super) const WITHHOLD_ANSWERED: Duration = Duration::from_millis(250);
/// The same for any client while the governor of the node is under pressure.
pub(super) const WITHHOLD_PRESSURE: Duration = Duration::from_secs(1);
/// After our end was passed on the runtime closes within one second; a server that has not by then has lost the stream.
pub(super) const AFTER_FINISH: Duration = Duration::from_secs(30);

/// A session without streams is closed after this long, unless somebody holds it warm.
pub(super) const IDLE_CLOSE: Duration = Duration::from_secs(300);
