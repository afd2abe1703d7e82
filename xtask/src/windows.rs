//! `cargo xtask windows`: the program built for Windows, and its host tried under Wine. It shows that the Windows parts build
//! and work together; a real Windows may still differ.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::command::{command, feed, run, show};
use crate::paths::{root, target};
use crate::setup::{self, Tool, tool};

const TRIPLE: &str = "x86_64-pc-windows-gnu";

const TOOLS: [Tool; 2] = [
    tool("x86_64-w64-mingw32-gcc", "gcc-mingw-w64-x86-64", "the linker for Windows"),
    tool(WINE, "wine64", "Windows programs on Linux"),
];

/// Not on the PATH without Debian's `wine` package, which wants 32 bits, too.
const WINE: &str = "/usr/lib/wine/wine64";

/// Rust's standard library takes random numbers from this library, which Wine 8 does not have.
const RANDOM: &str = "#include <windows.h>\n#include <ntsecapi.h>\n\
    __declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size)\n\
    { return RtlGenRandom(data, (ULONG)size); }\n";

/// Builds and tries.
pub(crate) fn windows() -> Result<()> {
    setup::install(&TOOLS)?;
    run(&mut command("rustup", ["target", "add", TRIPLE]))?;
    show(
        command("cargo", ["build", "--locked", "-p", "kftui", "--target", TRIPLE])
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .current_dir(root()),
    )?;
    let programs = target().join(TRIPLE).join("debug");
    let library = programs.join("bcryptprimitives.dll");
    let gcc = ["-shared", "-x", "c", "-", "-ladvapi32", "-o"];
    feed(command("x86_64-w64-mingw32-gcc", gcc).arg(&library), RANDOM.as_bytes())?;
    let wine = Wine::new(programs.join("kftui.exe"), target().join("wine"))?;
    let result = wine.life();
    // Whatever happened, nothing may stay behind.
    drop(wine.kftui(&["host", "stop"]));
    result?;
    println!("windows: the host starts on demand, is found by its pipe, keeps its store and ends");
    Ok(())
}

/// The program in a Windows of its own.
struct Wine {
    program: PathBuf,
    prefix: PathBuf,
    /// The configuration directory, as Windows spells it.
    config: String,
}

impl Wine {
    fn new(program: PathBuf, folder: PathBuf) -> Result<Self> {
        let config = folder.join("config");
        if config.exists() {
            fs::remove_dir_all(&config)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(Self { program, prefix: folder.join("prefix"), config: spelled(&config) })
    }

    /// A newcomer's first minute.
    fn life(&self) -> Result<()> {
        ensure!(self.kftui(&["list"])?.is_empty(), "a new store is not empty");
        self.kftui(&["add", "svc/web", "18080:80", "--context", "nowhere"])?;
        let listed = self.kftui(&["list", "--output", "name"])?;
        ensure!(listed.contains("web"), "what was added is not listed: {listed}");
        let status = self.kftui(&["host", "status"])?;
        ensure!(status.contains("1 stored"), "the host does not know it: {status}");
        self.kftui(&["host", "stop"])?;
        ensure!(self.kftui(&["host", "status"]).is_err(), "the host did not end");
        let listed = self.kftui(&["list", "--output", "name"])?;
        ensure!(listed.contains("web"), "the next host has lost it: {listed}");
        Ok(())
    }

    fn kftui(&self, args: &[&str]) -> Result<String> {
        let mut wine: Command = command("timeout", ["120", WINE]);
        wine.arg(&self.program).args(args);
        wine.env("WINEPREFIX", &self.prefix).env("WINEDEBUG", "-all").env("KFTRAY_CONFIG", &self.config);
        // A host that is started inherits the handles of who starts it, whatever we ask for: the end of a pipe would be its end.
        let said = self.prefix.with_file_name("output.txt");
        let file = fs::File::create(&said)?;
        show(wine.stdout(file)).with_context(|| format!("kftui {}", args.join(" ")))?;
        Ok(fs::read_to_string(said)?)
    }
}

/// A path of this system as Wine spells it.
fn spelled(path: &Path) -> String {
    format!("Z:{}", path.display()).replace('/', "\\")
}
