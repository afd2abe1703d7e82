//! Writes the first seeds of each fuzz target: `cargo run -p kftray-relay-proto --features fuzzing --example relay_fuzz_seeds -- fuzz/corpus`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let root = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "fuzz/corpus".into()));
    for target in kftray_relay_proto::fuzzing::TARGETS {
        let folder = root.join(target);
        std::fs::create_dir_all(&folder)?;
        for (name, content) in kftray_relay_proto::fuzzing::seeds(target) {
            std::fs::write(folder.join(format!("seed-{name}")), content)?;
        }
    }
    Ok(())
}
