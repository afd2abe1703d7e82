//! The cgroup that holds all pods of one cluster. Two kubelets must not share one: each removes the pods it does not know.
//! It also names exactly the processes that a dead cluster left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::process::end_pid;
use crate::wait;

/// Killed processes leave their cgroup when the kernel has torn them down.
const EMPTY: Duration = Duration::from_secs(20);

/// The cgroup of this name in every mounted hierarchy (v1 has one per controller, v2 a single one).
fn directories(name: &str) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let hierarchies = mounts.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup" || kind == "cgroup2").then(|| Path::new(place).join(name))
    });
    Ok(hierarchies.collect())
}

/// Makes it, with all controllers its parents have.
pub(crate) fn create(name: &str) -> Result<()> {
    for directory in directories(name)? {
        let parent = directory.parent().unwrap_or(Path::new("/")).to_path_buf();
        if let Ok(controllers) = fs::read_to_string(parent.join("cgroup.controllers")) {
            for controller in controllers.split_whitespace() {
                // A controller that cannot be had (real-time processes, threaded mode) is the kubelet's to complain of.
                drop(fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}")));
            }
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make cgroup {}", directory.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // cgroup v1: a new cpuset is empty, and no process can enter an empty one.
            if directory.join("cpuset.cpu_exclusive").exists() {
                fs::write(directory.join(file), fs::read(parent.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Kills every process in it and removes it.
pub(crate) fn remove(name: &str) -> Result<()> {
    let directories = directories(name)?;
    wait::until(&format!("end of the processes in cgroup {name}"), EMPTY, || {
        let mut pids = Vec::new();
        for directory in &directories {
            processes(directory, &mut pids);
        }
        pids.iter().for_each(|pid| end_pid(*pid));
        Ok(pids.is_empty())
    })?;
    // A cgroup is busy for a moment after its last process.
    wait::until(&format!("removal of cgroup {name}"), EMPTY, || {
        directories.iter().for_each(|directory| remove_tree(directory));
        Ok(!directories.iter().any(|directory| directory.exists()))
    })
}

fn children(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

fn processes(directory: &Path, pids: &mut Vec<i32>) {
    let list = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()));
    children(directory).for_each(|child| processes(&child, pids));
}

fn remove_tree(directory: &Path) {
    children(directory).for_each(|child| remove_tree(&child));
    // Busy: the caller looks again.
    drop(fs::remove_dir(directory));
}
