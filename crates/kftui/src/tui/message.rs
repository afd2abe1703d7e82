//! What can happen to the window, and what it can ask for. Between the two is only [`super::update`].

use std::path::PathBuf;
use std::time::Duration;

use crossterm::event::KeyEvent;
use kftray_client::State;
use kftray_commons::api::{
    Action as Deed, ActionReport, Config, ConfigPut, ContextList, Error, History, ImportReport,
    ImportRequest, Millis, NamespaceList, ServiceList, SettingsPatch, WorkloadList,
};
use kftray_commons::{ForwardId, Problem};

use super::keys::Action;

/// The time of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Now {
    /// Since the window was opened; only grows.
    pub(super) at: Duration,
    /// What the clock on the wall shows.
    pub(super) wall: Millis,
}

/// Something happened.
#[derive(Debug, Clone)]
pub(super) enum Message {
    Key(KeyEvent),
    /// The mouse did something at this target of the screen as it was drawn last.
    Mouse(Gesture, Option<Target>),
    Paste(String),
    /// Columns and rows.
    Size(u16, u16),
    /// A time that [`super::model::Model::deadline`] asked for has come.
    Tick,
    /// What the host says now, or that it is away.
    Host(Box<State>),
    /// The host lives in this window, since none could be started in the background.
    Embedded(Problem),
    /// There is no host, and none can be started.
    NoHost(Problem),
    Done(Outcome),
}

/// What the mouse did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gesture {
    Click,
    Up,
    Down,
}

/// What is drawn at a place of the screen and can be clicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// A row of the list, by its number.
    Row(usize),
    /// The tick of that row.
    Tick(usize),
    /// An item, field or line of the window in front, by its number.
    Item(usize),
    /// Something of the legend.
    Legend(Action),
    /// The line of the search.
    Search,
    /// A window, where nothing in it is hit.
    Window,
}

/// What a list of a cluster is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Where {
    /// `None`: the usual kubeconfig.
    pub(super) kubeconfig: Option<String>,
    pub(super) context: String,
    pub(super) namespace: String,
}

/// A wish.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Effect {
    Quit,
    /// To the clipboard of the terminal.
    Copy(String),
    Act(Deed, Vec<ForwardId>),
    /// Writes configs down, new ones or changes, then starts them if asked.
    Save(Save),
    /// Removes configs; running ones are stopped by the host.
    Delete(Vec<ForwardId>),
    History(ForwardId),
    Contexts(u64),
    Namespaces(u64, Where),
    Services(u64, Where),
    Workloads(u64, Where),
    Import(ImportRequest),
    /// Configs to a file, all if no id is given; an existing file only if `replace`.
    Export {
        path: PathBuf,
        ids: Vec<ForwardId>,
        replace: bool,
    },
    /// What a folder holds, for completion.
    Look(PathBuf),
    Settings(SettingsPatch),
    /// The first free port above this one on the address of the forward.
    FreePort {
        id: ForwardId,
        host: String,
        above: u16,
    },
}

/// Configs to be written.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Save {
    /// With an id: a change of that config.
    pub(super) puts: Vec<(Option<ForwardId>, ConfigPut)>,
    /// What to do with them then.
    pub(super) then: Then,
    /// Whether a form waits for the answer.
    pub(super) form: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Then {
    #[default]
    Nothing,
    Start,
    /// For those that run with their old content.
    Restart,
}

/// What came of a wish.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Acted(Deed, Result<ActionReport, Error>),
    Saved {
        save: Save,
        results: Vec<Result<Config, Error>>,
        started: Option<Result<ActionReport, Error>>,
    },
    Deleted(Vec<(ForwardId, Result<(), Error>)>),
    History(ForwardId, Result<History, Error>),
    /// To the question of that number.
    Listed(u64, Answer),
    Imported(ImportRequest, Result<ImportReport, Error>),
    Exported {
        path: PathBuf,
        result: Result<Exported, ExportFault>,
    },
    Looked(PathBuf, Vec<Seen>),
    Settings(Result<(), Error>),
    FreePort {
        id: ForwardId,
        port: Option<u16>,
    },
}

/// What is there in a cluster.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Contexts(Result<ContextList, Error>),
    Namespaces(Result<NamespaceList, Error>),
    Services(Result<ServiceList, Error>),
    Workloads(Result<WorkloadList, Error>),
}

/// What is in a file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exported {
    pub(super) count: usize,
    /// What was left out, or means something else to others.
    pub(super) remarks: Vec<String>,
}

/// Why there is no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ExportFault {
    /// There is one of that name already.
    Exists,
    Other(Problem),
}

/// Something in a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen {
    pub(super) folder: bool,
    pub(super) name: String,
}
