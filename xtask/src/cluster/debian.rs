//! Real servers as images: the distribution's packages with the libraries they need, unpacked into a directory that becomes the
//! image's root. Nothing is installed on this machine, and what is installed here makes no difference.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::command::{command, output, run};

/// One server program.
pub(super) struct Server {
    /// The image's name.
    pub(super) name: &'static str,
    /// The packages to take, besides the libraries they depend on.
    packages: &'static [&'static str],
    /// Of the packages these depend on, take those whose names start so (libraries are always taken).
    also: &'static [&'static str],
    /// `UID:GID`; PostgreSQL refuses to run as root.
    pub(super) user: &'static str,
    /// Run by /bin/sh as the container's only process.
    start: &'static str,
}

/// PostgreSQL answers to user `postgres`, password `kftest`, database `kftest` (100 rows in table `numbers`).
pub(super) const SERVERS: [Server; 3] = [
    Server {
        name: "postgres",
        packages: &["postgresql", "tzdata", "dash"],
        also: &["postgresql-1", "postgresql-2", "postgresql-client-1", "postgresql-client-2"],
        user: "999:999",
        start: r#"set -eu
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
export PGDATA=/data/pg
if [ ! -s $PGDATA/PG_VERSION ]; then
  echo kftest > /tmp/password
  initdb --username=postgres --pwfile=/tmp/password --auth=scram-sha-256 --locale=C --encoding=UTF8 --no-sync
  echo 'host all all all scram-sha-256' >> $PGDATA/pg_hba.conf
  printf '%s\n' 'create database kftest;' | postgres --single -E postgres
  printf '%s\n' 'create table numbers as select n from generate_series(1, 100) n;' | postgres --single -E kftest
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off -c jit=off -c max_connections=300
"#,
    },
    Server {
        name: "redis",
        packages: &["redis-server", "redis-tools", "dash"],
        also: &[],
        user: "999:999",
        start: "exec redis-server --save '' --appendonly no --protected-mode no --dir /tmp\n",
    },
    Server {
        name: "nginx",
        packages: &["nginx", "dash"],
        also: &["nginx"],
        user: "",
        start: "exec nginx -c /etc/kftest-nginx.conf\n",
    },
];

/// A page with parts, so that a browser opens several connections, and a large file.
const NGINX_CONF: &str = r#"daemon off;
user nobody nogroup;
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr;
events { worker_connections 4096; }
http {
  access_log off;
  sendfile on;
  keepalive_timeout 65;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  types { text/html html; text/css css; application/javascript js; }
  server {
    listen 80;
    root /srv;
    location /status { stub_status; }
  }
}
"#;

/// Accounts that the servers look up; the packages' own are made by their install scripts, which do not run here.
const PASSWD: &str = "root:x:0:0:root:/:/bin/sh\nserver:x:999:999:server:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nserver:x:999:\nnogroup:x:65534:\n";

/// Dependencies that the servers do without: a compiler back end for PostgreSQL's JIT (off), Perl, the init system's glue.
const WITHOUT: [&str; 4] = ["libllvm", "libperl", "libpam-", "libc-bin"];

/// What an image need not carry.
const PRUNED: [&str; 7] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/info",
    "usr/share/perl",
];

impl Server {
    /// Everything that determines the image: this recipe and the distribution's release.
    pub(super) fn recipe(&self) -> Result<String> {
        let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
        let release: String =
            release.lines().filter(|line| line.contains("VERSION_ID=") || line.starts_with("ID=")).collect();
        let Self { name, packages, also, user, start } = self;
        Ok(format!(
            "{release} {name} {packages:?} {also:?} {user} {start} {WITHOUT:?} {NGINX_CONF} {PASSWD} {GROUP}"
        ))
    }

    /// Fills `root`.
    pub(super) fn unpack(&self, root: &Path) -> Result<()> {
        if !crate::command::on_path("apt-get") {
            bail!(
                "the images of PostgreSQL, Redis and nginx are made from Debian's or Ubuntu's packages; this system has no apt-get"
            );
        }
        let debs = root.with_extension("debs");
        fs::create_dir_all(root)?;
        fs::create_dir_all(&debs)?;
        let packages = self.closure().or_else(|_| {
            // The lists may never have been fetched on a fresh machine.
            run(&mut command("apt-get", ["update", "-q"]))?;
            self.closure()
        })?;
        let download = || run(command("apt-get", ["download", "-q"]).args(&packages).current_dir(&debs));
        download().or_else(|_| {
            run(&mut command("apt-get", ["update", "-q"]))?;
            download()
        })?;
        for deb in fs::read_dir(&debs)? {
            run(command("dpkg-deb", ["-x"]).arg(deb?.path()).arg(root))?;
        }
        fs::remove_dir_all(&debs)?;
        for directory in PRUNED {
            let directory = root.join(directory);
            if directory.exists() {
                fs::remove_dir_all(directory)?;
            }
        }
        self.configure(root)
    }

    /// The packages to download: ours, and of all they depend on, the libraries.
    fn closure(&self) -> Result<Vec<String>> {
        // With an empty status file apt thinks that nothing is installed and names everything.
        let simulated = output(
            command(
                "apt-get",
                ["-s", "-o", "Dir::State::status=/dev/null", "--no-install-recommends", "install"],
            )
            .args(self.packages)
            .env("LC_ALL", "C"),
        )?;
        let wanted = |name: &str| {
            let library = name.starts_with("lib") || name == "zlib1g";
            let ours = self.packages.contains(&name) || self.also.iter().any(|start| name.starts_with(start));
            (library || ours) && !WITHOUT.iter().any(|start| name.starts_with(start))
        };
        let names =
            simulated.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next());
        let names: Vec<String> = names.filter(|name| wanted(name)).map(str::to_owned).collect();
        if names.is_empty() {
            bail!("apt knows none of the packages {:?}", self.packages);
        }
        Ok(names)
    }

    fn configure(&self, root: &Path) -> Result<()> {
        let etc = root.join("etc");
        fs::create_dir_all(&etc)?;
        fs::write(etc.join("passwd"), PASSWD)?;
        fs::write(etc.join("group"), GROUP)?;
        fs::write(root.join("start.sh"), self.start)?;
        let shell = ["bin/sh", "usr/bin/sh"].map(|shell| root.join(shell));
        if !shell.iter().any(|shell| shell.exists()) {
            fs::create_dir_all(root.join("bin"))?;
            std::os::unix::fs::symlink("dash", root.join("bin/sh"))?;
        }
        if self.name == "nginx" {
            fs::write(etc.join("kftest-nginx.conf"), NGINX_CONF)?;
            let site = root.join("srv");
            fs::create_dir_all(&site)?;
            let mut page =
                String::from("<!doctype html><title>kftest</title><link rel=stylesheet href=style.css>\n");
            for part in 0..12 {
                page.push_str(&format!("<script src=part{part}.js></script>\n"));
                fs::write(site.join(format!("part{part}.js")), format!("/* {part} */\n").repeat(2000))?;
            }
            fs::write(site.join("index.html"), page)?;
            fs::write(site.join("style.css"), "body { font-family: sans-serif }\n")?;
            let mut large = Vec::with_capacity(LARGE);
            while large.len() < LARGE {
                large.extend_from_slice(format!("{:015}\n", large.len()).as_bytes());
            }
            fs::write(site.join("large.txt"), large)?;
        }
        Ok(())
    }
}

/// `/large.txt` of nginx: each 16-byte line is its own offset. 32 MiB, the size of a download in the isolation tests.
const LARGE: usize = 32 << 20;
