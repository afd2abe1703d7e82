//! What `kftui forward` and `kftui run` tell a script with `--output json`: one object per line.
//!
//! Part of the command line's contract: fields are added, never renamed or removed.

use serde::{Deserialize, Serialize};

use crate::problem::Problem;
use crate::status::{Counters, Status};
use crate::target::RemotePort;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The local listeners of a forward are open; connections are accepted and wait until it is ready.
    Listening {
        /// The forward's label: its alias, else target and port as in `svc/web:80`.
        forward: String,
        /// The object in the cluster, as in `service/web`.
        target: String,
        /// The port asked for.
        remote_port: RemotePort,
        /// Every `address:port` it listens on, IPv6 in brackets.
        addresses: Vec<String>,
    },
    /// A change of state.
    Status {
        /// The forward's label.
        forward: String,
        /// The state it is in now.
        status: Status,
    },
    /// A transport to a ready pod is up; each time it becomes so.
    Ready {
        /// The forward's label.
        forward: String,
        /// As in `listening`.
        addresses: Vec<String>,
        /// The pod and container port, as in `namespace/pod:8080`.
        endpoint: String,
        /// What carries it: `websocket`, `spdy` or `legacy`.
        transport: String,
    },
    /// Every forward has been ready; once.
    AllReady,
    /// A local connection could not be served. The forward itself goes on.
    ConnectionFailed {
        /// The forward's label.
        forward: String,
        /// Why.
        problem: Problem,
    },
    /// An entry of an input file that cannot be run; the others are.
    InvalidEntry {
        /// The file, `-` for standard input.
        source: String,
        /// The entry's number in it, from 1.
        entry: usize,
        /// Its alias, if that could be read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alias: Option<String>,
        /// Why, with line and column.
        problem: Problem,
    },
    /// Something in an input file that was overlooked, such as an unknown field.
    Warning {
        /// The file, `-` for standard input.
        source: String,
        /// What, with line and column.
        message: String,
    },
    /// A forward has ended.
    Stopped {
        /// The forward's label.
        forward: String,
        /// What it carried.
        counters: Counters,
    },
}
