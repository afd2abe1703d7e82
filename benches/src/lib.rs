//! Side-by-side measurements of port-forwards on a real cluster: contenders, loads, what they cost, and a table.
//!
//! These are programs, not tests: machines differ and drift, so only ratios inside one interleaved run mean anything. The method is in
//! `docs/benchmarks.md`.

pub mod contender;
pub mod cost;
pub mod delay;
pub mod measure;
pub mod report;
