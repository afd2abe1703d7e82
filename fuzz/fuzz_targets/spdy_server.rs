//! See `kftray_spdy::fuzzing::spdy_server`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kftray_spdy::fuzzing::spdy_server(input));
