//! The engine as its callers see it: real sockets on this side, a simulated cluster on the other.

mod expose;
mod lifecycle;
mod rollout;
mod sim;
mod stage;
mod traffic;
mod udp;
