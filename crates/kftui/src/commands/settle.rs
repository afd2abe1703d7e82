//! Waiting until started forwards have come to something: ready, or in need of a person.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use kftray_client::{Client, Link};
use kftray_commons::api::{Error, ForwardState, Snapshot};
use kftray_commons::{ForwardId, Problem, Status};
use tokio::time::Instant;

use crate::exit::Exit;
use crate::render::Progress;
use crate::shown;

/// How long the host may be away: a handover takes a moment, a crash until the next client starts another.
const AWAY: Duration = Duration::from_secs(10);

/// How the forwards stand at the end of the wait.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// As they are now.
    pub(crate) snapshot: Snapshot,
    /// Those that need a person, with the reason.
    pub(crate) needs_user: Vec<(String, Problem)>,
    /// Those that are not ready yet, or not any more, and what they wait for.
    pub(crate) late: Vec<(String, String)>,
}

/// Where one forward stands, for somebody who waits for it.
enum Stand {
    Ready,
    NeedsUser(Problem),
    /// What it waits for, in words.
    Waits(String),
    /// It has ended: nothing more will come.
    Ended,
}

fn stand(state: Option<&ForwardState>) -> Stand {
    let Some(state) = state else { return Stand::Waits("being started".to_owned()) };
    if !state.is_active() {
        return Stand::Ended;
    }
    match &state.status {
        Status::Ready => Stand::Ready,
        Status::NeedsUser { cause } => Stand::NeedsUser(cause.clone()),
        Status::Stopped | Status::Stopping => Stand::Waits("stopping".to_owned()),
        Status::Binding => Stand::Waits("opening the local port".to_owned()),
        Status::Resolving { waiting_for: None } => {
            Stand::Waits("looking for a ready pod and connecting".to_owned())
        }
        Status::Resolving { waiting_for: Some(problem) } => Stand::Waits(problem.message.clone()),
        Status::Recovering { cause, .. } => Stand::Waits(cause.message.clone()),
    }
}

/// Waits until each of the forwards is ready, needs a person or has ended; at most `limit`, for ever without. With
/// `patient` a forward that needs a person is waited for as well: somebody may be at it.
///
/// # Errors
/// The host went away for good.
pub(crate) async fn settle(
    client: &Client,
    wanted: &BTreeMap<ForwardId, String>,
    limit: Option<Duration>,
    patient: bool,
) -> Result<Settled> {
    let mut follow = client.follow();
    let mut progress = Progress::on_terminal();
    let is_settled = |snapshot: &Snapshot, id: ForwardId| match stand(snapshot.forward(id).map(AsRef::as_ref))
    {
        Stand::Ready | Stand::Ended => true,
        Stand::NeedsUser(_) => !patient,
        Stand::Waits(_) => false,
    };
    let deadline = limit.map(|limit| Instant::now() + limit);
    let mut away: Option<(Instant, Error)> = None;
    let mut state = follow.state();
    loop {
        match &state.link {
            Link::Connected => {
                away = None;
                let mut open = wanted.iter().filter(|(id, _)| !is_settled(&state.snapshot, **id)).peekable();
                let Some((id, name)) = open.peek() else { break };
                let what = match stand(state.snapshot.forward(**id).map(AsRef::as_ref)) {
                    Stand::Waits(what) => what,
                    Stand::NeedsUser(problem) => problem.message,
                    Stand::Ready | Stand::Ended => String::new(),
                };
                let name = (*name).clone();
                let ready = wanted.len() - open.count();
                let count = if wanted.len() > 1 {
                    format!("{ready} of {} ready; ", wanted.len())
                } else {
                    String::new()
                };
                progress.set(Some(format!("{count}{name}: {what}")));
            }
            Link::Connecting => {}
            Link::Disconnected { problem } => {
                away.get_or_insert_with(|| (Instant::now() + AWAY, problem.clone()));
            }
        }
        let until = [deadline, away.as_ref().map(|(until, _)| *until)].into_iter().flatten().min();
        let over = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            next = follow.changed() => state = next,
            () = over => match away {
                Some((until, problem)) if Instant::now() >= until => return Err(problem.into()),
                Some(_) | None => break,
            },
        }
    }
    progress.set(None);
    let snapshot = Snapshot::clone(&follow.state().snapshot);
    let mut settled = Settled::default();
    for (id, name) in wanted {
        match stand(snapshot.forward(*id).map(AsRef::as_ref)) {
            Stand::Ready => {}
            Stand::NeedsUser(problem) => settled.needs_user.push((name.clone(), problem)),
            Stand::Waits(what) => settled.late.push((name.clone(), what)),
            Stand::Ended => settled.late.push((name.clone(), "it was stopped meanwhile".to_owned())),
        }
    }
    settled.snapshot = snapshot;
    Ok(settled)
}

impl Settled {
    /// Tells what is not ready on standard error, and what the command ends with.
    pub(crate) fn tell(&self) -> Exit {
        for (name, problem) in &self.needs_user {
            shown::trouble(name, problem);
        }
        for (name, what) in &self.late {
            shown::aside(&format!("{name}: not ready in time: {what}"));
        }
        match (self.needs_user.is_empty(), self.late.is_empty()) {
            (true, true) => Exit::Clean,
            (false, _) => Exit::NeedsUser,
            (true, false) => Exit::NotReady,
        }
    }
}
