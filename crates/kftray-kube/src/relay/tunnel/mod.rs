//! The client's side of the relay: forwards that go by way of it, and programs that it makes reachable.
//!
//! ```text
//! engine   Resolve            Dial                       publish
//!          [`routes`]         [`tunnels`]                [`publish`]
//!                               | which carrier            | a carrier of its own
//!                             [`carrier`]  one task: yamux, hello ([`connect`]), liveness
//!                               | streams                  | streams that the relay opens
//!                             [`channel`] TCP   [`flow`] UDP: records over [`lane`]s (bytes, [`queue`] of datagrams)
//! pool     port-forward to the relay's tunnel port  ([`wire`])
//! ```
//!
//! Back-pressure goes through: a client that does not read fills its stream's window, and only that. A carrier is read at
//! all times, as the session below demands; what it reads is bounded by the windows of its streams.

mod carrier;
mod channel;
mod connect;
mod explain;
mod flow;
mod lane;
mod publish;
mod queue;
mod routes;
#[cfg(test)]
mod tests;
mod tunnels;
mod wire;

pub(crate) use publish::publish;
pub(crate) use routes::Routes;
pub(crate) use tunnels::Tunnels;
