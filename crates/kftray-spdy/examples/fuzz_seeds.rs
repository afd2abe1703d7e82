//! Writes the first seeds of each fuzz target: `cargo run -p kftray-spdy --features fuzzing --example fuzz_seeds -- fuzz/corpus`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let root = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "fuzz/corpus".into()));
    for target in ["spdy_client", "spdy_server", "ws_parser", "channel"] {
        let folder = root.join(target);
        std::fs::create_dir_all(&folder)?;
        for (name, content) in kftray_spdy::fuzzing::seeds(target) {
            std::fs::write(folder.join(format!("seed-{name}")), content)?;
        }
    }
    Ok(())
}
