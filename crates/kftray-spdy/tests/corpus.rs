//! Replays the committed fuzz corpus through the functions that the fuzz targets call.

#![expect(clippy::print_stdout, reason = "shown on failure only: the file that broke a promise")]

use std::path::Path;

use kftray_spdy::fuzzing;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is committed") {
        let path = entry.expect("readable folder").path();
        let input = std::fs::read(&path).expect("readable file");
        // A panic below names no file: say which one is on.
        println!("{}", path.display());
        run(&input);
        count += 1;
    }
    assert!(
        count >= fuzzing::seeds(target).len(),
        "{target}: the seeds are missing, see examples/fuzz_seeds.rs"
    );
    for (_, seed) in fuzzing::seeds(target) {
        run(&seed);
    }
}

#[test]
fn spdy_client() {
    replay("spdy_client", fuzzing::spdy_client);
}

#[test]
fn spdy_server() {
    replay("spdy_server", fuzzing::spdy_server);
}

#[test]
fn ws_parser() {
    replay("ws_parser", fuzzing::ws_parser);
}

#[test]
fn channel() {
    replay("channel", fuzzing::channel);
}

/// The harness must be able to fail: seeds reach the states they are written for.
#[test]
fn seeds_are_well_formed() {
    use bytes::Bytes;
    use kftray_spdy::frame::{Limits, Parser};
    for target in ["spdy_client", "spdy_server"] {
        for (name, seed) in fuzzing::seeds(target) {
            let mut parser = Parser::server(Limits::default());
            let mut input = Bytes::from(seed).split_off(1);
            let mut frames = 0;
            while parser.next(&mut input).unwrap_or_else(|error| panic!("{target}/{name}: {error}")).is_some()
            {
                frames += 1;
            }
            assert!(frames >= 3 && parser.is_between_frames(), "{target}/{name}: {frames} frames");
        }
    }
}
