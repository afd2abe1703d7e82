//! Tests of the built programs on a real cluster: what a person runs, seen from outside.
//!
//! The cluster is the one of `cargo xtask cluster up` with `cargo xtask cluster load`; `cargo xtask test` brings it up, points these tests at
//! it through the environment ([`Ground`]) and takes it down. Nothing here links the programs: they are started, their events are
//! read from standard output, and ordinary clients talk through the forwards.

pub mod client;
pub mod exposer;
pub mod failure;
pub mod field;
pub mod forward;
pub mod ground;
pub mod grpc;
pub mod https;
pub mod issuer;
pub mod load;
pub mod place;
pub mod program;
pub mod stream;

pub use exposer::Exposer;
pub use field::Field;
pub use forward::Forward;
pub use ground::Ground;
pub use issuer::Issuer;
pub use place::Place;
pub use program::Program;
