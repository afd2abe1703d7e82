//! See `kftray_spdy::fuzzing::channel`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kftray_spdy::fuzzing::channel(input));
