//! `kftui settings`: what the host goes by, for all forwards and faces.

use anyhow::Result;
use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use kftray_commons::Code;
use kftray_commons::api::{Error, Settings, SettingsPatch};
use kftray_commons::store::{Known, RELAY, SETTINGS};
use serde::Serialize;
use serde_json::Value;

use crate::complete;
use crate::connect;
use crate::exit::Exit;
use crate::render::Paint;
use crate::shown::{self, Cell, OutputArgs, Table};

pub(crate) const SETTINGS_HELP: &str = "\
Examples:
  kftui settings                                       all, with what they mean
  kftui settings set idle_minutes=30                   forwards without traffic end after half an hour
  kftui settings set relay_image=mirror.corp.example/kftray-server:1 relay_pull_secrets=mirror
  kftui settings set relay_tolerations='[{\"operator\": \"Exists\"}]'
  kftui settings reset relay_image                     back to its default
  kftui settings --output json

They hold for the host and all that runs in it, at once and without a restart: relays that would be
made differently are replaced while their forwards go on.";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct SettingsArgs {
    #[command(subcommand)]
    command: Option<SettingsCommand>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Subcommand)]
enum SettingsCommand {
    /// Change settings
    Set {
        /// A setting and its value; what is not a number or a word is JSON, or a list with commas
        #[arg(value_name = "NAME=VALUE", required = true, add = ArgValueCompleter::new(complete::settings))]
        changes: Vec<String>,
    },
    /// Take settings back to their defaults
    Reset {
        /// A setting
        #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(complete::settings))]
        names: Vec<String>,
    },
}

/// A setting as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Shown {
    name: String,
    /// What holds, as it is written.
    value: String,
    default: String,
    meaning: &'static str,
}

/// Shows or changes settings.
pub(crate) async fn settings(args: SettingsArgs) -> Result<Exit> {
    let changes = match args.command {
        None => {
            let all = shown(&connect::host().await?.settings().await?);
            return shown::answer(
                args.output.output,
                &all,
                |paint| table(&all, paint),
                |one| one.name.clone(),
            );
        }
        Some(SettingsCommand::Set { changes }) => {
            let parted = changes.into_iter().map(|change| match change.split_once('=') {
                Some((name, value)) => Ok((name.trim().to_owned(), Some(value.trim().to_owned()))),
                None => {
                    Err(refused(format!("`{change}` is not NAME=VALUE"), "Write it as in `restore=false`."))
                }
            });
            parted.collect::<Result<Vec<_>, Error>>()?
        }
        Some(SettingsCommand::Reset { names }) => names.into_iter().map(|name| (name, None)).collect(),
    };
    for (name, value) in &changes {
        check(name, value.as_deref())?;
    }
    let patch = SettingsPatch { other: changes.into_iter().collect(), ..SettingsPatch::default() };
    connect::host().await?.set_settings(&patch).await?;
    Ok(Exit::Clean)
}

/// Whether there is such a setting and it takes the value: before anything is changed, since several may be.
fn check(name: &str, value: Option<&str>) -> Result<(), Error> {
    let Some(known) = Known::of(name) else {
        return Err(refused(format!("there is no setting {name}"), "`kftui settings` lists them all."));
    };
    match value.filter(|value| !value.is_empty()).map(|value| known.accepts(value)) {
        Some(Err(remedy)) => {
            Err(refused(format!("{name} cannot be `{}`", value.unwrap_or_default()), &remedy))
        }
        Some(Ok(())) | None => Ok(()),
    }
}

fn refused(message: String, remedy: &str) -> Error {
    Error { remedy: remedy.to_owned(), ..Error::new(Code::RequestInvalid, message) }
}

/// All that this version knows, with their present values.
fn shown(settings: &Settings) -> Vec<Shown> {
    // By their names, so that no setting can be forgotten here.
    let values = serde_json::to_value(settings).unwrap_or_default();
    let one = |known: &Known| {
        let found = match known.key.strip_prefix(RELAY) {
            Some(field) => values.get("relay").and_then(|relay| relay.get(field)),
            None => values.get(known.key).or_else(|| values.get("other")?.get(known.key)),
        };
        let text = found.map(|value: &Value| known.text(value)).filter(|text| !text.is_empty());
        Shown {
            name: known.key.to_owned(),
            value: text.unwrap_or_else(|| known.default.to_owned()),
            default: known.default.to_owned(),
            meaning: known.meaning,
        }
    };
    SETTINGS.iter().map(one).collect()
}

fn table(all: &[Shown], paint: Paint) -> String {
    let mut table = Table::new(&["NAME", "VALUE", "MEANING"]);
    for one in all {
        let value = if one.value == one.default {
            Cell::dim(one.value.clone())
        } else {
            Cell::strong(one.value.clone())
        };
        table.row(vec![one.name.clone().into(), value, Cell::dim(one.meaning)]);
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_shown_with_its_value() {
        let mut settings = Settings { idle_minutes: 7, ..Settings::default() };
        settings.relay.pull_secrets = vec!["a".to_owned(), "b".to_owned()];
        settings.other.insert("mcp_server_port".to_owned(), "3100".to_owned());
        let all = shown(&settings);
        assert_eq!(all.len(), SETTINGS.len());
        let value = |name: &str| all.iter().find(|one| one.name == name).map(|one| one.value.as_str());
        assert_eq!(value("idle_minutes"), Some("7"));
        assert_eq!(value("restore"), Some("true"));
        assert_eq!(value("relay_pull_secrets"), Some("a,b"));
        assert_eq!(value("relay_idle_exit"), Some("120"));
        assert_eq!(value("mcp_server_port"), Some("3100"));
    }

    #[test]
    fn what_cannot_be_is_told_before_anything_is_changed() {
        let told = |name: &str, value| check(name, Some(value)).expect_err(name);
        assert!(told("idle_minute", "5").message.contains("idle_minute"));
        assert!(told("relay_patch", "no JSON").remedy.contains("JSON object"));
        assert_eq!(check("relay_patch", Some("")), Ok(()));
        assert_eq!(check("restore", None), Ok(()));
    }
}
