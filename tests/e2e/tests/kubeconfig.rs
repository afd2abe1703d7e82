//! The kubeconfig and its plugins change or fail; the state says so, and recovery follows.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::{Forward, Ground, client};
use tempfile::TempDir;

const HOLD: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(60);

/// A directory with a copy of the administrator's kubeconfig.
fn copied(ground: &Ground) -> Result<(TempDir, String)> {
    Ok((tempfile::tempdir()?, std::fs::read_to_string(&ground.kubeconfig)?))
}

/// Replaces a file as editors do: a new one beside it, renamed over it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text)?;
    std::fs::rename(beside, path)?;
    Ok(())
}

async fn needs_user(forward: &mut Forward, code: &str) -> Result<String> {
    let wanted = |event: &serde_json::Value| {
        event["status"]["phase"] == "needs_user" && event["status"]["cause"]["code"] == code
    };
    let event = forward.until_that(code, LIMIT, wanted).await?;
    Ok(event["status"]["cause"]["message"].as_str().context("a message")?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubeconfig_that_appears_while_running_is_used() -> Result<()> {
    let ground = Ground::from_env()?;
    let (directory, text) = copied(&ground)?;
    let path = directory.path().join("config");
    let mut forward = Forward::start(&ground, &path, &["--keep-trying", "svc/web", ":80"])?;
    let message = needs_user(&mut forward, "kubeconfig_missing").await?;
    ensure!(message.contains(path.to_str().context("a path")?), "{message}");
    replace(&path, &text)?;
    forward.until("all_ready", LIMIT).await?;
    client::get(forward.port()?, "/", HOLD).await?;

    // An edit that breaks it is told with its place, and does not cut what works before it is needed; mending it recovers.
    replace(&path, "apiVersion: v1\nclusters: [\n")?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    replace(&path, &text)?;
    client::get(forward.port()?, "/", HOLD).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_is_missing_is_named_and_its_coming_noticed() -> Result<()> {
    let ground = Ground::from_env()?;
    let (directory, text) = copied(&ground)?;
    let path = directory.path().join("config");
    std::fs::write(&path, &text)?;
    let mut forward =
        Forward::start(&ground, &path, &["--keep-trying", "--context", "elsewhere", "svc/web", ":80"])?;
    let message = needs_user(&mut forward, "context_missing").await?;
    ensure!(message.contains("elsewhere"), "{message}");
    let current = ground.kubectl(&["config", "current-context"]).await?;
    replace(&path, &text.replace(current.trim(), "elsewhere"))?;
    forward.until("all_ready", LIMIT).await?;
    client::get(forward.port()?, "/", HOLD).await?;
    Ok(())
}

/// A kubeconfig whose user is an exec plugin, with the administrator's certificate behind it.
async fn with_plugin(ground: &Ground, directory: &Path, script: &str) -> Result<std::path::PathBuf> {
    let plugin = directory.join("plugin.sh");
    std::fs::write(&plugin, script)?;
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755))?;
    let view = |path: &'static str| async move {
        let path = format!("jsonpath={path}");
        ground.kubectl(&["config", "view", "--raw", "--minify", "-o", path.as_str()]).await
    };
    let server = view("{.clusters[0].cluster.server}").await?;
    let authority = view("{.clusters[0].cluster.certificate-authority-data}").await?;
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"{server}\", certificate-authority-data: {authority}}}}}]\n\
         users: [{{name: u, user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, command: {}, interactiveMode: Never}}}}}}]\n",
        plugin.display()
    );
    let path = directory.join("config");
    std::fs::write(&path, kubeconfig)?;
    Ok(path)
}

/// A plugin that prints a token of a service account with all rights, and counts its runs.
async fn working_plugin(ground: &Ground, directory: &Path) -> Result<String> {
    let account = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: e2e-plugin, namespace: kftest}\n---\n\
        apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: e2e-plugin}\n\
        roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}\n\
        subjects: [{kind: ServiceAccount, name: e2e-plugin, namespace: kftest}]\n";
    ground.apply(account).await?;
    let token = ground.kubectl(&["-n", "kftest", "create", "token", "e2e-plugin"]).await?;
    let credential = format!(
        r#"{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{{"token":"{}"}}}}"#,
        token.trim()
    );
    Ok(format!("#!/bin/sh\necho run >> {}\necho '{credential}'\n", directory.join("runs").display()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_runs_once_for_all_forwards() -> Result<()> {
    let ground = Ground::from_env()?;
    let directory = tempfile::tempdir()?;
    let script = working_plugin(&ground, directory.path()).await?;
    let path = with_plugin(&ground, directory.path(), &script).await?;
    let mut forward =
        Forward::start(&ground, &path, &["svc/web", ":80", "svc/redis", ":6379", "deploy/web", ":8080"])?;
    forward.until("all_ready", LIMIT).await?;
    client::get(forward.port()?, "/", HOLD).await?;
    let runs = std::fs::read_to_string(directory.path().join("runs"))?;
    assert_eq!(runs.lines().count(), 1, "one run serves every forward");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_fails_is_told_and_its_repair_noticed() -> Result<()> {
    let ground = Ground::from_env()?;
    let working = tempfile::tempdir()?;
    let script = working_plugin(&ground, working.path()).await?;
    for (broken, hint) in [
        ("#!/bin/sh\necho this is no JSON\n", "JSON"),
        ("#!/bin/sh\necho please log in >&2\nexit 3\n", "please log in"),
    ] {
        let directory = tempfile::tempdir()?;
        let path = with_plugin(&ground, directory.path(), broken).await?;
        let mut forward = Forward::start(&ground, &path, &["--keep-trying", "svc/web", ":80"])?;
        let message = needs_user(&mut forward, "plugin_failed").await?;
        ensure!(message.contains(hint), "{message}");
        // The person repairs the plugin and touches the kubeconfig, as a login does.
        std::fs::write(directory.path().join("plugin.sh"), &script)?;
        let text = std::fs::read_to_string(&path)?;
        replace(&path, &format!("{text}# logged in\n"))?;
        forward.until("all_ready", LIMIT).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_is_missing_or_hangs_is_told() -> Result<()> {
    let ground = Ground::from_env()?;
    let directory = tempfile::tempdir()?;
    let path = with_plugin(&ground, directory.path(), "").await?;
    std::fs::remove_file(directory.path().join("plugin.sh"))?;
    let mut forward = Forward::start(&ground, &path, &["--keep-trying", "svc/web", ":80"])?;
    needs_user(&mut forward, "plugin_missing").await?;

    let path = with_plugin(&ground, directory.path(), "#!/bin/sh\nsleep 600\n").await?;
    let mut forward = Forward::start(&ground, &path, &["--keep-trying", "svc/web", ":80"])?;
    let message = needs_user(&mut forward, "plugin_failed").await?;
    ensure!(message.contains("30 s"), "{message}");
    Ok(())
}
