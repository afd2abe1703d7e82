//! Where the configuration directory is, and that nobody else can read or swap what is in it.

#![cfg(unix)]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use kftray_commons::Code;
use kftray_commons::store::{Directory, Environment, Rule};

fn environment(kftray: &str, xdg: &str, home: &str) -> Environment {
    let said = |text: &str| (text != "-").then(|| OsString::from(text));
    Environment {
        kftray_config: said(kftray),
        xdg_config_home: said(xdg),
        home: said(home).map(PathBuf::from),
        current_directory: Some("/base".into()),
    }
}

fn resolved(kftray: &str, xdg: &str, home: &str, there: &[&str]) -> Option<(String, Rule)> {
    let exists = |path: &Path| there.iter().any(|known| Path::new(known) == path);
    let found = Directory::resolve(&environment(kftray, xdg, home), exists).ok()?;
    Some((found.path().to_string_lossy().into_owned(), found.rule()))
}

#[test]
fn the_rules_in_their_order() {
    let all = ["/x/kftray", "/home/u/.kftray"];
    let cases = [
        ("/k", "/x", "/home/u", &all[..], Some(("/k", Rule::Variable))),
        ("k", "/x", "/home/u", &all, Some(("/base/k", Rule::Variable))),
        ("", "/x", "/home/u", &all, Some(("/x/kftray", Rule::Xdg))),
        ("-", "/x", "/home/u", &all, Some(("/x/kftray", Rule::Xdg))),
        ("-", "/x", "/home/u", &all[1..], Some(("/home/u/.kftray", Rule::Home))),
        ("-", "/x", "/home/u", &[], Some(("/home/u/.kftray", Rule::Home))),
        ("-", "", "/home/u", &all, Some(("/home/u/.kftray", Rule::Home))),
        ("-", "x", "/home/u", &["x/kftray"], Some(("/home/u/.kftray", Rule::Home))),
        ("-", "-", "/home/u", &all, Some(("/home/u/.kftray", Rule::Home))),
        ("-", "-", "", &all, None),
        ("-", "-", "-", &all, None),
    ];
    for (kftray, xdg, home, there, expected) in cases {
        let found = resolved(kftray, xdg, home, there);
        let found = found.as_ref().map(|(path, rule)| (path.as_str(), *rule));
        assert_eq!(found, expected, "{kftray} {xdg} {home} {there:?}");
    }
}

#[test]
fn it_is_closed_to_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let temporary = tempfile::tempdir().expect("a directory");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;

    let fresh = temporary.path().join("a/b/kftray");
    Directory::at(&fresh).prepare().expect("made");
    assert_eq!(mode(&fresh), 0o700);

    let open = temporary.path().join("open");
    fs::create_dir(&open).expect("made");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).expect("opened");
    Directory::at(&open).prepare().expect("closed");
    assert_eq!(mode(&open), 0o700);
}

#[test]
fn links_and_files_are_refused() {
    let temporary = tempfile::tempdir().expect("a directory");
    let real = temporary.path().join("real");
    fs::create_dir(&real).expect("made");
    let link = temporary.path().join("link");
    std::os::unix::fs::symlink(&real, &link).expect("linked");
    let file = temporary.path().join("file");
    fs::write(&file, "").expect("written");
    for (path, word) in
        [(&link, "symbolic link"), (&file, "no directory"), (&file.join("below"), "cannot be used")]
    {
        let problem = Directory::at(path.clone()).prepare().expect_err("refused");
        assert_eq!(problem.code, Code::DirectoryRefused);
        assert!(problem.message.contains(word), "{problem}");
    }
    // A link on the way to it is the business of whoever made it.
    Directory::at(link.join("below")).prepare().expect("made");
}

#[test]
fn forwards_elsewhere_are_found() {
    let there = ["/x/kftray/configs.db", "/home/u/.kftray/kftray.db"];
    let exists = |path: &Path| there.iter().any(|known| Path::new(known) == path);
    let others = |path: &str| Directory::at(path).others(&environment("/k", "/x", "/home/u"), exists);
    assert_eq!(others("/k"), [Path::new("/x/kftray"), Path::new("/home/u/.kftray")]);
    assert_eq!(others("/x/kftray"), [Path::new("/home/u/.kftray")]);
    assert!(Directory::at("/k").others(&environment("/k", "-", "-"), exists).is_empty());
}
