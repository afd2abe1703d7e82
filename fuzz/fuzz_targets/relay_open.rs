//! See `kftray_relay_proto::fuzzing::relay_open`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kftray_relay_proto::fuzzing::relay_open(input));
