//! Relays on the in-process cluster.
