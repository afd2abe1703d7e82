//! Container images without a container tool: a docker-archive of one layer, which `ctr images import` takes.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::build::{Programs, cached, traefik};
use super::debian;
use crate::paths::ContentKey;

/// Raise when the archives' form changes: it is part of every image's key.
const FORMAT: &str = "1";

/// The registry name of all our images; it is never asked, since every pod says `imagePullPolicy: Never`.
const REGISTRY: &str = "kftray.test";

/// One image: its archive and the name that pods use.
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) archive: PathBuf,
}

/// What the container starts with.
struct Start<'a> {
    entrypoint: &'a [&'a str],
    /// `UID:GID`, or empty for root.
    user: &'a str,
}

/// What a node needs to run its first pods: the sandbox, cluster DNS, the fixture.
pub(crate) fn basic(programs: &Programs) -> Result<Vec<Image>> {
    Ok(vec![
        static_program("pause", &programs.fixture, &["/pause", "pause"])?,
        static_program("coredns", &programs.coredns, &["/coredns"])?,
        static_program("fixture", &programs.fixture, &["/fixture"])?,
    ])
}

/// The Ingress controller.
pub(crate) fn ingress() -> Result<Image> {
    static_program("traefik", &traefik()?, &["/traefik"])
}

/// Real servers from the distribution's packages.
pub(crate) fn servers() -> Result<Vec<Image>> {
    debian::SERVERS.iter().map(debian_server).collect()
}

fn static_program(name: &str, program: &Path, entrypoint: &[&str]) -> Result<Image> {
    let inside = entrypoint.first().copied().unwrap_or_default().trim_start_matches('/').to_owned();
    let contents = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let key = ContentKey::default().add(FORMAT).add(entrypoint.join(" ")).add(&contents);
    image(name, key, &Start { entrypoint, user: "" }, |layer, _| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(contents.len() as u64);
        layer.append_data(&mut header, inside, contents.as_slice())?;
        Ok(())
    })
}

fn debian_server(server: &debian::Server) -> Result<Image> {
    let key = ContentKey::default().add(FORMAT).add(server.recipe()?);
    let start = Start { entrypoint: &["/bin/sh", "/start.sh"], user: server.user };
    image(server.name, key, &start, |layer, scratch| {
        let root = scratch.join("root");
        server.unpack(&root)?;
        layer.follow_symlinks(false);
        layer.mode(tar::HeaderMode::Deterministic);
        layer.append_dir_all(".", &root)?;
        let mut tmp = tar::Header::new_gnu();
        tmp.set_entry_type(tar::EntryType::Directory);
        tmp.set_mode(0o1777);
        tmp.set_size(0);
        layer.append_data(&mut tmp, "tmp/", io::empty())?;
        std::fs::remove_dir_all(&root)?;
        Ok(())
    })
}

/// The layer being written: its hash is the layer's name.
type Layer = tar::Builder<Hashing<BufWriter<File>>>;

fn image(
    name: &str,
    key: ContentKey,
    start: &Start<'_>,
    fill: impl FnOnce(&mut Layer, &Path) -> Result<()>,
) -> Result<Image> {
    let full_name = format!("{REGISTRY}/{name}:1");
    let place = cached(&format!("image-{name}"), key, |scratch| {
        let layer_path = scratch.join("layer.tar");
        let mut layer = tar::Builder::new(Hashing {
            inner: BufWriter::new(File::create(&layer_path)?),
            sum: Sha256::new(),
        });
        fill(&mut layer, scratch)?;
        let mut hashing = layer.into_inner()?;
        hashing.flush()?;
        let digest = hex(&hashing.sum.finalize());
        archive(&scratch.join("image.tar"), &full_name, start, &layer_path, &digest)?;
        std::fs::remove_file(&layer_path)?;
        Ok(())
    })?;
    Ok(Image { name: full_name, archive: place.join("image.tar") })
}

fn archive(out: &Path, name: &str, start: &Start<'_>, layer: &Path, digest: &str) -> Result<()> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": start.entrypoint,
            "User": start.user,
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"],
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        "history": [{ "created": "1970-01-01T00:00:00Z" }],
    });
    let config = serde_json::to_vec(&config)?;
    let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
    let layer_name = format!("{digest}/layer.tar");
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": [layer_name] }]);
    let mut archive = tar::Builder::new(BufWriter::new(File::create(out)?));
    add(&mut archive, &config_name, &config)?;
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(layer.metadata()?.len());
    archive.append_data(&mut header, layer_name, File::open(layer)?)?;
    add(&mut archive, "manifest.json", &serde_json::to_vec(&manifest)?)?;
    archive.into_inner()?.flush()?;
    Ok(())
}

fn add(archive: &mut tar::Builder<impl Write>, name: &str, contents: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(contents.len() as u64);
    archive.append_data(&mut header, name, contents)?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A writer that hashes what passes through.
struct Hashing<W> {
    inner: W,
    sum: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
