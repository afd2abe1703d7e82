//! `kftui env`: where active forwards listen, for programs that read their addresses from the environment.

use std::net::SocketAddr;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::select::SelectArgs;
use crate::child;
use crate::connect;
use crate::exit::Exit;
use crate::shown::{self, Forward};

pub(crate) const ENV_HELP: &str = "\
Examples:
  kftui env > .env                       KFTRAY_DB_HOST, KFTRAY_DB_PORT, ... of what runs
  eval \"$(kftui env --format shell)\"
  kftui env db --format json | jq -r .db.port
  kftui env --format compose --service app > kftray.compose.yaml
  docker compose -f compose.yaml -f kftray.compose.yaml up

Only forwards that listen are in it; one that is named and does not ends it with code 5.";

#[derive(Debug, Args)]
pub(crate) struct EnvArgs {
    #[command(flatten)]
    pub(crate) select: SelectArgs,

    /// NAME=value lines, export lines for POSIX shells, an object per forward, or an override file for Docker Compose
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) format: EnvFormat,

    /// Compose: the services that shall see the forwards, repeatable [default: an anchor to merge by hand]
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Vec<String>,
}

/// Forms of an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum EnvFormat {
    #[default]
    Dotenv,
    Shell,
    Json,
    Compose,
}

/// One forward that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listening {
    /// What people call it.
    pub(crate) name: String,
    /// The part of the variables' names that stands for it; unique.
    pub(crate) variable: String,
    /// Where it listens.
    pub(crate) addresses: Vec<SocketAddr>,
}

/// Those that listen, with unique names for variables, as `kftui run` gives them.
pub(crate) fn listening(forwards: &[Forward]) -> Vec<Listening> {
    let mut taken = std::collections::HashMap::<String, u32>::new();
    let mut all = Vec::new();
    for one in forwards {
        let addresses: Vec<SocketAddr> = one.addresses.iter().filter_map(|text| text.parse().ok()).collect();
        if addresses.is_empty() {
            continue;
        }
        let plain = child::variable(plain_name(one));
        let count = taken.entry(plain.clone()).or_default();
        *count += 1;
        let variable = if *count == 1 { plain } else { format!("{plain}_{count}") };
        all.push(Listening { name: one.name.clone(), variable, addresses });
    }
    all
}

/// The alias, else the object's name: `svc/my-web:80` is `my-web`.
fn plain_name(one: &Forward) -> &str {
    if one.name != one.target {
        return &one.name;
    }
    let object = one.target.split_once('/').map_or(one.target.as_str(), |(_, object)| object);
    object.rsplit_once(':').map_or(object, |(name, _)| name)
}

/// Prints them.
pub(crate) async fn env(args: EnvArgs) -> Result<Exit> {
    let snapshot = connect::host().await?.snapshot().await?;
    let chosen = args.select.choose_or_all(&Forward::all(&snapshot))?;
    let found = listening(&chosen);
    crate::documents::print(render(&found, args.format, &args.service)?.as_bytes())?;
    let silent: Vec<&Forward> = chosen.iter().filter(|one| one.addresses.is_empty()).collect();
    if !args.select.is_empty() && !silent.is_empty() {
        let names: Vec<&str> = silent.iter().map(|one| one.name.as_str()).collect();
        shown::aside(&format!(
            "not running: {0}; start with `kftui start {1}`",
            names.join(", "),
            names.join(" ")
        ));
        return Ok(Exit::NotReady);
    }
    if found.is_empty() {
        shown::aside("nothing runs; `kftui start NAME` starts a forward");
    }
    Ok(Exit::Clean)
}

fn render(all: &[Listening], format: EnvFormat, services: &[String]) -> Result<String> {
    let variables = || all.iter().flat_map(|one| child::environment(&one.variable, &one.addresses));
    Ok(match format {
        EnvFormat::Dotenv => variables().map(|(name, value)| format!("{name}={value}\n")).collect(),
        EnvFormat::Shell => variables().map(|(name, value)| format!("export {name}='{value}'\n")).collect(),
        EnvFormat::Json => {
            let one = |one: &Listening| {
                let pairs = child::environment(&one.variable, &one.addresses);
                let host = pairs.first().map(|(_, value)| value.clone());
                let port = one.addresses.first().map(SocketAddr::port);
                let addresses: Vec<String> = one.addresses.iter().map(SocketAddr::to_string).collect();
                let env: Map<String, Value> =
                    pairs.into_iter().map(|(name, value)| (name, value.into())).collect();
                (one.name.clone(), json!({ "host": host, "port": port, "addresses": addresses, "env": env }))
            };
            let all: Map<String, Value> = all.iter().map(one).collect();
            format!("{:#}\n", Value::Object(all))
        }
        EnvFormat::Compose => compose(all, services)?,
    })
}

/// The name by which containers reach the machine they run on.
const FROM_CONTAINERS: &str = "host.docker.internal";

/// Containers have a localhost of their own, so they get the machine's name instead. On Linux they come in by the bridge: a
/// forward for them must listen there, which the file says.
fn compose(all: &[Listening], services: &[String]) -> Result<String> {
    let mut environment = Map::new();
    for one in all {
        for (name, value) in child::environment(&one.variable, &one.addresses) {
            let value = if name.ends_with("_HOST") { FROM_CONTAINERS.to_owned() } else { value };
            environment.insert(name, value.into());
        }
    }
    let service = json!({
        "environment": environment,
        "extra_hosts": [format!("{FROM_CONTAINERS}:host-gateway")],
    });
    let document = if services.is_empty() {
        json!({ "x-kftray": service })
    } else {
        let services: Map<String, Value> =
            services.iter().map(|name| (name.clone(), service.clone())).collect();
        json!({ "services": services })
    };
    let mut text = String::new();
    let only_here: Vec<&str> = all
        .iter()
        .filter(|one| one.addresses.iter().all(|address| address.ip().is_loopback()))
        .map(|one| one.name.as_str())
        .collect();
    if !only_here.is_empty() {
        text.push_str(&format!(
            "# On Linux containers do not reach 127.0.0.1 of the machine. Give these a local_address on\n\
             # Docker's bridge (172.17.0.1): {}\n",
            only_here.join(", ")
        ));
    }
    text.push_str(&shown::document(shown::Format::Yaml, &document)?);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Listening> {
        let one = |name: &str, variable: &str, addresses: &[&str]| Listening {
            name: name.to_owned(),
            variable: variable.to_owned(),
            addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
        };
        vec![
            one("my-db", "MY_DB", &["127.0.0.1:5432", "[::1]:5432"]),
            one("svc/web:80", "WEB", &["0.0.0.0:8080"]),
        ]
    }

    #[test]
    fn every_format() {
        let told = |format| render(&all(), format, &[]).expect("rendered");
        insta::assert_snapshot!("dotenv", told(EnvFormat::Dotenv));
        insta::assert_snapshot!("shell", told(EnvFormat::Shell));
        insta::assert_snapshot!("json", told(EnvFormat::Json));
        insta::assert_snapshot!("compose_anchor", told(EnvFormat::Compose));
        let services = ["app".to_owned(), "worker".to_owned()];
        insta::assert_snapshot!(
            "compose_services",
            render(&all(), EnvFormat::Compose, &services).expect("rendered")
        );
    }
}
