//! `kftui forward`: targets and ports from the command line.

use anyhow::Result;
use kftray_commons::spec::Listen;
use kftray_commons::{ClusterRef, ContextRef, ForwardId, ForwardSpec, Workload};

use crate::cli::{ForwardArgs, PlaceArgs, Way};
use crate::exit::Exit;
use crate::render;
use crate::session::{self, Item, Rules};
use crate::signals::Signals;
use crate::stack::Stack;
use crate::target::{self, Wanted};

/// Checks the command line. The error is for the person who wrote it.
pub(crate) fn specs(args: &ForwardArgs) -> Result<Vec<ForwardSpec>, String> {
    specs_of(&args.words, &args.common.place, args.via)
}

/// The same for the words and places of any command.
pub(crate) fn specs_of(words: &[String], place: &PlaceArgs, via: Way) -> Result<Vec<ForwardSpec>, String> {
    let wanted = target::parse(words).map_err(|fault| fault.to_string())?;
    let specs = wanted.into_iter().zip(1..).map(|(one, number)| spec(one, number, place, via));
    let specs: Vec<_> = specs.collect::<Result<_, _>>()?;
    for spec in &specs {
        if let Some(fault) = spec.check().into_iter().next() {
            let flag = match fault.field {
                "local_address" => "--address",
                "namespace" => "--namespace",
                "context" => "--context",
                "remote_address" => "proxy/HOST",
                other => other,
            };
            return Err(format!("{flag}: {}\n\n  {}", fault.message, fault.remedy));
        }
    }
    Ok(specs)
}

fn spec(wanted: Wanted, number: u64, place: &PlaceArgs, via: Way) -> Result<ForwardSpec, String> {
    let workload = Workload::of(wanted.object, wanted.remote);
    let workload = workload.ok_or("the port of a host is a number from 1 to 65535")?;
    let mut spec = ForwardSpec::new(ForwardId(number), workload);
    spec.cluster = cluster(place);
    spec.protocol = wanted.protocol;
    spec.via = via.into();
    spec.namespace.clone_from(&place.namespace);
    spec.listen = Listen { hosts: hosts(place), port: wanted.local, auto_loopback: false };
    Ok(spec)
}

/// The cluster that the flags name.
pub(crate) fn cluster(place: &PlaceArgs) -> ClusterRef {
    let context = match place.context.as_deref() {
        None | Some("@current") => ContextRef::Current,
        Some(name) => ContextRef::Named(name.to_owned()),
    };
    ClusterRef { kubeconfig: place.kubeconfig.clone(), context }
}

/// Where the flags say to listen.
pub(crate) fn hosts(place: &PlaceArgs) -> Vec<String> {
    if place.address.is_empty() {
        return vec![Listen::DEFAULT_HOST.to_owned()];
    }
    place.address.iter().map(|host| host.trim().trim_matches(['[', ']']).to_owned()).collect()
}

/// Runs them.
pub(crate) async fn run(args: ForwardArgs, specs: Vec<ForwardSpec>) -> Result<Exit> {
    let rules = Rules {
        hold: args.common.hold,
        ready_timeout: args.common.ready_timeout,
        keep_trying: args.common.keep_trying,
        others_go_on: false,
        command: args.command,
    };
    let items = session::items(specs);
    let width = items.iter().map(|item: &Item| item.label.chars().count()).max().unwrap_or_default();
    let mut screen = render::screen(args.common.output, !rules.command.is_empty(), width);
    let mut signals = Signals::install()?;
    let stack = Stack::new(args.common.transport, args.common.relay_image.as_deref());
    let exit = session::run(&stack.engine, items, &rules, screen.as_mut(), &mut signals).await;
    stack.finish().await;
    exit
}
