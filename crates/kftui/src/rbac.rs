//! `kftui rbac print`: the rights that each kind of use needs, ready to apply.

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use kftray_kube::deploy::{RelaySettings, Sheet, rbac};

use crate::documents::print;
use crate::exit::Exit;
use crate::relay::Subjects;

/// `--help` of the whole.
pub(crate) const HELP: &str = "\
Examples:
  kftui rbac print                                      all four sheets, to read
  kftui rbac print relay -n shop --group developers | kubectl apply -f -
  kftui rbac print installed --group system:authenticated | kubectl apply -f -

Sheets:
  forward     forwards to Services, workloads and pods
  relay       that, and relays on demand: UDP, proxies
  installed   the use of a relay that an administrator has installed
  expose      that of `relay`, and local programs made reachable";

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum RbacCommand {
    /// Print Roles and RoleBindings with a comment at every rule
    Print(PrintArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PrintArgs {
    /// Which sheets [default: all]
    #[arg(value_enum)]
    sheets: Vec<Wanted>,
    /// Namespace of the Role [default: `default`; `installed`: kftray-system]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    subjects: Subjects,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wanted {
    Forward,
    Relay,
    Installed,
    Expose,
}

impl From<Wanted> for Sheet {
    fn from(wanted: Wanted) -> Self {
        match wanted {
            Wanted::Forward => Self::Forward,
            Wanted::Relay => Self::Relay,
            Wanted::Installed => Self::Installed,
            Wanted::Expose => Self::Expose,
        }
    }
}

/// Runs a verb.
pub(crate) fn run(command: RbacCommand) -> Result<Exit> {
    let RbacCommand::Print(args) = command;
    let sheets: Vec<Sheet> = if args.sheets.is_empty() {
        Sheet::ALL.to_vec()
    } else {
        args.sheets.into_iter().map(Sheet::from).collect()
    };
    let subjects = args.subjects.list();
    let texts: Vec<String> = sheets
        .into_iter()
        .map(|sheet| {
            let usual = if sheet == Sheet::Installed { RelaySettings::SYSTEM_NAMESPACE } else { "default" };
            rbac(sheet, args.namespace.as_deref().unwrap_or(usual), &subjects)
        })
        .collect();
    print(texts.join("---\n").as_bytes())
}
