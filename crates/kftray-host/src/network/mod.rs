//! Word of changes of the network and of wake-ups, as events: nothing here looks at anything unless the system says that
//! something happened.
//!
//! The system says much that means nothing (a container starts, a lease is renewed). What counts is compared: addresses
//! and routes of this machine's real interfaces. Then everything settles for a moment before it is redialled: a network that
//! comes up says so in several steps.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
mod other;
#[cfg(not(target_os = "linux"))]
use other as system;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::core::Core;

/// How long it must be quiet before it is redialled.
const SETTLE: Duration = Duration::from_secs(1);

/// The longest that a network which never rests is waited for.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// What the system says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    /// Something about interfaces, addresses or routes.
    Network,
    /// The machine has slept.
    Woke,
}

/// Watches until the end. Without a way to watch it says so once and waits.
pub(crate) async fn watch(core: Arc<Core>) {
    let mut hints = match system::Hints::open() {
        Ok(hints) => hints,
        Err(error) => {
            tracing::warn!(%error, "changes of the network will only be noticed by lost connections");
            return std::future::pending().await;
        }
    };
    let mut known = system::fingerprint();
    loop {
        let first = hints.next().await;
        let woke = settle(first, Instant::now(), &mut hints).await;
        let now = system::fingerprint();
        let changed = std::mem::replace(&mut known, now) != known;
        if !(woke || changed) || !core.board().settings().network_monitor {
            continue;
        }
        tracing::info!(woke, changed, "the network has changed");
        core.fleet().engine().network_changed();
    }
}

/// Waits until nothing more is said; whether the machine has slept.
async fn settle(first: Hint, since: Instant, hints: &mut system::Hints) -> bool {
    let mut woke = first == Hint::Woke;
    let latest = since + SETTLE_MAX;
    loop {
        let quiet = (Instant::now() + SETTLE).min(latest);
        match timeout_at(quiet, hints.next()).await {
            Ok(hint) => woke |= hint == Hint::Woke,
            Err(_) => return woke,
        }
        if Instant::now() >= latest {
            sleep_until(latest).await;
            return woke;
        }
    }
}
