//! Through proxies: our own, which can be asked what they saw, and real ones from the system's packages.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use kftray_commons::Code;
use kftray_testkit::proxy::{Kind, Proxy};
use kftray_testkit::{ADMIN, Context, FakeCluster, Kubeconfig};
use support::{PATIENCE, address, clusters, clusters_in, environment, up, version};

fn config(fake: &FakeCluster, proxy_url: Option<&str>) -> PathBuf {
    let context = Context::new("x", ADMIN);
    let context = match proxy_url {
        Some(url) => context.proxy_url(url),
        None => context,
    };
    let path = fake.directory().join("proxy-config");
    Kubeconfig::default().context(context).write(fake, &path).unwrap();
    path
}

async fn with_pod() -> (FakeCluster, String) {
    let fake = FakeCluster::start().await.unwrap();
    fake.pod("web").create().unwrap();
    fake.wait_ready("default", "web", 1).await.unwrap();
    let pod = fake.pods("default", "web").remove(0);
    (fake, pod)
}

#[tokio::test]
async fn requests_and_upgrades_go_through() {
    let (fake, pod) = with_pod().await;
    for kind in [Kind::Http, Kind::Socks5] {
        let proxies =
            [Proxy::start(kind).await.unwrap(), Proxy::with_login(kind, "me", "p@ss:w/rd").await.unwrap()];
        for proxy in proxies {
            // The login escaped, as a URL wants it; a proxy that asks for none does not mind one.
            let url = proxy.url_without_login().replace("://", "://me:p%40ss%3Aw%2Frd@");
            let cluster = up(&clusters(), &config(&fake, Some(&url)), "x").await;
            version(&cluster).await.unwrap();
            assert_eq!(proxy.tunnels().total(), 1);
            assert!(cluster.session("default", &pod).await.unwrap().is_some());
            assert_eq!(proxy.tunnels().total(), 2);
            assert!(proxy.targets().iter().all(|target| *target == address(&fake)), "{:?}", proxy.targets());
        }
    }
}

#[tokio::test]
async fn wrong_or_missing_logins_are_told() {
    let (fake, pod) = with_pod().await;
    for kind in [Kind::Http, Kind::Socks5] {
        let proxy = Proxy::with_login(kind, "me", "geheim").await.unwrap();
        let without = proxy.url_without_login();
        for (url, part) in
            [(without.clone(), "asks for"), (without.replace("://", "://me:falsch@"), "not accept")]
        {
            let cluster = up(&clusters(), &config(&fake, Some(&url)), "x").await;
            let upgrade = cluster.session("default", &pod).await.unwrap_err().problem;
            for problem in [version(&cluster).await.unwrap_err(), upgrade] {
                assert_eq!(problem.code, Code::ProxyRefused, "{problem}");
                assert!(problem.message.contains(part), "{problem}");
                assert!(problem.message.contains("proxy-url of the kubeconfig"), "{problem}");
                assert!(!problem.message.contains("falsch"), "{problem}");
            }
        }
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_named() {
    let (fake, _) = with_pod().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cluster = up(&clusters(), &config(&fake, Some(&format!("http://{closed}"))), "x").await;
    let problem = version(&cluster).await.unwrap_err();
    assert_eq!(problem.code, Code::ClusterUnreachable);
    assert!(problem.message.contains(&format!("proxy http://{closed}")), "{problem}");
    assert!(problem.message.contains(&address(&fake)), "{problem}");
}

#[tokio::test]
async fn what_a_proxy_cannot_reach_is_told() {
    let (fake, _) = with_pod().await;
    fake.faults().refuse_tcp().await;
    for kind in [Kind::Http, Kind::Socks5] {
        let proxy = Proxy::start(kind).await.unwrap();
        let cluster = up(&clusters(), &config(&fake, Some(&proxy.url())), "x").await;
        let problem = version(&cluster).await.unwrap_err();
        assert_eq!(problem.code, Code::ClusterUnreachable, "{problem}");
        assert!(problem.message.contains("cannot reach"), "{problem}");
    }
}

#[tokio::test]
async fn the_environment_chooses_but_never_for_loopback() {
    let (fake, _) = with_pod().await;
    let proxy = Proxy::start(Kind::Http).await.unwrap();
    let url = proxy.url();
    let variables = [("HTTPS_PROXY", url.as_str())];
    let cluster = up(&clusters_in(environment(&variables)), &config(&fake, None), "x").await;
    version(&cluster).await.unwrap();
    assert_eq!((proxy.tunnels().total(), cluster.route().as_str()), (0, "direct"));
    // A name that is not loopback goes through it, and NO_PROXY takes it out again.
    let path = fake.directory().join("named-config");
    let own = address(&fake);
    let port = own.rsplit(':').next().unwrap();
    let context = Context::new("x", ADMIN).server(&format!("https://api.cluster.test:{port}"));
    Kubeconfig::default().context(context).write(&fake, &path).unwrap();
    let cluster = up(&clusters_in(environment(&variables)), &path, "x").await;
    assert!(cluster.route().contains("(HTTPS_PROXY)"), "{}", cluster.route());
    // The proxy is asked for the name, which it cannot resolve.
    let problem = version(&cluster).await.unwrap_err();
    assert!(problem.message.contains("api.cluster.test"), "{problem}");
    assert_eq!(proxy.targets().last().unwrap(), &format!("api.cluster.test:{port}"));
    let variables = [("HTTPS_PROXY", url.as_str()), ("NO_PROXY", ".cluster.test")];
    let cluster = up(&clusters_in(environment(&variables)), &path, "x").await;
    assert_eq!(cluster.route(), "direct");
}

/// A listener that takes TLS off and hands on to a plain proxy.
async fn encrypted(proxy: &Proxy) -> (u16, String, tokio::task::JoinSet<()>) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let behind = proxy.url_without_login().split_once("://").unwrap().1.to_owned();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            connections.spawn(async move {
                let Ok(mut near) = acceptor.accept(stream).await else { return };
                let mut far = tokio::net::TcpStream::connect(behind).await.unwrap();
                tokio::io::copy_bidirectional(&mut near, &mut far).await.ok();
            });
        }
    });
    (port, made.cert.pem(), tasks)
}

#[tokio::test]
async fn a_proxy_behind_tls() {
    let (fake, pod) = with_pod().await;
    let proxy = Proxy::with_login(Kind::Http, "me", "secret1").await.unwrap();
    let (port, certificate, _tasks) = encrypted(&proxy).await;
    let url = format!("https://me:secret1@127.0.0.1:{port}");
    // Its certificate is not trusted: told, with the proxy as the culprit.
    let path = config(&fake, Some(&url));
    let problem = version(up(&clusters(), &path, "x").await.as_ref()).await.unwrap_err();
    assert_eq!(problem.code, Code::CertificateUntrusted, "{problem}");
    assert!(problem.message.contains(&format!("proxy https://127.0.0.1:{port}")), "{problem}");
    // Trusted as the cluster's authorities are, as in client-go.
    let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    std::fs::write(fake.directory().join("both.pem"), format!("{}\n{certificate}", fake.authority()))
        .unwrap();
    let cluster = json["clusters"][0]["cluster"].as_object_mut().unwrap();
    cluster.remove("certificate-authority-data");
    cluster.insert("certificate-authority".to_owned(), "both.pem".into());
    std::fs::write(&path, json.to_string()).unwrap();
    let cluster = up(&clusters(), &path, "x").await;
    version(&cluster).await.unwrap();
    assert!(cluster.session("default", &pod).await.unwrap().is_some());
    assert_eq!(proxy.tunnels().total(), 2);
}

/// A proxy program, ended with the test.
struct Program {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Program {
    async fn start(name: &str, arguments: impl FnOnce(u16, &std::path::Path) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Neither program can take port 0 and say which it got.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(name)
            .args(arguments(port, folder.path()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{name} is needed for this test (cargo xtask setup installs it): {error}")
            });
        let program = Self { child, port, _folder: folder };
        let listening = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, listening)
            .await
            .unwrap_or_else(|_| panic!("{name} listens within 30 s"));
        program
    }

    async fn tinyproxy() -> Self {
        Self::start("tinyproxy", |port, folder| {
            let file = folder.join("tinyproxy.conf");
            let log = folder.join("log");
            let text = format!(
                "Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 50\nAllow 127.0.0.1\nLogFile \"{}\"\nBasicAuth me secret1\n",
                log.display()
            );
            std::fs::write(&file, text).unwrap();
            vec!["-d".to_owned(), "-c".to_owned(), file.display().to_string()]
        })
        .await
    }

    async fn microsocks() -> Self {
        Self::start("microsocks", |port, _| {
            let words = format!("-i 127.0.0.1 -p {port} -u me -P secret1");
            words.split(' ').map(str::to_owned).collect()
        })
        .await
    }
}

#[tokio::test]
async fn real_proxies_with_logins() {
    let (fake, pod) = with_pod().await;
    for (program, scheme) in [(Program::tinyproxy().await, "http"), (Program::microsocks().await, "socks5")] {
        let url = |login: &str| format!("{scheme}://{login}127.0.0.1:{}", program.port);
        let cluster = up(&clusters(), &config(&fake, Some(&url("me:secret1@"))), "x").await;
        version(&cluster).await.unwrap_or_else(|problem| panic!("{scheme}: {problem}"));
        assert!(cluster.session("default", &pod).await.unwrap().is_some());
        for login in ["", "me:wrong@"] {
            let cluster = up(&clusters(), &config(&fake, Some(&url(login))), "x").await;
            let problem = version(&cluster).await.unwrap_err();
            assert_eq!(problem.code, Code::ProxyRefused, "{scheme} {login:?}: {problem}");
        }
        // What it cannot reach.
        let path = fake.directory().join("nowhere");
        let context = Context::new("x", ADMIN).server("https://127.0.0.1:1").proxy_url(&url("me:secret1@"));
        Kubeconfig::default().context(context).write(&fake, &path).unwrap();
        let cluster = up(&clusters(), &path, "x").await;
        let problem = version(&cluster).await.unwrap_err();
        assert_eq!(problem.code, Code::ClusterUnreachable, "{scheme}: {problem}");
    }
}
