//! `kftui up` and `kftui down`: the forwards of the project one stands in.
//!
//! They are written down in the host's store with a tag that names the project, so that they come back after a crash and are
//! seen in every face; `up` makes the store say what the file says, `down` takes them out again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use kftray_client::Client;
use kftray_commons::ForwardId;
use kftray_commons::api::{Action, ActionRequest, ConfigPut, Selection, SettingsPatch};
use kftray_commons::border::{self, Defaults, Import};
use kftray_commons::tags::Tags;
use serde_json::{Map, Value};

use super::ask::confirm;
use super::{act, import};
use crate::cli::duration;
use crate::connect;
use crate::exit::Exit;
use crate::project::{self, Format};
use crate::shown::{self, Forward, OutputArgs};

pub(crate) const UP_HELP: &str = "\
Examples:
  kftui up                     every forward of .kftray.yaml here or above
  kftui up db web              only these
  kftui up --file team.toml
  kftui down

.kftray.yaml (or .yml, .json, .toml):
  # yaml-language-server: $schema=https://raw.githubusercontent.com/kftray/kftray/main/docs/schema/kftray.schema.json
  namespace: shop
  forwards:
    - {alias: db, service: postgres, local_port: 15432, remote_port: 5432}
    - {service: web, local_port: 8080, remote_port: http}

What widens who can reach what (an address beyond this machine, another kubeconfig, a public
expose) is asked about once for each content of the file; --yes answers for scripts.";

pub(crate) const DOWN_HELP: &str = "\
Examples:
  kftui down                   stops the project's forwards and takes them out of the list
  kftui down --keep            stops them only";

/// The tag by which a project's forwards are known.
const TAG: &str = "kftray/project";

/// Settings under which answers are remembered: this, and the file's fingerprint.
const CONSENT: &str = "project_consent:";

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Only these of the file, by alias
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,

    /// The project file [default: the nearest .kftray.yaml, .yml, .json or .toml, here or above]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,

    /// Allow what the file widens, without asking
    #[arg(short, long)]
    pub(crate) yes: bool,

    /// Do not wait until they are ready
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Seconds to wait at most
    #[arg(long, value_parser = duration, default_value = act::PATIENCE, value_name = "SECONDS")]
    pub(crate) timeout: Duration,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// The project file, as for `up`
    #[arg(short, long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,

    /// Stop them, but keep them in the list
    #[arg(long)]
    pub(crate) keep: bool,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// A project by its file.
struct Project {
    path: PathBuf,
    /// The folder's name, for people.
    name: String,
    /// What its forwards are tagged with: the name, and enough of the path to tell two of one name apart.
    mark: String,
}

impl Project {
    fn of(file: Option<PathBuf>) -> Result<Result<Self, Exit>> {
        let path = match file {
            Some(path) => std::path::absolute(path)?,
            None => {
                let here = std::env::current_dir().context("the current directory is not known")?;
                let Some(found) = project::find(&here) else {
                    let names = project::FILE_NAMES.join(", ");
                    shown::aside(&format!(
                        "there is no project file ({names}) in {} or above",
                        here.display()
                    ));
                    return Ok(Err(Exit::BadInput));
                };
                if let Err(problem) = project::check_owner(&found) {
                    shown::trouble("", &problem);
                    return Ok(Err(Exit::NeedsUser));
                }
                found
            }
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        let name =
            folder.file_name().map_or_else(|| "root".to_owned(), |name| name.to_string_lossy().into_owned());
        // Comma and equals sign end a tag's value.
        let plain: String =
            name.chars().filter(|c| !matches!(c, ',' | '=') && !c.is_control()).take(64).collect();
        let digest = project::fingerprint(&path.to_string_lossy());
        let mark = format!("{plain} {}", digest.get(..8).unwrap_or_default());
        Ok(Ok(Self { path, name: plain, mark }))
    }

    /// Its forwards in the store.
    fn stored(&self, all: &[Forward]) -> Vec<Forward> {
        all.iter().filter(|one| one.stored && one.tags.get(TAG) == Some(&self.mark)).cloned().collect()
    }
}

/// Starts a project.
pub(crate) async fn up(args: UpArgs) -> Result<Exit> {
    let project = match Project::of(args.file.clone())? {
        Ok(project) => project,
        Err(exit) => return Ok(exit),
    };
    let source = project.path.display().to_string();
    let text = match std::fs::read_to_string(&project.path) {
        Ok(text) => text,
        Err(error) => {
            shown::aside(&format!("{source}: cannot be read: {error}"));
            return Ok(Exit::BadInput);
        }
    };
    let read = project::read(&text, Format::of(&project.path), &Defaults::default());
    let faults = import::tell(&source, &read);
    let wanted = wanted(&read, &project);
    if wanted.is_empty() {
        shown::aside(&format!("{source}: there is no forward left to start"));
        return Ok(Exit::BadInput);
    }
    let chosen = match choose(&wanted, &args.names) {
        Ok(chosen) => chosen,
        Err(why) => {
            shown::aside(&format!("{source}: {why}"));
            return Ok(Exit::BadInput);
        }
    };
    let client = connect::host().await?;
    if let Some(exit) = consent(&client, &project, &text, &read, args.yes).await? {
        return Ok(exit);
    }
    let ids = synchronise(&client, &project, &wanted, faults == 0).await?;
    let ids: Vec<ForwardId> = chosen.iter().filter_map(|place| ids.get(*place).copied()).collect();
    let request = ActionRequest { selection: Selection::ids(ids), ..ActionRequest::default() };
    let report = act::act(&client, Action::Start, &request).await?;
    let limit = (!args.no_wait).then_some(args.timeout);
    act::finish(&client, report, limit, args.output.output).await
}

/// One forward as it shall be stored.
struct Wanted {
    label: String,
    entry: Map<String, Value>,
}

fn wanted(read: &Import, project: &Project) -> Vec<Wanted> {
    let mut all = Vec::new();
    for entry in &read.entries {
        let Ok(spec) = &entry.result else { continue };
        let mut object = border::object(spec, &entry.extra);
        let tags = object.entry("tags").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(tags) = tags {
            tags.insert(TAG.to_owned(), project.mark.clone().into());
            // A group of the file's own choice stays.
            tags.entry(Tags::GROUP).or_insert_with(|| project.name.clone().into());
        }
        all.push(Wanted { label: spec.label(), entry: object });
    }
    all
}

/// Places of the named ones; all without names.
fn choose(wanted: &[Wanted], names: &[String]) -> Result<Vec<usize>, String> {
    if let Some(strange) = names.iter().find(|name| wanted.iter().all(|one| one.label != **name)) {
        let there: Vec<&str> = wanted.iter().map(|one| one.label.as_str()).collect();
        return Err(format!("there is no forward `{strange}`; there are {}", there.join(", ")));
    }
    let is_chosen = |one: &Wanted| names.is_empty() || names.contains(&one.label);
    Ok(wanted.iter().enumerate().filter(|(_, one)| is_chosen(one)).map(|(place, _)| place).collect())
}

/// Asks about what the file widens, once for its content. `Some`: the answer was no.
async fn consent(
    client: &Client,
    project: &Project,
    text: &str,
    read: &Import,
    yes: bool,
) -> Result<Option<Exit>> {
    let widenings = project::widenings(read.specs());
    if widenings.is_empty() {
        return Ok(None);
    }
    let key = format!("{CONSENT}{}", project::fingerprint(text));
    if client.settings().await?.other.contains_key(&key) {
        return Ok(None);
    }
    if !yes {
        shown::aside(&format!("{} asks for more than a forward to this machine:", project.path.display()));
        for widening in &widenings {
            shown::aside(&format!("  {widening}"));
        }
        if let Some(exit) = confirm("Allow this, now and whenever the file is exactly as it is?", "--yes")? {
            return Ok(Some(exit));
        }
    }
    let other = BTreeMap::from([(key, Some(project.path.display().to_string()))]);
    client.set_settings(&SettingsPatch { other, ..SettingsPatch::default() }).await?;
    Ok(None)
}

/// Makes the store say what the file says; the ids in the order of `wanted`. `whole`: every entry of the file could be read,
/// so that what is not among them is gone from it.
async fn synchronise(
    client: &Client,
    project: &Project,
    wanted: &[Wanted],
    whole: bool,
) -> Result<Vec<ForwardId>> {
    let mut stored = project.stored(&Forward::all(&client.snapshot().await?));
    let mut ids = Vec::new();
    for one in wanted {
        let known = stored.iter().position(|known| known.name == one.label).map(|place| stored.remove(place));
        let put = |revision| ConfigPut { spec: one.entry.clone(), revision, group: None };
        ids.push(match known.as_ref().and_then(|known| known.config.as_ref()) {
            Some(config) if config.spec == one.entry => config.id,
            Some(config) => client.put_config(config.id, &put(Some(config.revision))).await?.id,
            None => client.add_config(&put(None)).await?.id,
        });
    }
    if whole {
        for gone in stored {
            client.remove_config(gone.id).await?;
        }
    }
    Ok(ids)
}

/// Stops a project, and takes it out of the store.
pub(crate) async fn down(args: DownArgs) -> Result<Exit> {
    let project = match Project::of(args.file.clone())? {
        Ok(project) => project,
        Err(exit) => return Ok(exit),
    };
    let client = connect::host().await?;
    let stored = project.stored(&Forward::all(&client.snapshot().await?));
    if stored.is_empty() {
        shown::aside(&format!("nothing of {} is up", project.path.display()));
    }
    let ids = stored.iter().map(|one| one.id);
    let request = ActionRequest { selection: Selection::ids(ids), ..ActionRequest::default() };
    let report = act::act(&client, Action::Stop, &request).await?;
    if !args.keep {
        for one in &stored {
            client.remove_config(one.id).await?;
        }
    }
    act::finish(&client, report, None, args.output.output).await
}
