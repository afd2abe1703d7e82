//! The API server: a socket, TLS, HTTP/1.1 and HTTP/2, and behind them authentication, authorization, objects, watches
//! and port-forward.

pub(crate) mod auth;
pub(crate) mod connections;
pub(crate) mod kinds;
pub(crate) mod link;
pub(crate) mod rest;
pub(crate) mod reviews;
pub(crate) mod selector;
pub(crate) mod server;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod watch;
