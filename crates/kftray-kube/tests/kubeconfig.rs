//! Kubeconfig files: path lists, folders, merging, what is wrong with them and where, and changes while running.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kftray_commons::{ClusterRef, Code, ContextRef};
use kftray_kube::ClusterState;
use support::{clusters, clusters_in, current, entry, environment, replace, settled, up, wait};

fn config(current: &str, contexts: &[(&str, &str)]) -> String {
    let mut text = format!("apiVersion: v1\nkind: Config\ncurrent-context: \"{current}\"\n");
    text.push_str("clusters:\n");
    for (name, server) in contexts {
        text.push_str(&format!("- name: {name}-c\n  cluster: {{server: \"{server}\"}}\n"));
    }
    text.push_str("users:\n");
    for (name, _) in contexts {
        text.push_str(&format!("- name: {name}-u\n  user: {{token: secret-{name}}}\n"));
    }
    text.push_str("contexts:\n");
    for (name, _) in contexts {
        text.push_str(&format!(
            "- name: {name}\n  context: {{cluster: {name}-c, user: {name}-u, namespace: ns-{name}}}\n"
        ));
    }
    text
}

fn write(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn contexts_are_chosen() {
    let home = tempfile::tempdir().unwrap();
    let text = config("b", &[("a", "https://a.test:6443"), ("b", "https://b.test/k8s/clusters/b/")]);
    let path = write(home.path(), "config", &text);
    let clusters = clusters();
    let a = up(&clusters, &path, "a").await;
    assert_eq!((a.context(), a.name(), a.user()), ("a", "a-c", Some("a-u")));
    assert_eq!((a.server().as_str(), a.default_namespace()), ("https://a.test:6443", "ns-a"));
    let b = settled(&clusters, &current(&path)).await.unwrap();
    assert_eq!((b.context(), b.server().as_str()), ("b", "https://b.test/k8s/clusters/b"));
    assert_ne!(a.id(), b.id());
    assert!(Arc::ptr_eq(&clusters.get(b.id()).unwrap(), &b));
    // One cluster for one entry, by whatever way it is reached.
    assert!(Arc::ptr_eq(&up(&clusters, &path, "b").await, &b));
}

#[tokio::test]
async fn lists_and_folders_are_merged_and_the_first_wins() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("more");
    std::fs::create_dir(&folder).unwrap();
    let first = write(home.path(), "first", &config("", &[("a", "https://first.test")]));
    write(&folder, "20-b.yaml", &config("b", &[("b", "https://b.test"), ("a", "https://never.test")]));
    write(&folder, "10-c.yaml", &config("c", &[("c", "https://c.test")]));
    write(&folder, "README.md", "# Not a kubeconfig: [\n");
    write(&folder, "notes.txt", "just text");
    let list = format!("{}::{}:{}", first.display(), folder.display(), home.path().join("absent").display());
    let clusters = clusters();
    for (context, server) in [("a", "https://first.test"), ("b", "https://b.test"), ("c", "https://c.test")] {
        let reference =
            ClusterRef { kubeconfig: Some(list.clone()), context: ContextRef::Named(context.to_owned()) };
        assert_eq!(settled(&clusters, &reference).await.unwrap().server(), server);
    }
    // An empty current-context sets nothing, and 10-c comes before 20-b.
    let reference = ClusterRef { kubeconfig: Some(list), context: ContextRef::Current };
    assert_eq!(settled(&clusters, &reference).await.unwrap().context(), "c");
}

#[tokio::test]
async fn the_environment_names_the_files() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".kube")).unwrap();
    write(&home.path().join(".kube"), "config", &config("home", &[("home", "https://home.test")]));
    let other = write(home.path(), "other", &config("other", &[("other", "https://other.test")]));
    let home_path = home.path().to_str().unwrap();
    let by = |variables: &[(&str, &str)]| clusters_in(environment(variables));
    let reference = ClusterRef::default();
    let cluster = settled(&by(&[("HOME", home_path)]), &reference).await.unwrap();
    assert_eq!(cluster.context(), "home");
    let list = format!("{}:{}", home.path().join("absent").display(), other.display());
    let cluster = settled(&by(&[("HOME", home_path), ("KUBECONFIG", &list)]), &reference).await.unwrap();
    assert_eq!(cluster.context(), "other");
}

#[tokio::test]
async fn problems_have_a_place() {
    let home = tempfile::tempdir().unwrap();
    let clusters = clusters();
    let absent = home.path().join("absent");
    let problem = settled(&clusters, &current(&absent)).await.unwrap_err();
    assert_eq!(problem.code, Code::KubeconfigMissing);
    assert!(problem.message.contains(absent.to_str().unwrap()), "{problem}");

    let bad =
        write(home.path(), "bad", "apiVersion: v1\nkind: Config\ncontexts:\n- name: [unclosed\nusers: x\n");
    let problem = settled(&clusters, &current(&bad)).await.unwrap_err();
    assert_eq!(problem.code, Code::KubeconfigInvalid);
    assert!(problem.message.starts_with(&format!("{}:", bad.display())), "{problem}");
    let place = problem.message[bad.display().to_string().len() + 1..].split(':').next().unwrap();
    assert!((3..=5).contains(&place.parse::<u32>().unwrap()), "{problem}");

    let wrong_type =
        write(home.path(), "type", "contexts:\n- name: x\n  context: {cluster: {a: s3cr3t-value}}\n");
    let problem = settled(&clusters, &current(&wrong_type)).await.unwrap_err();
    assert_eq!(problem.code, Code::KubeconfigInvalid);
    assert!(problem.message.contains(":3:"), "{problem}");

    let good = write(home.path(), "good", &config("", &[("a", "https://a.test"), ("b", "https://b.test")]));
    let problem = settled(&clusters, &entry(&good, "c")).await.unwrap_err();
    assert_eq!(problem.code, Code::ContextMissing);
    assert!(problem.message.contains("\"c\"") && problem.message.ends_with("a, b"), "{problem}");
    let problem = settled(&clusters, &current(&good)).await.unwrap_err();
    assert_eq!(problem.code, Code::ContextMissing);
    assert!(problem.message.contains("no current-context"), "{problem}");
    assert!(problem.remedy.contains("use-context"), "{problem:?}");

    let text = config("a", &[("a", "https://a.test")]).replace("cluster: a-c", "cluster: gone");
    let dangling = write(home.path(), "dangling", &text);
    let problem = settled(&clusters, &current(&dangling)).await.unwrap_err();
    assert_eq!(problem.code, Code::ContextMissing);
    assert!(problem.message.contains("cluster \"gone\"") && problem.message.contains("a-c"), "{problem}");
    let text = config("a", &[("a", "https://a.test")]).replace("user: a-u", "user: gone");
    let dangling = write(home.path(), "dangling2", &text);
    let problem = settled(&clusters, &current(&dangling)).await.unwrap_err();
    assert_eq!(
        (problem.code, problem.message.contains("user \"gone\"")),
        (Code::ContextMissing, true),
        "{problem}"
    );

    for (from, to, part) in [
        ("server: \"https://a.test\"", "server: \"\"", "no server"),
        ("server: \"https://a.test\"", "server: \"unix:///x\"", "neither https nor http"),
        (
            "server: \"https://a.test\"",
            "server: \"https://a.test\", certificate-authority: absent.pem",
            "absent.pem",
        ),
        (
            "server: \"https://a.test\"",
            "server: \"https://a.test\", certificate-authority-data: \"%%\"",
            "base64",
        ),
        ("token: secret-a", "exec: {apiVersion: v0, command: x}", "apiVersion"),
    ] {
        let path = write(home.path(), "broken", &config("a", &[("a", "https://a.test")]).replace(from, to));
        let problem = settled(&support::clusters(), &current(&path)).await.unwrap_err();
        assert_eq!(problem.code, Code::KubeconfigInvalid, "{problem}");
        assert!(problem.message.contains(part), "{problem}");
        assert!(!problem.message.contains("secret-a"), "{problem}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn relative_paths_are_below_their_file() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("deep")).unwrap();
    write(&home.path().join("deep"), "ca.pem", "no certificate in here");
    let text = config("a", &[("a", "https://a.test")]).replace(
        "server: \"https://a.test\"",
        "server: \"https://a.test\", certificate-authority: deep/ca.pem",
    );
    let path = write(home.path(), "config", &text);
    let problem = settled(&clusters(), &current(&path)).await.unwrap_err();
    // Read, and found to be no certificate.
    assert!(problem.message.contains("no usable certificate"), "{problem}");
}

#[cfg(unix)]
#[tokio::test]
async fn unreadable_is_told() {
    let home = tempfile::tempdir().unwrap();
    // Root may read everything, so something that is no file at all stands for it.
    let socket = home.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let problem = settled(&clusters(), &current(&socket)).await.unwrap_err();
    assert_eq!(problem.code, Code::KubeconfigMissing);
    assert!(problem.message.contains("cannot be read"), "{problem}");
}

fn server_of(state: &ClusterState) -> String {
    match state {
        ClusterState::Up(cluster) => cluster.server(),
        ClusterState::Failed(problem) => problem.message.clone(),
        ClusterState::Pending => String::new(),
    }
}

#[tokio::test]
async fn edits_replacements_and_disappearance_are_followed() {
    let home = tempfile::tempdir().unwrap();
    let path = write(home.path(), "config", &config("a", &[("a", "https://one.test")]));
    let clusters = clusters();
    let mut states = clusters.follow(&entry(&path, "a"));
    let first = wait(&mut states, |state| server_of(state) == "https://one.test").await;

    // Edited in place.
    std::fs::write(&path, config("a", &[("a", "https://two.test")])).unwrap();
    let second = wait(&mut states, |state| server_of(state) == "https://two.test").await;
    let (ClusterState::Up(first), ClusterState::Up(second)) = (first, second) else { panic!("both up") };
    assert_ne!(first.id(), second.id());

    // Replaced by renaming.
    replace(&path, &config("a", &[("a", "https://three.test")]));
    wait(&mut states, |state| server_of(state) == "https://three.test").await;

    // Broken for longer than a save takes, then removed, then back.
    replace(&path, "contexts: [");
    let state = wait(&mut states, |state| matches!(state, ClusterState::Failed(_))).await;
    assert!(matches!(state, ClusterState::Failed(problem) if problem.code == Code::KubeconfigInvalid));
    std::fs::remove_file(&path).unwrap();
    wait(
        &mut states,
        |state| matches!(state, ClusterState::Failed(it) if it.code == Code::KubeconfigMissing),
    )
    .await;
    replace(&path, &config("a", &[("a", "https://four.test")]));
    wait(&mut states, |state| server_of(state) == "https://four.test").await;
}

#[tokio::test]
async fn a_file_that_appears_later_is_noticed() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("not").join("yet").join("config");
    let clusters = clusters();
    let mut states = clusters.follow(&entry(&path, "a"));
    wait(&mut states, |state| matches!(state, ClusterState::Failed(_))).await;
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, config("a", &[("a", "https://late.test")])).unwrap();
    wait(&mut states, |state| server_of(state) == "https://late.test").await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_to_another_folder_is_followed() {
    let home = tempfile::tempdir().unwrap();
    let real = home.path().join("dotfiles");
    std::fs::create_dir(&real).unwrap();
    let target = write(&real, "kubeconfig", &config("a", &[("a", "https://one.test")]));
    let kube = home.path().join("kube");
    std::fs::create_dir(&kube).unwrap();
    let path = kube.join("config");
    std::os::unix::fs::symlink(&target, &path).unwrap();
    let clusters = clusters();
    let mut states = clusters.follow(&entry(&path, "a"));
    wait(&mut states, |state| server_of(state) == "https://one.test").await;
    std::fs::write(&target, config("a", &[("a", "https://two.test")])).unwrap();
    wait(&mut states, |state| server_of(state) == "https://two.test").await;
}

#[tokio::test]
async fn a_switch_moves_those_who_follow_and_nobody_else() {
    let home = tempfile::tempdir().unwrap();
    let contexts = [("a", "https://a.test"), ("b", "https://b.test")];
    let path = write(home.path(), "config", &config("a", &contexts));
    let clusters = clusters();
    let mut following = clusters.follow(&current(&path));
    let mut pinned = clusters.follow(&entry(&path, "a"));
    wait(&mut following, |state| server_of(state) == "https://a.test").await;
    wait(&mut pinned, |state| server_of(state) == "https://a.test").await;
    pinned.mark_unchanged();
    replace(&path, &config("b", &contexts));
    wait(&mut following, |state| server_of(state) == "https://b.test").await;
    // The pinned one is read by the same hint; give it the time in which the other one moved, twice.
    assert!(
        tokio::time::timeout(Duration::from_secs(1), pinned.changed()).await.is_err(),
        "a pinned context moved"
    );
    // An entry that is rewritten without a difference is no change either.
    following.mark_unchanged();
    replace(&path, &format!("# a comment\n{}", config("b", &contexts)));
    assert!(
        tokio::time::timeout(Duration::from_secs(1), following.changed()).await.is_err(),
        "nothing changed"
    );
}

#[tokio::test]
async fn followers_end_with_their_receivers() {
    let home = tempfile::tempdir().unwrap();
    let path = write(home.path(), "config", &config("a", &[("a", "https://a.test")]));
    let clusters = clusters();
    let mut states = clusters.follow(&entry(&path, "a"));
    let ClusterState::Up(cluster) = wait(&mut states, |state| matches!(state, ClusterState::Up(_))).await
    else {
        panic!("up")
    };
    let id = cluster.id();
    drop(cluster);
    assert!(clusters.get(id).is_some());
    drop(states);
    let gone = async {
        while clusters.get(id).is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, gone).await.expect("released within 30 s");
    // And it can be followed again.
    up(&clusters, &path, "a").await;
}
