//! The node's life: configuration files, the order in which the components start, and how all of it is taken down.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::json;

use super::api::has_condition;
use super::build::Programs;
use super::image::{self, Image};
use super::pki::{Subject, write_private};
use super::process::{Process, end_by_arguments};
use super::{Cluster, NODE, cgroup, workloads};
use crate::command::{command, run};
use crate::wait;

/// The component processes, in the order of their start.
pub(crate) const PROCESSES: [&str; 7] =
    ["etcd", "apiserver", "containerd", "controller-manager", "scheduler", "kubelet", "kube-proxy"];

/// Services' cluster addresses and pods' addresses. Both exist only inside the node's namespace, so all clusters use the same.
const SERVICE_CIDR: &str = "10.96.0.0/16";
const SERVICE_FIRST: &str = "10.96.0.1";
const DNS_ADDRESS: &str = "10.96.0.10";
const POD_CIDR: &str = "10.244.0.0/23";

/// Much longer than any start takes (3 to 8 s), for machines under load.
const START: Duration = Duration::from_secs(120);

/// Longest path of a Unix socket, with its closing zero.
const SOCKET_PATH: usize = 108;

impl Cluster {
    /// Starts everything and waits until cluster DNS, the first pod, is ready.
    pub(crate) fn start(&self, programs: &Programs) -> Result<()> {
        let begin = wait::now();
        let images = image::basic(programs)?;
        self.prepare()?;
        std::os::unix::fs::symlink(&programs.fixture, self.fixture_path())?;
        self.start_control_plane()?;
        self.process("containerd").start(self.network.inside(&[
            &self.programs.containerd.join("containerd").to_string_lossy(),
            "--config",
            &self.file("containerd.toml"),
        ]))?;
        // The images go in while the API server comes up.
        std::thread::scope(|scope| {
            let import = scope.spawn(|| self.wait_for_containerd().and_then(|()| self.import(&images)));
            let started = self.wait_for_api().and_then(|()| self.start_node());
            let imported = import.join().map_err(|_| anyhow::anyhow!("the import of images panicked"))?;
            started.and(imported)
        })?;
        report(begin, "API server ready, node started");
        workloads::apply_system(self)?;
        let api = self.api()?;
        self.wait_until("node ready", &PROCESSES, || {
            Ok(api.object(&format!("/api/v1/nodes/{NODE}")).is_ok_and(|node| has_condition(&node, "Ready")))
        })?;
        report(begin, "node ready");
        self.wait_until("first pod (cluster DNS) ready", &PROCESSES, || {
            let pods = api.object("/api/v1/namespaces/kube-system/pods");
            let pods = pods.as_ref().ok().and_then(|pods| pods.get("items")?.as_array());
            Ok(pods.is_some_and(|pods| pods.iter().any(|pod| has_condition(pod, "Ready"))))
        })?;
        report(begin, "first pod ready");
        Ok(())
    }

    /// Takes everything down and forgets it. Works on a running cluster, a half-started one and the remains of a dead one.
    pub(crate) fn stop(&self) -> Result<()> {
        // Nothing is worth an orderly end: the data go too.
        for name in PROCESSES.iter().rev() {
            self.process(name).signal(Signal::SIGKILL)?;
        }
        for name in PROCESSES.iter().rev() {
            self.process(name).end(Signal::SIGKILL)?;
        }
        end_by_arguments("containerd-shim-runc-v2", &self.file("containerd.sock"))?;
        cgroup::remove(&self.cgroup())?;
        unmount_below(&self.state)?;
        self.network.remove()?;
        if self.state.exists() {
            fs::remove_dir_all(&self.state)
                .with_context(|| format!("cannot remove {}", self.state.display()))?;
        }
        Ok(())
    }

    fn prepare(&self) -> Result<()> {
        if self.file("containerd.sock.ttrpc").len() >= SOCKET_PATH {
            bail!(
                "{} is too long a path for sockets; set XDG_CACHE_HOME to a shorter directory or choose a shorter --name",
                self.state.display()
            );
        }
        for directory in [
            "bin",
            "run",
            "log",
            "cni",
            "cni-data",
            "etcd",
            "kubelet",
            "pod-logs",
            "containerd",
            "containerd-run",
        ] {
            fs::create_dir_all(self.state.join(directory))?;
        }
        self.network.create()?;
        cgroup::create(&self.cgroup())?;
        self.make_keys()?;
        self.write_configurations()
    }

    fn make_keys(&self) -> Result<()> {
        let pki = self.pki();
        pki.create()?;
        self.issue_server_certificate()?;
        self.issue_kubelet_certificate(false)?;
        let issue =
            |file, user, groups| pki.issue(file, &Subject { user, groups, names: &[], expired: false });
        issue("admin", "admin", &["system:masters"])?;
        let components = [
            ("kubelet", "kubelet"),
            ("controller-manager", "system:kube-controller-manager"),
            ("scheduler", "system:kube-scheduler"),
            ("kube-proxy", "system:kube-proxy"),
        ];
        for (file, user) in components {
            if file != "kubelet" {
                issue(file, user, &[])?;
            }
            let config = pki.kubeconfig(&self.context(), &self.server(), file, "default")?;
            write_private(&pki.path(&format!("{file}.conf")), &config)?;
        }
        let admin = pki.kubeconfig(&self.context(), &self.server(), "admin", "default")?;
        write_private(&self.kubeconfig(), &admin)
    }

    /// The API server's certificate; when it runs, it takes up a new one by itself.
    pub(crate) fn issue_server_certificate(&self) -> Result<()> {
        let address = self.network.node().to_string();
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
            "127.0.0.1",
            &address,
            SERVICE_FIRST,
        ];
        self.pki().issue(
            "apiserver",
            &Subject { user: "kube-apiserver", groups: &[], names: &names, expired: false },
        )
    }

    /// The kubelet's certificate, as server and as client; a foreign one is of an authority that the API server does not know.
    pub(crate) fn issue_kubelet_certificate(&self, foreign: bool) -> Result<()> {
        let address = self.network.node().to_string();
        let user = format!("system:node:{NODE}");
        let names = [NODE, &address, "127.0.0.1"];
        let subject = Subject { user: &user, groups: &["system:nodes"], names: &names, expired: false };
        let pki = self.pki();
        if foreign { pki.issue_foreign("kubelet", &subject) } else { pki.issue("kubelet", &subject) }
    }

    fn write_configurations(&self) -> Result<()> {
        fs::write(self.state.join("containerd.toml"), self.containerd_config())?;
        let network = json!({
            "cniVersion": "0.4.0",
            "name": format!("kft-{}", self.name),
            "plugins": [
                {
                    "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        // Leases in the state directory: a dead cluster's must not survive it.
                        "dataDir": self.state.join("cni-data"),
                        "ranges": [[{ "subnet": POD_CIDR }]],
                        "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        fs::write(self.state.join("cni/10-kft.conflist"), serde_json::to_vec_pretty(&network)?)?;
        // Pods get cluster DNS; nothing outside is resolved.
        fs::write(self.state.join("resolv.conf"), "nameserver 127.0.0.1\n")?;
        let audit = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{ "level": "Metadata" }],
        });
        fs::write(self.state.join("audit-policy.yaml"), serde_json::to_vec_pretty(&audit)?)?;
        self.write_kubectl()?;
        fs::write(self.state.join("kubelet.yaml"), serde_json::to_vec_pretty(&self.kubelet_config())?)?;
        Ok(())
    }

    /// A kubectl of the cluster's own version, for people, tests and benchmarks.
    fn write_kubectl(&self) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let script = format!("#!/bin/sh\nexec '{}' kubectl \"$@\"\n", self.programs.kube.display());
        fs::write(self.kubectl_path(), script)?;
        Ok(fs::set_permissions(self.kubectl_path(), fs::Permissions::from_mode(0o755))?)
    }

    fn containerd_config(&self) -> String {
        let state = self.state.display();
        let runc = ["/usr/sbin/runc", "/usr/bin/runc"].into_iter().find(|path| Path::new(path).exists());
        let runc = runc.unwrap_or("runc");
        // Every directory is the cluster's own, so that two do not meet; NRI's and CDI's are global and not needed.
        // restrict_oom_score_adj: on a machine without CAP_SYS_RESOURCE runc fails otherwise.
        format!(
            r#"version = 3
root = "{state}/containerd"
state = "{state}/containerd-run"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "{state}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/containerd/opt"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "kftray.test/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  enable_cdi = false
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
      BinaryName = "{runc}"
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{state}/cni"
"#
        )
    }

    fn kubelet_config(&self) -> serde_json::Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": self.pki().path("ca.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": self.pki().path("kubelet.crt"),
            "tlsPrivateKeyFile": self.pki().path("kubelet.key"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.cgroup()),
            "failSwapOn": false,
            "failCgroupV1": false,
            "containerRuntimeEndpoint": format!("unix://{}", self.file("containerd.sock")),
            "clusterDNS": [DNS_ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": self.file("resolv.conf"),
            "podLogsDir": self.file("pod-logs"),
            "volumePluginDir": self.file("kubelet/volume-plugins"),
            "maxPods": 250,
            // A developer's disk may well be nearly full; evicting pods for it would only fail tests.
            "evictionHard": {
                "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
        })
    }

    fn start_control_plane(&self) -> Result<()> {
        let pki = |name: &str| self.pki().path(name).to_string_lossy().into_owned();
        self.start_component(
            "etcd",
            "etcd",
            &[
                "--data-dir",
                &self.file("etcd"),
                "--listen-client-urls",
                "http://127.0.0.1:2379",
                "--advertise-client-urls",
                "http://127.0.0.1:2379",
                "--listen-peer-urls",
                "http://127.0.0.1:2380",
                // The data live no longer than the machine.
                "--unsafe-no-fsync",
                "--log-level",
                "warn",
            ],
        )?;
        let address = self.network.node().to_string();
        let mut args = vec![
            "--etcd-servers",
            "http://127.0.0.1:2379",
            "--secure-port",
            "6443",
            "--advertise-address",
            &address,
            "--service-account-issuer",
            "https://kubernetes.default.svc",
            // Else it looks the node's name up in DNS.
            "--kubelet-preferred-address-types",
            "InternalIP",
            "--authorization-mode",
            "Node,RBAC",
            "--service-cluster-ip-range",
            SERVICE_CIDR,
            "--allow-privileged",
        ];
        let files = [
            ("--tls-cert-file", "apiserver.crt"),
            ("--tls-private-key-file", "apiserver.key"),
            ("--client-ca-file", "ca.crt"),
            ("--service-account-key-file", "sa.pub"),
            ("--service-account-signing-key-file", "sa.key"),
            ("--kubelet-client-certificate", "admin.crt"),
            ("--kubelet-client-key", "admin.key"),
            ("--kubelet-certificate-authority", "ca.crt"),
        ]
        .map(|(flag, file)| (flag, pki(file)));
        for (flag, file) in &files {
            args.extend([*flag, file]);
        }
        args.extend(self.profile.api_server_flags());
        let audit = [self.file("audit-policy.yaml"), self.file("log/audit.log")];
        if self.audit {
            args.extend(["--audit-policy-file", &audit[0], "--audit-log-path", &audit[1]]);
        }
        self.start_component("apiserver", "kube-apiserver", &args)
    }

    fn start_node(&self) -> Result<()> {
        let pki = |name: &str| self.pki().path(name).to_string_lossy().into_owned();
        self.start_component(
            "kubelet",
            "kubelet",
            &[
                "--config",
                &self.file("kubelet.yaml"),
                "--kubeconfig",
                &pki("kubelet.conf"),
                "--hostname-override",
                NODE,
                "--node-ip",
                &self.network.node().to_string(),
                "--root-dir",
                &self.file("kubelet"),
                "--cert-dir",
                &self.file("pki"),
            ],
        )?;
        self.start_component(
            "controller-manager",
            "kube-controller-manager",
            &[
                "--kubeconfig",
                &pki("controller-manager.conf"),
                "--service-account-private-key-file",
                &pki("sa.key"),
                "--root-ca-file",
                &pki("ca.crt"),
                "--use-service-account-credentials",
                "--cluster-cidr",
                POD_CIDR,
                "--allocate-node-cidrs=false",
                "--leader-elect=false",
                "--node-monitor-grace-period",
                "20s",
            ],
        )?;
        self.start_component(
            "scheduler",
            "kube-scheduler",
            &["--kubeconfig", &pki("scheduler.conf"), "--leader-elect=false"],
        )?;
        self.start_component(
            "kube-proxy",
            "kube-proxy",
            &[
                "--kubeconfig",
                &pki("kube-proxy.conf"),
                "--proxy-mode",
                "iptables",
                "--cluster-cidr",
                POD_CIDR,
                // A pod that reaches itself or a neighbour through a Service must get its answers the same way back.
                "--masquerade-all",
                "--hostname-override",
                NODE,
                // The namespace may not change the machine's connection-tracking limits.
                "--conntrack-max-per-core",
                "0",
            ],
        )
    }

    fn start_component(&self, name: &str, component: &str, args: &[&str]) -> Result<()> {
        let kube = self.programs.kube.to_string_lossy();
        let mut argv = vec![kube.as_ref(), component];
        argv.extend(args);
        self.process(name).start(self.network.inside(&argv))
    }

    /// One of the processes in [`PROCESSES`].
    pub(crate) fn process(&self, name: &str) -> Process {
        Process::new(&self.state, name)
    }

    /// Waits for the API server's /readyz.
    pub(crate) fn wait_for_api(&self) -> Result<()> {
        let api = self.api()?;
        self.wait_until("API server ready", &["etcd", "apiserver"], || Ok(api.is_ready()))
    }

    pub(crate) fn wait_for_containerd(&self) -> Result<()> {
        self.wait_until("containerd ready", &["containerd"], || Ok(run(&mut self.ctr(&["version"])).is_ok()))
    }

    /// Loads images into the node.
    pub(crate) fn import(&self, images: &[Image]) -> Result<()> {
        for image in images {
            let archive = image.archive.to_string_lossy();
            run(&mut self.ctr(&["-n", "k8s.io", "images", "import", &archive]))
                .with_context(|| format!("cannot load the image {}", image.name))?;
        }
        Ok(())
    }

    fn ctr(&self, args: &[&str]) -> std::process::Command {
        let mut ctr = command(self.programs.containerd.join("ctr"), ["-a", &self.file("containerd.sock")]);
        ctr.args(args);
        ctr
    }

    /// Waits for a step of the start; a component that has ended meanwhile fails it at once.
    fn wait_until(&self, what: &str, needed: &[&str], mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        wait::until(what, START, || {
            for name in needed {
                self.process(name).check()?;
            }
            done()
        })
        .with_context(|| format!("the logs are in {}", self.state.join("log").display()))
    }

    /// A path in the state directory, for command lines.
    pub(crate) fn file(&self, name: &str) -> String {
        self.state.join(name).to_string_lossy().into_owned()
    }

    fn cgroup(&self) -> String {
        format!("kft-{}", self.name)
    }
}

fn report(begin: Instant, what: &str) {
    println!("{:5.1} s  {what}", begin.elapsed().as_secs_f64());
}

/// Unmounts everything below a directory, the deepest first.
fn unmount_below(directory: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let mut places: Vec<PathBuf> =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect();
    places.retain(|place| place.starts_with(directory));
    places.reverse();
    for place in places {
        // Lazily: a killed container's last process may still be on its way out.
        run(command("umount", ["-l"]).arg(&place))
            .or_else(|error| if is_mounted(&place) { Err(error) } else { Ok(()) })?;
    }
    Ok(())
}

fn is_mounted(place: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|mounted| Path::new(mounted) == place))
}
