//! `kftui edit`: an entry in the editor, as YAML with comments, until it is valid or given up.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;
use clap_complete::ArgValueCompleter;
use kftray_commons::api::{Config, ConfigPut};
use kftray_commons::border::{self, Defaults, Import};
use serde_json::{Map, Value};

use super::select;
use crate::complete;
use crate::connect;
use crate::exit::Exit;
use crate::platform::EDITOR;
use crate::project::{self, Format};
use crate::shown::{self, Forward};

pub(crate) const EDIT_HELP: &str = "\
Examples:
  kftui edit db
  EDITOR='code --wait' kftui edit db
  kftui edit db --set local_port=15432 --set idle_minutes=30      without an editor

The editor is $VISUAL, else $EDITOR, else vi. What is not valid opens again with the fault as a
comment; leaving it as it was gives up. A forward that runs is started anew with the change.";

#[derive(Debug, Args)]
pub(crate) struct EditArgs {
    /// A forward by name or number
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::forwards))]
    pub(crate) name: String,

    /// Set a field instead of opening an editor: FIELD=VALUE, an empty value removes it; repeatable
    #[arg(long, value_name = "FIELD=VALUE")]
    pub(crate) set: Vec<String>,
}

/// Edits one.
pub(crate) async fn edit(args: EditArgs) -> Result<Exit> {
    let client = connect::host().await?;
    let all = Forward::all(&client.snapshot().await?);
    let one = select::one(&all, &args.name)?;
    let Some(config) = one.config.clone() else {
        shown::aside(&format!("{} is written down nowhere; there is nothing to edit", one.name));
        return Ok(Exit::BadInput);
    };
    let edited = if args.set.is_empty() { in_editor(&config)? } else { set(&config, &args.set) };
    let spec = match edited {
        Edited::Spec(spec) => spec,
        Edited::Unchanged => {
            shown::aside("nothing was changed");
            return Ok(Exit::Clean);
        }
        Edited::Refused(exit) => return Ok(exit),
    };
    let put = ConfigPut { spec, revision: Some(config.revision), group: None };
    let config = match client.put_config(config.id, &put).await {
        Ok(config) => config,
        Err(error) => {
            // Somebody may have changed it meanwhile; the work of the person must not be lost.
            shown::aside(&format!("not written:\n{}", shown::document(shown::Format::Yaml, &put.spec)?));
            return Err(error.into());
        }
    };
    shown::aside(&format!("changed {}", config.summary.label));
    Ok(Exit::Clean)
}

/// What came of an edit.
#[derive(Debug, PartialEq)]
enum Edited {
    Spec(Map<String, Value>),
    Unchanged,
    Refused(Exit),
}

/// Fields from the command line.
fn set(config: &Config, fields: &[String]) -> Edited {
    let mut spec = config.spec.clone();
    for field in fields {
        let Some((name, value)) = field.split_once('=') else {
            shown::aside(&format!("`{field}` is not FIELD=VALUE"));
            return Edited::Refused(Exit::Usage);
        };
        if value.is_empty() {
            spec.remove(name);
        } else {
            // The border takes texts for numbers and flags; objects are JSON.
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
            spec.insert(name.to_owned(), value);
        }
    }
    let entry = border::read_object(&spec, config.id, &Defaults::open());
    let import = Import { entries: vec![entry], warnings: Vec::new() };
    if faults(&import).is_empty() {
        if spec == config.spec { Edited::Unchanged } else { Edited::Spec(spec) }
    } else {
        super::import::tell("--set", &import);
        Edited::Refused(Exit::BadInput)
    }
}

/// As long as the text is not valid, the editor opens again with the reason on top.
fn in_editor(config: &Config) -> Result<Edited> {
    let folder = tempfile::Builder::new()
        .prefix("kftui-")
        .tempdir()
        .context("there is no place for a file to edit")?;
    let path = folder.path().join("forward.yaml");
    let body = shown::document(shown::Format::Yaml, &config.spec)?;
    let mut text = format!("{}{body}", header(&[]));
    loop {
        std::fs::write(&path, &text)?;
        open(&path)?;
        let edited = std::fs::read_to_string(&path)?;
        let (content, before) = (without_header(&edited), without_header(&text));
        if content.trim().is_empty() {
            return Ok(Edited::Unchanged);
        }
        let was_refused = text.contains(MARK);
        if content == before {
            return Ok(if was_refused { Edited::Refused(Exit::BadInput) } else { Edited::Unchanged });
        }
        match read(content) {
            Ok(spec) if spec == config.spec => return Ok(Edited::Unchanged),
            Ok(spec) => return Ok(Edited::Spec(spec)),
            Err(faults) => {
                for fault in &faults {
                    shown::aside(fault);
                }
                text = format!("{}{content}", header(&faults));
            }
        }
    }
}

/// Begins each line that is ours.
const MARK: &str = "#! ";
const HELP: &str = "#: ";

/// What stands above the entry.
fn header(faults: &[String]) -> String {
    let help = ["One forward. Save and close to change it; leave it as it is, or empty, to change nothing."];
    let help = help.iter().map(|line| format!("{HELP}{line}\n"));
    let told = faults.iter().flat_map(|fault| fault.lines()).map(|line| format!("{MARK}{line}\n"));
    help.chain(told).collect()
}

fn without_header(text: &str) -> &str {
    let mut rest = text;
    while rest.starts_with(MARK.trim_end()) || rest.starts_with(HELP.trim_end()) {
        rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
    }
    rest
}

/// One valid entry out of a text, or what is wrong with it. Lines are those of the text without our header.
fn read(text: &str) -> Result<Map<String, Value>, Vec<String>> {
    let import = project::read(text, Format::Yaml, &Defaults::open());
    let faults = faults(&import);
    if !faults.is_empty() {
        return Err(faults);
    }
    match <[_; 1]>::try_from(import.entries) {
        Ok([entry]) => match entry.result {
            Ok(spec) => Ok(border::object(&spec, &entry.extra)),
            Err(_) => Err(faults),
        },
        Err(entries) => {
            Err(vec![format!("there must be exactly one forward, and here are {}", entries.len())])
        }
    }
}

fn faults(import: &Import) -> Vec<String> {
    let problems = import.faults().flat_map(|fault| fault.problems().collect::<Vec<_>>());
    problems.map(|problem| format!("{}. {}", problem.message, problem.remedy)).collect()
}

fn open(path: &Path) -> Result<()> {
    let named = ["VISUAL", "EDITOR"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|it| !it.trim().is_empty()));
    let command = named.unwrap_or_else(|| EDITOR.to_owned());
    let mut words = command.split_whitespace();
    let program = words.next().unwrap_or(EDITOR);
    let status = Command::new(program).args(words).arg(path).status();
    let status = status.with_context(|| format!("the editor `{command}` cannot be run; set EDITOR"))?;
    anyhow::ensure!(status.success(), "the editor `{command}` ended with {status}; nothing was changed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_comes_and_goes() {
        let text = format!("{}{}", header(&["line 1: bad\nsecond".to_owned()]), "service: web\n# mine\n");
        assert!(text.contains("#! second\n"), "{text}");
        assert_eq!(without_header(&text), "service: web\n# mine\n");
        assert_eq!(without_header("service: web"), "service: web");
        assert_eq!(without_header("#: x"), "");
    }

    #[test]
    fn faults_are_told_with_their_line() {
        let faults = read("service: web\nremote_port: 99999\n").expect_err("no port");
        assert_eq!(
            faults,
            ["line 2, column 14: remote_port: 99999 is not a port. Ports go from 1 to 65535."]
        );
        assert!(read("- {service: a, remote_port: 1}\n- {service: b, remote_port: 2}\n").is_err());
        let spec = read("service: web\nremote_port: 80\nfuture: [1]\n").expect("valid");
        assert_eq!(spec.get("future"), Some(&serde_json::json!([1])));
    }
}
