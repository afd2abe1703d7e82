//! The relay that an administrator has installed: found by its labels in one namespace, and followed.

use std::sync::Arc;
use std::time::Duration;

use kftray_commons::{Code, Problem};
use kftray_relay_proto::token::Token;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::api::SECRETS;
use super::life::{Followed, Life, publish};
use super::manifest::{PROGRAM, annotation, label, short_hash};
use super::seen::Pod;
use super::settings::RelaySpec;
use super::{RelayPod, RelayState};
use crate::resolve::feed::{PODS, Phase, Scope};

/// A Deployment that has no pod that runs gets this long to have one: a rollout or a lost node, not an outage.
const PATIENCE: Duration = Duration::from_secs(20);
/// Key of the token in its Secret.
pub(super) const SECRET_TOKEN: &str = "token";
/// Key of the token's hash in its Secret.
pub(super) const SECRET_HASH: &str = "sha256";

/// Selects the pods of an installed relay.
pub(super) fn selector() -> String {
    format!("{}={PROGRAM},{}=true", label::NAME, label::INSTALLED)
}

/// Publishes the installed relay as long as there is one that can be used; returns when there is none.
pub(super) async fn keep(life: &Life, spec: &RelaySpec, out: &watch::Sender<RelayState>) {
    let namespace = spec.settings().system_namespace();
    let mut pods: Followed<Pod> = life.watch(PODS, namespace, Scope::Labels(selector().into()));
    let mut doubts = life.shared.doubts.clone();
    let mut deadline: Option<Instant> = None;
    let mut known: Option<(Arc<str>, Token)> = None;
    loop {
        let view = pods.view();
        match &view.phase {
            Phase::Denied(problem) | Phase::Broken(problem) => {
                tracing::debug!(%problem, namespace, "whether a relay is installed cannot be seen");
                return;
            }
            Phase::Live | Phase::Static(_) if view.objects.is_empty() => return,
            Phase::Live | Phase::Static(_) => {
                let usable = usable(life, &view.objects, &doubts.borrow_and_update());
                pods.set_unsettled(usable.is_empty());
                if let Some(first) = usable.first() {
                    deadline = None;
                    let token = match token(life, namespace, first, &mut known).await {
                        Ok(token) => token,
                        Err(problem) => {
                            tracing::info!(%problem, "an installed relay is there, but not for this user");
                            return;
                        }
                    };
                    let place: Arc<str> = namespace.into();
                    let up: Vec<RelayPod> =
                        usable.iter().map(|pod| life.pod(pod, &place, token.clone(), true)).collect();
                    publish(out, RelayState::Up(up.into()));
                } else {
                    deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
                    publish(
                        out,
                        RelayState::Starting(Problem::new(
                            Code::RelayStarting,
                            format!(
                                "waiting for the relay: none of the pods of deployment {namespace}/{PROGRAM} runs"
                            ),
                        )),
                    );
                }
            }
            Phase::Loading => {}
        }
        let late = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pods.changed() => {}
            () = late => return,
            Ok(()) = doubts.changed() => {}
        }
    }
}

/// In an order that differs between installations, so that replicas share them.
fn usable<'a>(
    life: &Life,
    pods: &'a [Arc<Pod>],
    doubts: &std::collections::HashSet<Arc<str>>,
) -> Vec<&'a Arc<Pod>> {
    let id = life.shared.identity.key.id();
    let mut usable: Vec<&Arc<Pod>> =
        pods.iter().filter(|pod| pod.is_up() && !doubts.contains(&pod.metadata.meta.uid)).collect();
    usable.sort_by_cached_key(|pod| short_hash(&format!("{id} {}", pod.metadata.meta.uid)));
    usable
}

/// From the Secret that the pod names; where it names none the relay lets in whoever reaches its tunnel port, and the
/// token only says who is who. Read anew with each new pod: that is how a token changes.
async fn token(
    life: &Life,
    namespace: &str,
    pod: &Pod,
    known: &mut Option<(Arc<str>, Token)>,
) -> Result<Token, Problem> {
    let Some(secret) = pod.metadata.annotations.get(annotation::TOKEN_SECRET) else {
        return Ok(life.shared.identity.key.token(&life.cluster.server(), namespace, "installed"));
    };
    let uid = &pod.metadata.meta.uid;
    if let Some((of, token)) = known
        && of == uid
    {
        return Ok(token.clone());
    }
    let unusable = || {
        Problem::new(
            Code::RelayAdmission,
            format!("secret {namespace}/{secret} has no usable `{SECRET_TOKEN}` for the installed relay"),
        )
    };
    let object = life.api(namespace).get(SECRETS, secret).await?.ok_or_else(unusable)?;
    let token = object["data"][SECRET_TOKEN].as_str().and_then(decode).ok_or_else(unusable)?;
    *known = Some((Arc::clone(uid), token.clone()));
    Ok(token)
}

/// The API wraps a Secret's values in base64.
fn decode(value: &str) -> Option<Token> {
    use base64::Engine as _;

    let text = base64::engine::general_purpose::STANDARD.decode(value).ok()?;
    String::from_utf8(text).ok()?.trim().parse().ok()
}
