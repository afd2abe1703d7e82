//! Logging in: tokens, files, certificates and exec plugins, run once for everybody and again when rejected.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use kftray_commons::Code;
use kftray_kube::Protocol;
use kftray_testkit::{Context, FakeCluster, Kubeconfig, Login, PluginAnswer};
use support::{PATIENCE, clusters, clusters_in, current, environment, replace, script, settled, up, version};

const USER: &str = kftray_testkit::ADMIN;

#[tokio::test]
async fn every_way_to_log_in() {
    let fake = FakeCluster::start().await.unwrap();
    let clusters = clusters();
    for suffix in ["", "-token", "-token-file", "-exec", "-basic", "-insecure", "-server-name"] {
        let cluster = up(&clusters, &fake.kubeconfig_path(), &format!("{USER}{suffix}")).await;
        version(&cluster).await.unwrap_or_else(|problem| panic!("{suffix}: {problem}"));
    }
}

#[tokio::test]
async fn a_plugin_runs_once_for_everybody() {
    let fake = FakeCluster::start().await.unwrap();
    fake.pod("web").create().unwrap();
    fake.wait_ready("default", "web", 1).await.unwrap();
    let pod = fake.pods("default", "web").remove(0);
    let clusters = clusters();
    let cluster = up(&clusters, &fake.kubeconfig_path(), &format!("{USER}-exec")).await;
    let plugin = fake.exec_plugin(USER).unwrap();
    assert_eq!(plugin.runs(), 0, "nothing is run before it is needed");
    let requests = join_all((0..20).map(|_| version(&cluster)));
    let upgrades = join_all((0..5).map(|_| cluster.upgrade("default", &pod, Protocol::Spdy, &[])));
    let (requests, upgrades) = futures::join!(requests, upgrades);
    requests.into_iter().for_each(|result| result.unwrap());
    upgrades.into_iter().for_each(|result| drop(result.unwrap()));
    assert_eq!(plugin.runs(), 1);
}

#[tokio::test]
async fn a_rejected_token_is_renewed_once_for_everybody() {
    let fake = FakeCluster::start().await.unwrap();
    let clusters = clusters();
    let cluster = up(&clusters, &fake.kubeconfig_path(), &format!("{USER}-exec")).await;
    version(&cluster).await.unwrap();
    let plugin = fake.exec_plugin(USER).unwrap();
    fake.revoke_tokens(USER);
    plugin.answer(PluginAnswer::Token).unwrap();
    for result in join_all((0..20).map(|_| version(&cluster))).await {
        result.unwrap();
    }
    assert_eq!(plugin.runs(), 2, "one run for twenty rejected requests");
}

#[tokio::test]
async fn what_a_fresh_login_does_not_cure_is_told() {
    let fake = FakeCluster::start().await.unwrap();
    let clusters = clusters();
    let cluster = up(&clusters, &fake.kubeconfig_path(), &format!("{USER}-exec")).await;
    fake.faults().unauthorized(true);
    for _ in 0..5 {
        let problem = version(&cluster).await.unwrap_err();
        assert_eq!(problem.code, Code::Unauthorized);
        assert!(problem.message.contains("fake-cloud-login"), "{problem}");
    }
    assert_eq!(fake.exec_plugin(USER).unwrap().runs(), 2, "a rejected renewal is not renewed at once");
    let static_token = up(&clusters, &fake.kubeconfig_path(), &format!("{USER}-token")).await;
    let problem = static_token.upgrade("default", "x", Protocol::Spdy, &[]).await.unwrap_err().problem;
    assert_eq!(problem.code, Code::Unauthorized);
    assert!(problem.message.contains("token of the kubeconfig"), "{problem}");
}

#[tokio::test]
async fn expiring_tokens_are_renewed_before_they_expire() {
    let fake = FakeCluster::start().await.unwrap();
    let clusters = clusters();
    let cluster = up(&clusters, &fake.kubeconfig_path(), &format!("{USER}-exec")).await;
    let plugin = fake.exec_plugin(USER).unwrap();
    // Used for half of its time, since it is shorter than the margin.
    plugin.answer(PluginAnswer::TokenFor(Duration::from_secs(8))).unwrap();
    version(&cluster).await.unwrap();
    assert_eq!(plugin.runs(), 1);
    tokio::time::sleep(Duration::from_millis(4200)).await;
    plugin.answer(PluginAnswer::Token).unwrap();
    let rejected = fake.counters().unauthorized.get();
    version(&cluster).await.unwrap();
    assert_eq!(plugin.runs(), 2);
    assert_eq!(fake.counters().unauthorized.get(), rejected, "renewed before, not after the rejection");
}

#[tokio::test]
async fn plugin_certificates_are_used_and_renewed_before_they_expire() {
    let fake = FakeCluster::start().await.unwrap();
    let plugin = fake.exec_plugin(USER).unwrap();
    plugin.answer(PluginAnswer::Certificate).unwrap();
    let printed = plugin.command().with_file_name("credential");
    let mut credential: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&printed).unwrap()).unwrap();
    // One that is issued for less than a minute is used for half of its time.
    let life = Duration::from_secs(6);
    let end = jiff::Timestamp::now() + jiff::SignedDuration::try_from(life).unwrap();
    credential["status"]["expirationTimestamp"] = serde_json::json!(end.to_string());
    replace(&printed, &credential.to_string());
    let cluster = up(&clusters(), &fake.kubeconfig_path(), &format!("{USER}-exec")).await;
    version(&cluster).await.unwrap();
    assert_eq!((plugin.runs(), fake.counters().tls_handshakes.get()), (1, 1));
    tokio::time::sleep(life / 2).await;
    version(&cluster).await.unwrap();
    // A connection is bound to the certificate that it was opened with.
    assert_eq!((plugin.runs(), fake.counters().tls_handshakes.get()), (2, 2));
}

#[tokio::test]
async fn plugin_failures_are_told_plainly() {
    let fake = FakeCluster::start().await.unwrap();
    let clusters = clusters();
    let plugin = fake.exec_plugin(USER).unwrap();
    for (answer, part) in [
        (PluginAnswer::Junk, "no JSON"),
        (PluginAnswer::Empty, "neither a token nor a certificate"),
        (PluginAnswer::Fail, "ended with code 1: login expired: run \"fake-cloud login\""),
    ] {
        plugin.answer(answer).unwrap();
        let cluster = up(&clusters, &fake.kubeconfig_path(), &format!("{USER}-exec")).await;
        let problem = version(&cluster).await.unwrap_err();
        assert_eq!(problem.code, Code::PluginFailed, "{problem}");
        assert!(problem.message.contains(part), "{problem}");
        assert!(problem.message.contains("fake-cloud-login"), "{problem}");
        assert!(problem.remedy.contains(&format!("--context {USER}-exec")), "{}", problem.remedy);
        clusters.network_changed();
    }
    plugin.remove().unwrap();
    let cluster = up(&clusters, &fake.kubeconfig_path(), &format!("{USER}-exec")).await;
    clusters.network_changed();
    let problem = version(&cluster).await.unwrap_err();
    assert_eq!(problem.code, Code::PluginMissing, "{problem}");
    // And it recovers without a change of the kubeconfig.
    plugin.restore().unwrap();
    plugin.answer(PluginAnswer::Token).unwrap();
    clusters.network_changed();
    version(&cluster).await.unwrap();
}

#[tokio::test]
async fn a_failure_is_remembered_for_a_moment() {
    let fake = FakeCluster::start().await.unwrap();
    let plugin = fake.exec_plugin(USER).unwrap();
    plugin.answer(PluginAnswer::Fail).unwrap();
    let cluster = up(&clusters(), &fake.kubeconfig_path(), &format!("{USER}-exec")).await;
    for _ in 0..10 {
        assert_eq!(version(&cluster).await.unwrap_err().code, Code::PluginFailed);
    }
    assert_eq!(plugin.runs(), 1);
}

#[tokio::test]
async fn a_token_file_is_read_again_when_rejected() {
    let fake = FakeCluster::start().await.unwrap();
    let path = fake.directory().join("own-config");
    Kubeconfig::default()
        .context(Context::new("x", USER).login(Login::TokenFile))
        .write(&fake, &path)
        .unwrap();
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let token_file = fake.directory().join("rotating-token");
    fake.add_token(USER, "first", None);
    std::fs::write(&token_file, "first\n").unwrap();
    config["users"][0]["user"] = serde_json::json!({ "tokenFile": "rotating-token" });
    std::fs::write(&path, config.to_string()).unwrap();
    let cluster = up(&clusters(), &path, "x").await;
    version(&cluster).await.unwrap();
    fake.revoke_tokens(USER);
    fake.add_token(USER, "second", None);
    std::fs::write(&token_file, "second\n").unwrap();
    version(&cluster).await.unwrap();
}

/// A kubeconfig with one exec user and a server that is never reached.
fn exec_config(folder: &Path, exec: &serde_json::Value) -> std::path::PathBuf {
    let config = serde_json::json!({
        "current-context": "x",
        "clusters": [{ "name": "c", "cluster": {
            "server": "https://127.0.0.1:1",
            "extensions": [{ "name": "client.authentication.k8s.io/exec", "extension": { "audience": "me" } }],
        } }],
        "users": [{ "name": "u", "user": { "exec": exec } }],
        "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
    });
    let path = folder.join("config");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

async fn failure(folder: &Path, exec: serde_json::Value, path_variable: &str) -> kftray_commons::Problem {
    let path = exec_config(folder, &exec);
    let clusters = clusters_in(environment(&[("PATH", path_variable), ("FROM_PARENT", "yes")]));
    let cluster = settled(&clusters, &current(&path)).await.unwrap();
    version(&cluster).await.unwrap_err()
}

const V1: &str = "client.authentication.k8s.io/v1";

#[tokio::test]
async fn a_missing_plugin_names_the_path_and_the_hint() {
    let home = tempfile::tempdir().unwrap();
    let exec = serde_json::json!({ "apiVersion": V1, "command": "aws-of-the-moon", "installHint": "Get it from the moon." });
    let problem = failure(home.path(), exec, "/usr/bin:/somewhere/else").await;
    assert_eq!(problem.code, Code::PluginMissing);
    assert!(
        problem.message.contains("aws-of-the-moon") && problem.message.contains("/usr/bin:/somewhere/else"),
        "{problem}"
    );
    assert_eq!(problem.remedy, "Get it from the moon.");
}

#[tokio::test]
async fn a_plugin_that_needs_a_terminal_is_not_started() {
    let home = tempfile::tempdir().unwrap();
    script(home.path(), "asks", "#!/bin/sh\ntouch started\n");
    let exec = serde_json::json!({ "apiVersion": V1, "command": "./asks", "interactiveMode": "Always" });
    let problem = failure(home.path(), exec, "/bin").await;
    assert_eq!(problem.code, Code::PluginFailed);
    assert!(problem.message.contains("terminal"), "{problem}");
}

#[tokio::test]
async fn a_plugin_sees_what_it_is_promised() {
    let home = tempfile::tempdir().unwrap();
    // Everything it sees goes to a file; then it fails, and its words are quoted without secrets.
    let secret = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0";
    let text = format!(
        "#!/bin/sh\nhere=$(dirname \"$0\")\n{{ echo \"$1|$2|$OWN|$FROM_PARENT\"; echo \"$KUBERNETES_EXEC_INFO\"; \
         cat; }} > \"$here/seen\"\necho 'token {secret} is too old' >&2\nexit 7\n"
    );
    script(home.path(), "looks", &text);
    let exec = serde_json::json!({
        "apiVersion": V1, "command": "./looks", "args": ["a b", "c"], "provideClusterInfo": true,
        "env": [{ "name": "OWN", "value": "v" }],
    });
    let problem = failure(home.path(), exec, "/usr/bin:/bin").await;
    assert!(problem.message.ends_with("ended with code 7: token *** is too old"), "{problem}");
    let seen = std::fs::read_to_string(home.path().join("seen")).unwrap();
    let (first, info) = seen.split_once('\n').unwrap();
    assert_eq!(first, "a b|c|v|yes");
    let info: serde_json::Value = serde_json::from_str(info).unwrap();
    assert_eq!((info["apiVersion"].as_str(), info["kind"].as_str()), (Some(V1), Some("ExecCredential")));
    assert_eq!(info["spec"]["interactive"], false);
    assert_eq!(info["spec"]["cluster"]["server"], "https://127.0.0.1:1");
    assert_eq!(info["spec"]["cluster"]["config"]["audience"], "me");
}

#[tokio::test]
async fn bad_credentials_are_told_without_being_shown() {
    let home = tempfile::tempdir().unwrap();
    let v1beta1 = "client.authentication.k8s.io/v1beta1";
    for (output, part) in [
        ("", "printed nothing"),
        ("Please log in at https://example.com\\n{}", "no JSON"),
        (
            "{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\"status\":{\"token\":\"geheim\"",
            "no ExecCredential (line 1",
        ),
        (
            &format!(
                "{{\"kind\":\"ExecCredential\",\"apiVersion\":\"{v1beta1}\",\"status\":{{\"token\":\"geheim\"}}}}"
            ),
            "the kubeconfig says",
        ),
        (
            "{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\"}",
            "without a status",
        ),
        (
            "{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\"status\":{\"clientKeyData\":\"geheim\"}}",
            "half of a certificate",
        ),
        (
            "{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\"status\":{\"token\":\"geheim\",\"expirationTimestamp\":\"soon\"}}",
            "no time",
        ),
    ] {
        script(home.path(), "prints", &format!("#!/bin/sh\nprintf '{output}'\n"));
        let problem =
            failure(home.path(), serde_json::json!({ "apiVersion": V1, "command": "./prints" }), "/bin")
                .await;
        assert_eq!(problem.code, Code::PluginFailed, "{output}");
        assert!(problem.message.contains(part), "{output}: {problem}");
        assert!(!problem.message.contains("geheim"), "{problem}");
    }
}

#[tokio::test]
async fn a_hanging_plugin_is_ended_with_its_children() {
    let home = tempfile::tempdir().unwrap();
    script(home.path(), "hangs", "#!/bin/sh\necho $$ > \"$(dirname \"$0\")/pid\"\nsleep 600 &\nsleep 600\n");
    let path = exec_config(home.path(), &serde_json::json!({ "apiVersion": V1, "command": "./hangs" }));
    let clusters = clusters_in(environment(&[]));
    let cluster = settled(&clusters, &current(&path)).await.unwrap();
    let pid_file = home.path().join("pid");
    {
        let request = version(&cluster);
        tokio::pin!(request);
        let started = async {
            while std::fs::read_to_string(&pid_file).map_or(0, |text| text.len()) < 2 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            result = &mut request => panic!("it hangs, but: {result:?}"),
            started = tokio::time::timeout(PATIENCE, started) => started.expect("started within 30 s"),
        }
    }
    // The caller has gone, so nobody waits for the plugin any more.
    let group: i32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    let ended = async {
        while nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), None).is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("ended with its caller");
}

#[tokio::test(start_paused = true)]
async fn a_hanging_plugin_has_a_limit() {
    let home = tempfile::tempdir().unwrap();
    script(home.path(), "hangs", "#!/bin/sh\nexec sleep 600\n");
    let path = exec_config(home.path(), &serde_json::json!({ "apiVersion": V1, "command": "./hangs" }));
    let clusters = clusters_in(environment(&[]));
    let cluster = settled(&clusters, &current(&path)).await.unwrap();
    let begin = tokio::time::Instant::now();
    let problem = cluster.upgrade("default", "x", Protocol::Spdy, &[]).await.unwrap_err().problem;
    assert_eq!(problem.code, Code::PluginFailed);
    assert!(problem.message.contains("30 s"), "{problem}");
    assert!(begin.elapsed() < Duration::from_secs(32), "{:?}", begin.elapsed());
}
