//! Certificates, theirs and ours.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::path::{Path, PathBuf};

use kftray_commons::Code;
use kftray_testkit::{ADMIN, Context, FakeCluster, Kubeconfig, Login, SERVER_NAME, ServerCertificate, Trust};
use support::{address, clusters, current, run, settled, up, version};

fn config(fake: &FakeCluster, context: Context) -> PathBuf {
    let path = fake.directory().join("tls-config");
    Kubeconfig::default().context(context).write(fake, &path).unwrap();
    path
}

#[tokio::test]
async fn untrusted_servers_are_told_apart() {
    let fake = FakeCluster::start().await.unwrap();
    for (certificate, trust, parts) in [
        (ServerCertificate::Good, Trust::WrongAuthority, vec!["not issued by an authority", "was issued by"]),
        (ServerCertificate::UnknownAuthority, Trust::Authority, vec!["not issued by an authority"]),
        (ServerCertificate::Expired, Trust::Authority, vec!["expired on 2001-01-01"]),
        (ServerCertificate::OtherName, Trust::Authority, vec!["not valid for", SERVER_NAME]),
    ] {
        fake.faults().certificate(certificate);
        let path = config(&fake, Context::new("x", ADMIN).trust(trust));
        let cluster = up(&clusters(), &path, "x").await;
        let rest = version(&cluster).await.unwrap_err();
        let upgrade = cluster.session("default", "x").await.unwrap_err().problem;
        for problem in [rest, upgrade] {
            assert_eq!(problem.code, Code::CertificateUntrusted, "{certificate:?}: {problem:?}");
            for part in &parts {
                assert!(problem.message.contains(part), "{certificate:?}: {problem}");
            }
        }
    }
}

#[tokio::test]
async fn trust_can_be_told() {
    let fake = FakeCluster::start().await.unwrap();
    for (certificate, trust) in [
        (ServerCertificate::OtherName, Trust::ServerName),
        (ServerCertificate::OtherName, Trust::Insecure),
        (ServerCertificate::Expired, Trust::Insecure),
        (ServerCertificate::UnknownAuthority, Trust::Insecure),
    ] {
        fake.faults().certificate(certificate);
        let cluster = up(&clusters(), &config(&fake, Context::new("x", ADMIN).trust(trust)), "x").await;
        version(&cluster).await.unwrap_or_else(|problem| panic!("{certificate:?} {trust:?}: {problem}"));
    }
}

#[tokio::test]
async fn a_server_without_tls_is_told() {
    let fake = FakeCluster::builder().plain().start().await.unwrap();
    let server = format!("https://{}", address(&fake));
    let path = config(&fake, Context::new("x", ADMIN).login(Login::Token).server(&server));
    let cluster = up(&clusters(), &path, "x").await;
    let problem = version(&cluster).await.unwrap_err();
    assert_eq!(problem.code, Code::ClusterUnreachable);
    assert!(problem.message.contains("does not speak TLS"), "{problem}");
}

#[tokio::test]
async fn an_expired_client_certificate_is_told() {
    let fake = FakeCluster::start().await.unwrap();
    let path = config(&fake, Context::new("x", ADMIN).login(Login::ExpiredCertificate));
    let cluster = up(&clusters(), &path, "x").await;
    for problem in
        [version(&cluster).await.unwrap_err(), cluster.session("default", "x").await.unwrap_err().problem]
    {
        assert_eq!(problem.code, Code::Unauthorized);
        assert!(problem.message.contains("which expired on 2001-01-01"), "{problem}");
    }
}

/// A TLS server that wants a client certificate of one authority, all made by openssl in every form that keys come in.
struct Demanding {
    folder: tempfile::TempDir,
    server: std::process::Child,
    port: u16,
}

impl Drop for Demanding {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

impl Demanding {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let make = |name: &str, issuer: Option<&str>| {
            let (key, certificate, subject) =
                (at(&format!("{name}.key")), at(&format!("{name}.pem")), format!("/CN={name}"));
            let mut arguments = vec![
                "req",
                "-x509",
                "-new",
                "-key",
                &key,
                "-subj",
                &subject,
                "-days",
                "2",
                "-out",
                &certificate,
            ];
            let (ca, ca_key) = (at("ca.pem"), at("ca.key"));
            arguments.extend(["-addext", "subjectAltName=IP:127.0.0.1"]);
            if issuer.is_some() {
                arguments.extend([
                    "-CA",
                    &ca,
                    "-CAkey",
                    &ca_key,
                    "-addext",
                    "basicConstraints=critical,CA:FALSE",
                ]);
            }
            run("openssl", &arguments);
        };
        run("openssl", &["genrsa", "-out", &at("ca.key"), "2048"]);
        make("ca", None);
        run("openssl", &["genrsa", "-out", &at("server.key"), "2048"]);
        make("server", Some("ca"));
        run("openssl", &["genrsa", "-traditional", "-out", &at("pkcs1.key"), "2048"]);
        make("pkcs1", Some("ca"));
        run("openssl", &["genpkey", "-algorithm", "RSA", "-out", &at("pkcs8.key")]);
        make("pkcs8", Some("ca"));
        // With its "EC PARAMETERS" section in front, as openssl writes it.
        run("openssl", &["ecparam", "-name", "prime256v1", "-genkey", "-out", &at("sec1.key")]);
        make("sec1", Some("ca"));
        run("openssl", &["genpkey", "-algorithm", "ED25519", "-out", &at("ed25519.key")]);
        make("ed25519", Some("ca"));
        run("openssl", &["genrsa", "-aes128", "-passout", "pass:x", "-out", &at("locked.key"), "2048"]);
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = std::process::Command::new("openssl")
            .args([
                "s_server",
                "-accept",
                &format!("127.0.0.1:{port}"),
                "-cert",
                &at("server.pem"),
                "-key",
                &at("server.key"),
            ])
            .args(["-CAfile", &at("ca.pem"), "-Verify", "1", "-verify_return_error", "-www", "-quiet"])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("openssl is needed for this test (cargo xtask setup installs it)");
        Self { folder, server, port }
    }

    async fn ready(&self) {
        let listening = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(support::PATIENCE, listening).await.expect("openssl listens within 30 s");
    }

    fn config(&self, certificate: &str, key: &str) -> PathBuf {
        let user = serde_json::json!({ "client-certificate": format!("{certificate}.pem"), "client-key": format!("{key}.key") });
        self.config_of(&user)
    }

    fn config_of(&self, user: &serde_json::Value) -> PathBuf {
        write_config(self.folder.path(), &format!("https://127.0.0.1:{}", self.port), user)
    }
}

fn write_config(folder: &Path, server: &str, user: &serde_json::Value) -> PathBuf {
    let config = serde_json::json!({
        "current-context": "x",
        "clusters": [{ "name": "c", "cluster": { "server": server, "certificate-authority": "ca.pem" } }],
        "users": [{ "name": "u", "user": user }],
        "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
    });
    let path = folder.join("config");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn client_keys_of_every_form_are_shown() {
    let server = Demanding::start();
    server.ready().await;
    for form in ["pkcs1", "pkcs8", "sec1", "ed25519"] {
        let path = server.config(form, form);
        let cluster = settled(&clusters(), &current(&path)).await.unwrap();
        version(&cluster).await.unwrap_or_else(|problem| panic!("{form}: {problem}"));
    }
    // The server's own certificate as the only authority: Go takes it, webpki alone would not.
    let cluster_with_leaf =
        std::fs::read_to_string(server.config("pkcs8", "pkcs8")).unwrap().replace("ca.pem", "server.pem");
    let path = server.folder.path().join("leaf");
    std::fs::write(&path, cluster_with_leaf).unwrap();
    version(&settled(&clusters(), &current(&path)).await.unwrap()).await.unwrap();
    // No certificate: the refusal comes after the handshake, in TLS 1.3, and is told as what it is.
    let cluster = settled(&clusters(), &current(&server.config_of(&serde_json::json!({})))).await.unwrap();
    let problem = cluster.session("default", "x").await.unwrap_err().problem;
    assert_eq!(problem.code, Code::ClientCertificateInvalid, "{problem}");
}

#[tokio::test]
async fn unusable_client_certificates_are_told() {
    let server = Demanding::start();
    for (certificate, key, part) in [
        ("pkcs1", "sec1", "does not belong"),
        ("pkcs8", "locked", "passphrase"),
        ("ca", "absent", "cannot be read"),
    ] {
        let problem = settled(&clusters(), &current(&server.config(certificate, key))).await.unwrap_err();
        assert_eq!(problem.code, Code::ClientCertificateInvalid, "{problem}");
        assert!(problem.message.contains(part), "{problem}");
    }
    let half = serde_json::json!({ "client-certificate": "pkcs8.pem" });
    let problem = settled(&clusters(), &current(&server.config_of(&half))).await.unwrap_err();
    assert!(problem.message.contains("no client-key"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_behind_the_same_path_is_noticed() {
    let server = Demanding::start();
    server.ready().await;
    let folder = server.folder.path();
    let copy = |from: &str| {
        for kind in ["key", "pem"] {
            let new = folder.join(format!("rotating.{kind}.new"));
            std::fs::copy(folder.join(format!("{from}.{kind}")), &new).unwrap();
            std::fs::rename(&new, folder.join(format!("rotating.{kind}"))).unwrap();
        }
    };
    copy("pkcs8");
    let path = server.config("rotating", "rotating");
    let clusters = clusters();
    let mut states = clusters.follow(&current(&path));
    let login = |state: &kftray_kube::ClusterState| match state {
        kftray_kube::ClusterState::Up(cluster) => cluster.login(),
        kftray_kube::ClusterState::Pending | kftray_kube::ClusterState::Failed(_) => String::new(),
    };
    support::wait(&mut states, |state| login(state).contains("pkcs8")).await;
    copy("sec1");
    support::wait(&mut states, |state| login(state).contains("sec1")).await;
}
