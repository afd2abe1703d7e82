//! Replays the committed fuzz corpus through the functions that the fuzz targets call.

#![expect(clippy::print_stdout, reason = "shown on failure only: the file that broke a promise")]

use std::path::Path;

use kftray_relay_proto::fuzzing;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is committed") {
        let path = entry.expect("readable folder").path();
        // A panic below names no file: say which one is on.
        println!("{}", path.display());
        run(&std::fs::read(&path).expect("readable file"));
        count += 1;
    }
    let seeds = fuzzing::seeds(target);
    assert!(
        count >= seeds.len() && count > 0,
        "{target}: seeds are missing, see examples/relay_fuzz_seeds.rs"
    );
    seeds.iter().for_each(|(_, seed)| run(seed));
}

#[test]
fn relay_hello() {
    replay("relay_hello", fuzzing::relay_hello);
}

#[test]
fn relay_open() {
    replay("relay_open", fuzzing::relay_open);
}

#[test]
fn relay_record() {
    replay("relay_record", fuzzing::relay_record);
}
