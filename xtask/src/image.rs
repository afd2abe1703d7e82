//! `cargo xtask image`: the relay's image from scratch, without a container tool and without a C compiler.
//!
//! One OCI archive with both architectures (for registries: `skopeo copy oci-archive:...`, `crane push`), and one
//! docker-archive for each (`docker load`, `podman load`, `ctr images import`). The same sources and toolchain give the
//! same bytes.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::command::{command, on_path, output, show};
use crate::paths::{root, target};

/// The program, and the image's name.
const PROGRAM: &str = "kftray-server";

/// The user inside: nobody in particular, as distroless images number theirs.
const USER: &str = "65532:65532";

/// Most bytes of one architecture's image: it is pulled when somebody waits for a forward.
const MOST: u64 = 8 * 1024 * 1024;

/// The profile in the workspace's manifest: as a release, without symbols.
const PROFILE: &str = "image";

/// The program header that names a dynamic linker.
const PT_INTERP: u32 = 3;

/// What the image is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Architecture {
    /// x86_64
    Amd64,
    /// aarch64
    Arm64,
}

impl Architecture {
    /// This machine's.
    fn host() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("no image is built for {other}"),
        }
    }

    fn oci(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    /// `e_machine` of its programs.
    fn machine(self) -> u16 {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }

    /// What runs its programs on another machine (package qemu-user-static).
    fn emulator(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-x86_64-static",
            Self::Arm64 => "qemu-aarch64-static",
        }
    }
}

/// The relay's image.
#[derive(Args)]
pub(crate) struct Image {
    /// For these architectures (default: all)
    #[arg(long, value_enum, value_delimiter = ',')]
    arch: Vec<Architecture>,
    /// Directory for the archives (default: target/relay-image)
    #[arg(long)]
    out: Option<PathBuf>,
    /// Name and tag in the archives (default: kftray-server:VERSION)
    #[arg(long)]
    name: Option<String>,
}

impl Image {
    /// Builds and writes the archives.
    pub(crate) fn run(&self) -> Result<()> {
        let out = self.out.clone().unwrap_or_else(|| target().join("relay-image"));
        let name = self.name.clone().unwrap_or_else(local_name);
        let chosen = if self.arch.is_empty() { Architecture::value_variants() } else { &self.arch };
        let mut parts = Vec::new();
        for &architecture in chosen {
            let program = build(architecture)?;
            smoke_test(architecture, &program)?;
            let part = Part::new(architecture, &program)?;
            let archive = out.join(format!("{PROGRAM}-{}.docker.tar", architecture.oci()));
            part.write_docker(&archive, &name)?;
            report(&archive)?;
            parts.push(part);
        }
        let archive = out.join(format!("{PROGRAM}.oci.tar"));
        write_oci(&parts, &archive, &name)?;
        report(&archive)
    }
}

/// The relay's image for a cluster on this machine: its local name, and an archive that `ctr images import` takes.
pub(crate) fn for_this_machine() -> Result<(String, PathBuf)> {
    let architecture = Architecture::host()?;
    let part = Part::new(architecture, &build(architecture)?)?;
    let archive = target().join("relay-image").join(format!("{PROGRAM}-{}.docker.tar", architecture.oci()));
    // Pods that say `kftray-server:1.2.3` mean this name in full.
    part.write_docker(&archive, &format!("docker.io/library/{}", local_name()))?;
    Ok((local_name(), archive))
}

/// `kftray-server:VERSION`.
fn local_name() -> String {
    format!("{PROGRAM}:{}", env!("CARGO_PKG_VERSION"))
}

/// Builds the static program. The linker is the toolchain's own, so that no C compiler for the target is needed.
fn build(architecture: Architecture) -> Result<PathBuf> {
    let triple = architecture.target();
    let there = output(command("rustup", ["target", "list", "--installed"]).current_dir(root()));
    if there.is_ok_and(|there| !there.lines().any(|line| line == triple)) {
        show(command("rustup", ["target", "add", triple]).current_dir(root()))?;
    }
    let linker = format!("target.{triple}.linker=\"rust-lld\"");
    show(
        command("cargo", ["build", "--locked", "--profile", PROFILE, "-p", PROGRAM])
            .args(["--target", triple, "--config", &linker])
            .current_dir(root()),
    )?;
    Ok(target().join(triple).join(PROFILE).join(PROGRAM))
}

/// Runs the program, through an emulator if need be and there is one.
fn smoke_test(architecture: Architecture, program: &Path) -> Result<()> {
    let mut run = if architecture == Architecture::host()? {
        command(program, ["--version"])
    } else if on_path(architecture.emulator()) {
        let program = program.as_os_str();
        command(architecture.emulator(), [program, "--version".as_ref()])
    } else {
        println!(
            "NOT RUN: {} ({} is not installed; Debian has it in qemu-user-static)",
            program.display(),
            architecture.emulator()
        );
        return Ok(());
    };
    let said = output(&mut run)?;
    if said.trim() != format!("{PROGRAM}/{}", env!("CARGO_PKG_VERSION")) {
        bail!("{} says {said:?}", program.display());
    }
    Ok(())
}

/// That it is a program for the architecture which needs no other file: there is none in the image (elf(5)).
fn check_program(architecture: Architecture, program: &[u8]) -> Result<()> {
    let u16_at = |at: usize| Some(u16::from_le_bytes(*program.get(at..)?.first_chunk()?));
    let offset_at = |at: usize| usize::try_from(u64::from_le_bytes(*program.get(at..)?.first_chunk()?)).ok();
    let (machine, expected) = (u16_at(18), architecture.machine());
    if !program.starts_with(b"\x7fELF\x02\x01") || machine != Some(expected) {
        bail!("not a 64-bit program for {}", architecture.oci());
    }
    let (begin, size, count) = (offset_at(32), u16_at(54), u16_at(56));
    let (Some(begin), Some(size), Some(count)) = (begin, size, count) else { bail!("no program headers") };
    for number in 0..usize::from(count) {
        let kind = program.get(begin + number * usize::from(size)..).and_then(<[u8]>::first_chunk);
        match kind.map(|kind| u32::from_le_bytes(*kind)) {
            None => bail!("program headers beyond its end"),
            Some(PT_INTERP) => bail!("it is not static: it names an interpreter"),
            Some(_) => {}
        }
    }
    Ok(())
}

fn report(archive: &Path) -> Result<()> {
    let bytes = fs::metadata(archive)?.len();
    println!("{} ({:.1} MB)", archive.display(), bytes as f64 / 1e6);
    Ok(())
}

/// A piece of content that is named by its hash.
struct Blob {
    kind: &'static str,
    bytes: Vec<u8>,
}

impl Blob {
    fn json(kind: &'static str, value: &Value) -> Result<Self> {
        Ok(Self { kind, bytes: serde_json::to_vec(value)? })
    }

    fn hash(&self) -> String {
        Sha256::digest(&self.bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.kind,
            "digest": format!("sha256:{}", self.hash()),
            "size": self.bytes.len(),
        })
    }
}

/// One architecture's image.
struct Part {
    architecture: Architecture,
    layer: Blob,
    config: Blob,
    manifest: Blob,
}

impl Part {
    fn new(architecture: Architecture, program: &Path) -> Result<Self> {
        let contents = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
        check_program(architecture, &contents).with_context(|| program.display().to_string())?;
        let mut layer = tar::Builder::new(Vec::new());
        add(&mut layer, PROGRAM, 0o555, &contents)?;
        let licence = fs::read(root().join("LICENSE-MIT"))?;
        add(&mut layer, "LICENSE-MIT", 0o444, &licence)?;
        let layer = Blob { kind: "application/vnd.oci.image.layer.v1.tar", bytes: layer.into_inner()? };
        if layer.bytes.len() as u64 > MOST {
            bail!("the image for {} has {} bytes, more than {MOST}", architecture.oci(), layer.bytes.len());
        }
        let labels = json!({
            "org.opencontainers.image.title": PROGRAM,
            "org.opencontainers.image.description": "The relay of kftray: UDP, hosts that only the cluster reaches, reverse tunnels",
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
        });
        let config = json!({
            "architecture": architecture.oci(),
            "os": "linux",
            "config": { "Entrypoint": [format!("/{PROGRAM}")], "User": USER, "Labels": labels },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.hash())] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image" }],
        });
        let config = Blob::json("application/vnd.oci.image.config.v1+json", &config)?;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": kind,
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        });
        Ok(Self { architecture, layer, config, manifest: Blob::json(kind, &manifest)? })
    }

    /// For `docker load` and `ctr images import`.
    fn write_docker(&self, path: &Path, name: &str) -> Result<()> {
        let config = format!("{}.json", self.config.hash());
        let layer = format!("{}/layer.tar", self.layer.hash());
        let manifest = json!([{ "Config": config, "RepoTags": [name], "Layers": [layer] }]);
        write(path, |archive| {
            add(archive, &config, 0o644, &self.config.bytes)?;
            add(archive, &layer, 0o644, &self.layer.bytes)?;
            add(archive, "manifest.json", 0o644, &serde_json::to_vec(&manifest)?)
        })
    }
}

/// An image layout in a tar file, with one manifest per architecture (OCI image specification 1.1, image-layout).
fn write_oci(parts: &[Part], path: &Path, name: &str) -> Result<()> {
    let manifests: Vec<Value> = parts
        .iter()
        .map(|part| {
            let mut descriptor = part.manifest.descriptor();
            descriptor["platform"] = json!({ "architecture": part.architecture.oci(), "os": "linux" });
            descriptor
        })
        .collect();
    let kind = "application/vnd.oci.image.index.v1+json";
    let list = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": manifests });
    let list = Blob::json(kind, &list)?;
    let mut descriptor = list.descriptor();
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": [descriptor] });
    write(path, |archive| {
        add(archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add(archive, "index.json", 0o644, &serde_json::to_vec(&index)?)?;
        let blobs = parts.iter().flat_map(|part| [&part.manifest, &part.config, &part.layer]);
        for blob in blobs.chain([&list]) {
            add(archive, &format!("blobs/sha256/{}", blob.hash()), 0o644, &blob.bytes)?;
        }
        Ok(())
    })
}

fn write(path: &Path, fill: impl FnOnce(&mut tar::Builder<BufWriter<File>>) -> Result<()>) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = tar::Builder::new(BufWriter::new(file));
    fill(&mut archive)?;
    Ok(archive.into_inner()?.flush()?)
}

/// Adds a file of root's, without a time.
fn add(
    archive: &mut tar::Builder<impl std::io::Write>,
    name: &str,
    mode: u32,
    contents: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(contents.len() as u64);
    archive.append_data(&mut header, name, contents)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).unwrap();
            (name, contents)
        });
        entries.collect()
    }

    fn json(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Value {
        serde_json::from_slice(&files[name]).unwrap()
    }

    /// An ELF file with these program headers and nothing else.
    fn program(architecture: Architecture, kinds: &[u32]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        file[18..20].copy_from_slice(&architecture.machine().to_le_bytes());
        file[32] = 64;
        file[54] = 56;
        file[56] = u8::try_from(kinds.len()).unwrap();
        for kind in kinds {
            file.extend_from_slice(&kind.to_le_bytes());
            file.resize(file.len() + 52, 0);
        }
        file
    }

    #[test]
    fn only_a_static_program_of_the_architecture_goes_in() {
        let good = program(Architecture::Arm64, &[6, 1, 2]);
        check_program(Architecture::Arm64, &good).unwrap();
        for (architecture, bad) in [
            (Architecture::Amd64, good.clone()),
            (Architecture::Arm64, program(Architecture::Arm64, &[6, PT_INTERP, 1])),
            (Architecture::Arm64, good[..100].to_vec()),
            (Architecture::Arm64, b"#!/bin/sh".to_vec()),
        ] {
            check_program(architecture, &bad).unwrap_err();
        }
        // This very test needs its dynamic linker.
        if cfg!(all(target_os = "linux", target_env = "gnu")) {
            let own = fs::read(std::env::current_exe().unwrap()).unwrap();
            let error = check_program(Architecture::host().unwrap(), &own).unwrap_err();
            assert!(error.to_string().contains("static"), "{error}");
        }
    }

    #[test]
    fn archives_lead_from_their_index_to_the_program() {
        let scratch = std::env::temp_dir().join(format!("kftray-image-test-{}", std::process::id()));
        fs::create_dir_all(&scratch).unwrap();
        let parts = [Architecture::Amd64, Architecture::Arm64].map(|one| {
            let file = scratch.join(one.oci());
            fs::write(&file, program(one, &[1, 2])).unwrap();
            Part::new(one, &file).unwrap()
        });
        let (oci, docker) = (scratch.join("oci.tar"), scratch.join("docker.tar"));
        write_oci(&parts, &oci, "relay:1.2.3").unwrap();
        parts[0].write_docker(&docker, "relay:1.2.3").unwrap();

        let files_of_oci = files(&oci);
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:");
            let bytes = &files_of_oci[&format!("blobs/sha256/{digest}")];
            assert_eq!(descriptor["size"], bytes.len());
            bytes.clone()
        };
        let index = json(&files_of_oci, "index.json");
        assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "1.2.3");
        let list: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        for (number, architecture) in ["amd64", "arm64"].iter().enumerate() {
            let described = &list["manifests"][number];
            assert_eq!(described["platform"]["architecture"], *architecture);
            let manifest: Value = serde_json::from_slice(&blob(described)).unwrap();
            let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
            assert_eq!(config["config"]["User"], USER);
            assert_eq!(config["architecture"], *architecture);
            assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
            let layer = blob(&manifest["layers"][0]);
            let mut layer = tar::Archive::new(layer.as_slice());
            let first = layer.entries().unwrap().next().unwrap().unwrap();
            assert_eq!(first.path().unwrap().to_string_lossy(), "kftray-server");
            assert_eq!(first.header().mode().unwrap(), 0o555);
        }
        let docker = files(&docker);
        let manifest = json(&docker, "manifest.json");
        assert_eq!(manifest[0]["RepoTags"][0], "relay:1.2.3");
        assert!(docker.contains_key(manifest[0]["Layers"][0].as_str().unwrap()));
        assert!(docker.contains_key(manifest[0]["Config"].as_str().unwrap()));
        fs::remove_dir_all(&scratch).unwrap();
    }
}
