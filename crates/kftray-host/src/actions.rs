//! Start, stop, restart: what a selection means now, done for all of it at once, told one by one.

use std::sync::Arc;

use futures::future::join_all;
use kftray_commons::api::{
    Action, ActionOutcome, ActionReport, ActionRequest, ActionResult, Config, EndedBy, Error, LeaseId, Origin,
};
use kftray_commons::store::Draft;
use kftray_commons::{Code, ForwardId, ForwardSpec, Problem};
use serde_json::{Map, Value};

use crate::configs::{invalid, no_config};
use crate::core::Core;
use crate::forwards::Wanted;
use crate::select::{Chosen, select};
use crate::{leases, settings};

/// Forwards without a config that one request may start.
const AD_HOC_MAX: usize = 1_000;

/// Does an action.
///
/// # Errors
/// `request_invalid`, `not_found` for a lease that has ended, `spec_invalid` for an entry that cannot be read. What goes
/// wrong with one forward is in its result.
pub(crate) async fn act(
    core: &Arc<Core>,
    action: Action,
    request: ActionRequest,
) -> Result<ActionReport, Error> {
    let ActionRequest { selection, ad_hoc, lease } = request;
    if action != Action::Start && (!ad_hoc.is_empty() || lease.is_some()) {
        let message = "`ad_hoc` and `lease` belong to a start";
        return Err(Error::new(Code::RequestInvalid, message));
    }
    if selection.is_empty() && ad_hoc.is_empty() {
        let message = "nothing is selected: name ids, labels, groups, tags, or `\"all\": true`";
        return Err(Error::new(Code::RequestInvalid, message));
    }
    if let Some(lease) = lease.filter(|lease| !core.leases().is_held(*lease)) {
        return Err(leases::unknown(lease).into());
    }
    let fresh = ad_hoc_forwards(core, &ad_hoc, lease)?;
    let forwards = core.board().forwards();
    let configs = core.board().configs();
    let (configs, forwards) = match action {
        Action::Start => (configs, forwards),
        // What does not run cannot be stopped by "all", unless it shall run; by name it is told that it does not run.
        Action::Stop | Action::Restart if selection.all => {
            let desired = |config: &Arc<Config>| action == Action::Stop && config.desired;
            let active = forwards.into_iter().filter(|forward| forward.is_active());
            (configs.into_iter().filter(desired).collect(), active.collect())
        }
        Action::Stop | Action::Restart => (configs, forwards),
    };
    let Chosen { ids, unmatched } = select(&configs, &forwards, &selection);
    let mut results = match action {
        Action::Start => start(core, &ids, lease).await,
        Action::Stop => stop(core, &ids, EndedBy::Request).await,
        Action::Restart => restart(core, &ids).await,
    };
    let started = join_all(fresh.into_iter().map(|wanted| launch(core, wanted))).await;
    results.extend(started);
    core.recheck(lease).await;
    Ok(ActionReport { results, unmatched })
}

/// Starts configs; those that are not leased shall run from now on, whatever happens to the host.
pub(crate) async fn start(core: &Arc<Core>, ids: &[ForwardId], lease: Option<LeaseId>) -> Vec<ActionResult> {
    let specs = match core.specs(ids).await {
        Ok(specs) => specs,
        Err(problem) => return ids.iter().map(|id| failed(core, *id, problem.clone())).collect(),
    };
    let written = match lease {
        Some(_) => Ok(()),
        None => core.set_desired(ids.to_vec(), true).await,
    };
    let settings = core.board().settings();
    let one = |(id, spec): (ForwardId, Result<ForwardSpec, Problem>)| {
        let config = core.board().config(id);
        let (idle, ttl) = config.map_or((None, None), |c| (c.summary.idle_minutes, c.summary.ttl_minutes));
        let lifetime = settings::lifetime(idle, ttl, &settings);
        async move {
            match spec {
                Ok(spec) => {
                    let origin = Origin::Config { lease };
                    launch(core, Wanted { id, spec, origin, lifetime, listeners: Vec::new() }).await
                }
                Err(problem) => failed(core, id, problem),
            }
        }
    };
    let mut results = join_all(specs.into_iter().map(one)).await;
    note_unwritten(&mut results, written);
    results
}

/// Ends forwards; configs among them shall not run any more.
pub(crate) async fn stop(core: &Arc<Core>, ids: &[ForwardId], by: EndedBy) -> Vec<ActionResult> {
    let one = |id: &ForwardId| {
        let id = *id;
        async move {
            let label = core.label(id);
            let outcome = core.fleet().stop(id, by).await;
            if !core.is_config(id) {
                core.fleet().forget(id);
            }
            ActionResult { id, label, outcome, problem: None }
        }
    };
    // First the stop, which needs nothing; then the bookkeeping, which needs a disk.
    let mut results = join_all(ids.iter().map(one)).await;
    let configs = ids.iter().copied().filter(|id| core.is_config(*id)).collect();
    note_unwritten(&mut results, core.set_desired(configs, false).await);
    results
}

async fn restart(core: &Arc<Core>, ids: &[ForwardId]) -> Vec<ActionResult> {
    let one = |id: &ForwardId| {
        let id = *id;
        async move {
            let label = core.label(id);
            let Some((spec, origin)) = core.fleet().running_spec(id) else {
                return start(core, &[id], None)
                    .await
                    .pop()
                    .unwrap_or_else(|| failed(core, id, no_config(id)));
            };
            let spec = match core.specs(&[id]).await.map(|mut specs| specs.pop()) {
                Ok(Some((_, Ok(fresh)))) => fresh,
                Ok(_) | Err(_) => spec,
            };
            let lifetime = core.lifetime(id);
            let wanted = Wanted { id, spec, origin, lifetime, listeners: Vec::new() };
            let restarted = core.fleet().restart(wanted).await;
            core.recheck(origin.lease()).await;
            match restarted {
                Ok(outcome) => ActionResult { id, label, outcome, problem: None },
                Err(problem) => failed(core, id, problem),
            }
        }
    };
    join_all(ids.iter().map(one)).await
}

async fn launch(core: &Arc<Core>, wanted: Wanted) -> ActionResult {
    let (id, label) = (wanted.id, wanted.spec.label());
    match core.fleet().start(wanted).await {
        Ok(outcome) => ActionResult { id, label, outcome, problem: None },
        Err(problem) => ActionResult { id, label, outcome: ActionOutcome::Failed, problem: Some(problem) },
    }
}

fn failed(core: &Core, id: ForwardId, problem: Problem) -> ActionResult {
    ActionResult { id, label: core.label(id), outcome: ActionOutcome::Failed, problem: Some(problem) }
}

/// It was done, but the next host will not know.
fn note_unwritten(results: &mut [ActionResult], written: Result<(), Problem>) {
    let Err(problem) = written else { return };
    for result in results.iter_mut().filter(|result| result.problem.is_none()) {
        let message = format!("done, but not written down: {}", problem.message);
        result.problem = Some(Problem { message, ..problem.clone() });
    }
}

fn ad_hoc_forwards(
    core: &Core,
    entries: &[Map<String, Value>],
    lease: Option<LeaseId>,
) -> Result<Vec<Wanted>, Error> {
    if entries.len() > AD_HOC_MAX {
        let message = format!("{} forwards at once are too many, {AD_HOC_MAX} are the limit", entries.len());
        return Err(Error::new(Code::RequestTooLarge, message));
    }
    // All are read before the first number is given away.
    let drafts = entries.iter().map(|entry| Draft::read(entry).map_err(|fault| invalid(&fault)));
    let drafts = drafts.collect::<Result<Vec<_>, Error>>()?;
    let settings = core.board().settings();
    let wanted = drafts.into_iter().map(|(Draft { mut spec, extra }, _)| {
        let id = core.fleet().ad_hoc_id();
        spec.id = id;
        let (idle, ttl) = crate::configs::limits(&extra);
        let lifetime = settings::lifetime(idle, ttl, &settings);
        Wanted { id, spec, origin: Origin::AdHoc { lease }, lifetime, listeners: Vec::new() }
    });
    Ok(wanted.collect())
}
