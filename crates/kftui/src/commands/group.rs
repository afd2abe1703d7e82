//! `kftui group`.

use anyhow::Result;
use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use kftray_commons::api::{GroupInfo, GroupPut};

use super::select::{self, SelectArgs};
use crate::complete;
use crate::connect;
use crate::exit::Exit;
use crate::render::Paint;
use crate::shown::{self, Cell, Forward, OutputArgs, Table};

pub(crate) const GROUP_HELP: &str = "\
Examples:
  kftui group list
  kftui group add morning db web        the group is made if it is not there
  kftui start --group morning
  kftui group remove morning web        web stays, outside of the group
  kftui group delete morning            its forwards stay

A forward belongs to one group at most; for more than one mark there are tags.";

#[derive(Debug, Args)]
pub(crate) struct GroupArgs {
    #[command(subcommand)]
    pub(crate) command: GroupCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// List groups
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Put forwards into a group
    Add(MembersArgs),
    /// Take forwards out of a group
    Remove(MembersArgs),
    /// Delete a group; its forwards stay
    Delete {
        /// The group
        #[arg(value_name = "GROUP", add = ArgValueCompleter::new(complete::groups))]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct MembersArgs {
    /// The group
    #[arg(value_name = "GROUP", add = ArgValueCompleter::new(complete::groups))]
    pub(crate) name: String,

    /// Forwards by name or number
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(complete::forwards))]
    pub(crate) forwards: Vec<String>,
}

/// Runs a command about groups.
pub(crate) async fn group(args: GroupArgs) -> Result<Exit> {
    let client = connect::host().await?;
    let all = || async { Ok::<_, anyhow::Error>(Forward::all(&client.snapshot().await?)) };
    let members = |args: &MembersArgs, all: &[Forward]| {
        let select = SelectArgs { names: args.forwards.clone(), ..SelectArgs::default() };
        select.must_choose(all).map(|chosen| select::ids(&chosen))
    };
    let (groups, output) = match args.command {
        GroupCommand::List { output } => (client.groups().await?, output.output),
        GroupCommand::Add(args) => {
            let change = GroupPut { add: members(&args, &all().await?)?, remove: Vec::new() };
            (client.put_group(&args.name, &change).await?, shown::Format::Table)
        }
        GroupCommand::Remove(args) => {
            let change = GroupPut { add: Vec::new(), remove: members(&args, &all().await?)? };
            (client.put_group(&args.name, &change).await?, shown::Format::Table)
        }
        GroupCommand::Delete { name } => (client.remove_group(&name).await?, shown::Format::Table),
    };
    let all = all().await?;
    let names = |group: &GroupInfo| {
        let members = all.iter().filter(|one| group.configs.contains(&one.id));
        members.map(|one| one.name.clone()).collect::<Vec<_>>()
    };
    let running = |group: &GroupInfo| {
        all.iter().filter(|one| group.configs.contains(&one.id) && one.state != "stopped").count()
    };
    let table = |paint: Paint| {
        let mut table = Table::new(&["GROUP", "RUNNING", "FORWARDS"]);
        for group in &groups.groups {
            let count = format!("{}/{}", running(group), group.configs.len());
            table.row(vec![Cell::strong(group.name.clone()), count.into(), names(group).join(", ").into()]);
        }
        table.render(paint)
    };
    if groups.groups.is_empty() && output == shown::Format::Table {
        shown::aside("no groups; `kftui group add NAME FORWARD...` makes one");
    }
    shown::answer(output, &groups.groups, table, |group| group.name.clone())
}
