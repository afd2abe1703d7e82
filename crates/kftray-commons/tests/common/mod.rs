//! A store in a directory of its own, and forwards to put into it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use kftray_commons::ForwardSpec;
use kftray_commons::border::{self, Defaults};
use kftray_commons::store::{Directory, Draft, Incoming, Store};
use tempfile::TempDir;

/// A store and what keeps its directory alive.
pub struct Scratch {
    pub temporary: TempDir,
    pub directory: Directory,
    pub store: Store,
}

pub fn scratch() -> Scratch {
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = Directory::at(temporary.path().join("kftray"));
    let store = Store::open(&directory).expect("a new store");
    Scratch { temporary, directory, store }
}

/// The entries of a text; all of them are right.
pub fn incoming(text: &str) -> Vec<Incoming> {
    let read = border::import(text, &Defaults::default());
    let faults: Vec<_> = read.faults().collect();
    assert!(faults.is_empty(), "{faults:?}");
    Incoming::of(&read)
}

pub fn draft(text: &str) -> Draft {
    let mut all = incoming(text);
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0).draft
}

/// A forward to a Service of that name.
pub fn service(name: &str, local: u16, remote: u16) -> Draft {
    draft(&format!(
        r#"{{"service":"{name}","local_port":{local},"remote_port":{remote},"context":"dev","namespace":"shop"}}"#
    ))
}

pub fn spec(draft: &Draft) -> &ForwardSpec {
    &draft.spec
}
