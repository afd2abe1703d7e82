//! See `kftray_spdy::fuzzing::ws_parser`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kftray_spdy::fuzzing::ws_parser(input));
