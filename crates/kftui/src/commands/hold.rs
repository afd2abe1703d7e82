//! `kftui run NAME...`: stored forwards for as long as a command, or this terminal, needs them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use kftray_client::{Client, Follow, HeldLease, Link};
use kftray_commons::api::{Action, ActionOutcome, ActionRequest, ForwardState, Selection};
use kftray_commons::{Event, ForwardId};

use super::select::{self, SelectArgs};
use super::settle::settle;
use super::{act, env};
use crate::child;
use crate::cli::{Output, RunArgs, Transport};
use crate::connect;
use crate::exit::Exit;
use crate::render::{self, Screen};
use crate::session;
use crate::shown::{self, Forward};
use crate::signals::Signals;

/// What of the flags means nothing for stored forwards. The error is for the person who wrote them.
pub(crate) fn check(args: &RunArgs) -> Result<(), String> {
    let place = &args.common.place;
    let said = [
        ("--namespace", place.namespace.is_some()),
        ("--context", place.context.is_some()),
        ("--kubeconfig", place.kubeconfig.is_some()),
        ("--address", !place.address.is_empty()),
        ("--transport", args.common.transport != Transport::Auto),
    ];
    match said.into_iter().find(|(_, said)| *said) {
        Some((flag, _)) => Err(format!("{flag} is for files; a stored forward has its own (`kftui edit`)")),
        None => Ok(()),
    }
}

/// Starts stored forwards under a lease, so that those that did not run before end with this program, whatever ends it.
pub(crate) async fn run(args: RunArgs) -> Result<Exit> {
    let client = connect::host().await?;
    let select = SelectArgs { names: args.files.clone(), ..SelectArgs::default() };
    let chosen = select.must_choose(&Forward::all(&client.snapshot().await?))?;
    let held = start(&client, Selection::ids(select::ids(&chosen))).await?;
    let wanted: BTreeMap<ForwardId, String> = chosen.into_iter().map(|one| (one.id, one.name)).collect();
    match held {
        Err(exit) => Ok(exit),
        Ok(lease) => work(&client, lease, &wanted, &args).await,
    }
}

/// Starts; what cannot be started is told and ends it.
pub(crate) async fn start(client: &Client, selection: Selection) -> Result<Result<HeldLease, Exit>> {
    let lease = client.hold_lease().await?;
    let request = ActionRequest { selection, lease: Some(lease.id()), ..ActionRequest::default() };
    let report = act::act(client, Action::Start, &request).await?;
    let mut failed = false;
    for result in report.results.iter().filter(|result| result.outcome == ActionOutcome::Failed) {
        failed = true;
        if let Some(problem) = &result.problem {
            shown::trouble(&result.label, problem);
        }
    }
    Ok(if failed { Err(Exit::NeedsUser) } else { Ok(lease) })
}

/// Runs the command, or shows what happens until a signal.
async fn work(
    client: &Client,
    mut lease: HeldLease,
    wanted: &BTreeMap<ForwardId, String>,
    args: &RunArgs,
) -> Result<Exit> {
    let mut signals = Signals::install()?;
    if args.command.is_empty() {
        return show(client.follow(), wanted, args.common.output, &mut lease, &mut signals).await;
    }
    let settled = tokio::select! {
        settled = settle(client, wanted, args.common.ready_timeout, args.common.keep_trying) => settled?,
        _ = session::ending(&mut signals) => return Ok(Exit::Clean),
    };
    let told = settled.tell();
    if told != Exit::Clean {
        return Ok(told);
    }
    let forwards = Forward::all(&settled.snapshot);
    let chosen: Vec<Forward> = forwards.into_iter().filter(|one| wanted.contains_key(&one.id)).collect();
    let variables = env::listening(&chosen);
    let variables =
        variables.iter().flat_map(|one| child::environment(&one.variable, &one.addresses)).collect();
    command(&args.command, variables, &mut signals).await
}

/// Runs a command to its end, signals passed on.
pub(crate) async fn command(
    words: &[std::ffi::OsString],
    variables: Vec<(String, String)>,
    signals: &mut Signals,
) -> Result<Exit> {
    let mut child = match child::start(words, variables) {
        Ok(child) => child,
        Err(why) => {
            shown::aside(&why.to_string());
            return Ok(Exit::Command(why.code));
        }
    };
    loop {
        tokio::select! {
            status = child.wait() => return Ok(Exit::Command(child::code(status?))),
            signal = signals.next() => child::pass_on(&child, signal),
        }
    }
}

/// Lines of what happens, until a signal or the end of the host.
pub(crate) async fn show(
    mut follow: Follow,
    wanted: &BTreeMap<ForwardId, String>,
    output: Output,
    lease: &mut HeldLease,
    signals: &mut Signals,
) -> Result<Exit> {
    let width = wanted.values().map(|name| name.chars().count()).max().unwrap_or_default();
    let mut screen = render::screen(output, false, width);
    let mut told: BTreeMap<ForwardId, Arc<ForwardState>> = BTreeMap::new();
    let mut all_ready = false;
    loop {
        tokio::select! {
            _ = session::ending(signals) => {
                screen.interrupted()?;
                return Ok(Exit::Clean);
            }
            () = lease.lost() => {
                shown::aside("the host has ended, and the forwards with it");
                return Ok(Exit::HostUnreachable);
            }
            state = follow.changed() => {
                if state.link != Link::Connected {
                    continue;
                }
                let mut ready = 0;
                for id in wanted.keys() {
                    let Some(now) = state.snapshot.forward(*id) else { continue };
                    tell(told.get(id).map(AsRef::as_ref), now, screen.as_mut())?;
                    ready += usize::from(now.ready_via.is_some());
                    told.insert(*id, Arc::clone(now));
                }
                if ready == wanted.len() && !std::mem::replace(&mut all_ready, true) {
                    screen.event(&Event::AllReady)?;
                }
            }
        }
    }
}

/// The events between two states, as `kftui forward` tells them.
fn tell(before: Option<&ForwardState>, now: &ForwardState, screen: &mut dyn Screen) -> Result<()> {
    let forward = now.label.clone();
    if !now.is_active() {
        if before.is_none_or(ForwardState::is_active) {
            screen.event(&Event::Stopped { forward, counters: now.counters })?;
        }
        return Ok(());
    }
    if before.map(|before| &before.status) != Some(&now.status) {
        screen.event(&Event::Status { forward: forward.clone(), status: now.status.clone() })?;
    }
    let via = |state: &ForwardState| state.ready_via.as_ref().map(|via| via.pod.clone());
    if let Some(ready) = now.ready_via.as_ref().filter(|_| before.and_then(via) != via(now)) {
        screen.event(&Event::Ready {
            forward,
            addresses: addresses(now),
            endpoint: ready.pod.clone(),
            transport: ready.transport.clone(),
        })?;
    }
    Ok(())
}

/// IPv4 first, as everywhere.
fn addresses(state: &ForwardState) -> Vec<String> {
    let mut addresses = state.addresses.clone();
    addresses.sort_by_key(|text| !text.parse::<SocketAddr>().is_ok_and(|address| address.is_ipv4()));
    addresses
}
