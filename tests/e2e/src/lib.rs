//! Tests of the built programs on a real cluster.
