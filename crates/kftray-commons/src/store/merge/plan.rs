//! Who is meant: pure, without the file.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU16;

use super::super::configs::{Draft, StoredConfig};
use super::Incoming;
use crate::access::Access;
use crate::border::Defaults;
use crate::spec::{ForwardSpec, LocalPort, Pods, Protocol, Via, Workload};
use crate::target::ContextRef;

/// Pairs that are looked at for one core, after those that are equal. Five hundred forwards to the same thing that are all
/// changed at once are no list that a person keeps, and comparing ever more of them would only take memory.
const PAIRS_MAX: usize = 250_000;

/// What becomes of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// It means none of the stored ones.
    Add,
    /// It means this one, which shall be `draft` then.
    Match { stored: usize, draft: Box<Draft> },
    /// It could mean any of these, or others could mean the same one.
    Conflict { candidates: Vec<usize> },
    /// It would become the same as this other one.
    Double { stored: usize, of: usize },
    /// A later entry of the source says the same.
    Superseded { by: usize },
}

/// What becomes of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// One for each entry.
    pub(super) steps: Vec<Step>,
    /// The stored ones that no entry means or could mean, and that this version can read.
    pub(super) untouched: Vec<usize>,
}

/// What has to be equal in any case.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Core<'a> {
    kubeconfig: Option<&'a str>,
    context: &'a ContextRef,
    namespace: &'a str,
    protocol: Protocol,
    kind: &'static str,
    name: String,
}

/// Where a forward with a given core is: two with the same are the same.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Place<'a> {
    local: Option<NonZeroU16>,
    remote: String,
    hosts: &'a [String],
    /// Two that may choose any local port are two if a person gave them two names.
    alias: Option<&'a str>,
}

/// How well two specs with the same core fit; greater is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    fit: Fit,
    same_hosts: bool,
    same_alias: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// One of the two ports is another.
    OnePort,
    /// The same alias, given by a person.
    Alias,
    /// The same remote port, and one of them leaves the local one open.
    OpenLocalPort,
    /// The same ports.
    Ports,
}

/// Decides for all entries at once, so that none takes what fits another one better.
pub(super) fn plan(stored: &[StoredConfig], incoming: &[Incoming]) -> Plan {
    let mut groups: HashMap<Core<'_>, Group> = HashMap::new();
    for (at, config) in stored.iter().enumerate() {
        if let Ok(spec) = &config.spec {
            groups.entry(Core::of(spec)).or_default().stored.push(at);
        }
    }
    let steps = superseded(incoming);
    for (number, entry) in incoming.iter().enumerate().filter(|(number, _)| steps[*number].is_none()) {
        groups.entry(Core::of(&entry.draft.spec)).or_default().incoming.push(number);
    }
    let mut planner = Planner { stored, incoming, steps, taken: vec![false; stored.len()] };
    // In any order: no forward is in two of them.
    for group in groups.into_values() {
        planner.settle_equal(&group);
        planner.settle_by_rank(&group);
        planner.undo_doubles(&group);
    }
    let Planner { steps, taken, .. } = planner;
    let untouched = (0..stored.len()).filter(|at| !taken[*at] && stored[*at].spec.is_ok()).collect();
    Plan { steps: steps.into_iter().map(|step| step.unwrap_or(Step::Add)).collect(), untouched }
}

/// The forwards with the same core, in order.
#[derive(Default)]
struct Group {
    stored: Vec<usize>,
    incoming: Vec<usize>,
}

struct Planner<'a> {
    stored: &'a [StoredConfig],
    incoming: &'a [Incoming],
    /// What is decided, by entry.
    steps: Vec<Option<Step>>,
    /// The stored ones that an entry means or could mean.
    taken: Vec<bool>,
}

impl Planner<'_> {
    /// Those that agree in ports, addresses and given alias: nothing fits better.
    fn settle_equal(&mut self, group: &Group) {
        let key = |spec: &ForwardSpec| {
            let alias = given_alias(spec).map(str::to_owned);
            (local_port(spec), remote_port(spec), spec.listen.hosts.clone(), alias)
        };
        let mut known: HashMap<_, Vec<usize>> = HashMap::new();
        // From the end, so that the oldest is the first to be given away.
        for at in group.stored.iter().rev() {
            if let Ok(spec) = &self.stored[*at].spec {
                known.entry(key(spec)).or_default().push(*at);
            }
        }
        for number in &group.incoming {
            let equal = known.get_mut(&key(&self.incoming[*number].draft.spec)).and_then(Vec::pop);
            if let Some(at) = equal {
                self.give(at, *number);
            }
        }
    }

    /// The others, the best ranks first.
    fn settle_by_rank(&mut self, group: &Group) {
        let stored: Vec<usize> = group.stored.iter().copied().filter(|at| !self.taken[*at]).collect();
        let incoming: Vec<usize> =
            group.incoming.iter().copied().filter(|number| self.steps[*number].is_none()).collect();
        if stored.len().saturating_mul(incoming.len()) > PAIRS_MAX {
            for number in incoming {
                self.steps[number] = Some(Step::Conflict { candidates: Vec::new() });
            }
            for at in stored {
                self.taken[at] = true;
            }
            return;
        }
        let mut pairs: BTreeMap<Rank, Vec<(usize, usize)>> = BTreeMap::new();
        for at in &stored {
            let Ok(spec) = &self.stored[*at].spec else { continue };
            for number in &incoming {
                if let Some(rank) = rank(spec, &self.incoming[*number].draft.spec) {
                    pairs.entry(rank).or_default().push((*at, *number));
                }
            }
        }
        for (rank, mut pairs) in pairs.into_iter().rev() {
            pairs.retain(|(at, number)| !self.taken[*at] && self.steps[*number].is_none());
            self.settle(rank, &pairs);
        }
    }

    /// Settles the pairs of one rank.
    fn settle(&mut self, rank: Rank, pairs: &[(usize, usize)]) {
        let mut candidates: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut rivals: HashMap<usize, usize> = HashMap::new();
        for (at, number) in pairs {
            candidates.entry(*number).or_default().push(*at);
            *rivals.entry(*at).or_default() += 1;
        }
        // The same ports at the same place: whichever, the older one.
        let interchangeable = rank.fit == Fit::Ports && rank.same_hosts;
        let mut contested = Vec::new();
        for (number, all) in candidates {
            let choice = match all.as_slice() {
                [one] if rivals.get(one) == Some(&1) => Some(*one),
                several if interchangeable => several.iter().copied().find(|at| !self.taken[*at]),
                _ => None,
            };
            match choice {
                Some(at) => self.give(at, number),
                None if interchangeable => {}
                None => {
                    contested.extend(all.iter().copied());
                    self.steps[number] = Some(Step::Conflict { candidates: all });
                }
            }
        }
        // Given to nobody, and not free for a worse fit.
        for at in contested {
            self.taken[at] = true;
        }
    }

    /// Takes back what would make two forwards one: a poor fit may leave open just that in which the two differ.
    fn undo_doubles(&mut self, group: &Group) {
        // Each round takes one back, which may stand in another's way then.
        while let Some((number, at, of)) = self.double(group) {
            self.steps[number] = Some(Step::Double { stored: at, of });
        }
    }

    /// An entry that would change a stored forward so that it is the same as another one.
    fn double(&self, group: &Group) -> Option<(usize, usize, usize)> {
        let mut changed = Vec::new();
        let mut later: HashMap<usize, &ForwardSpec> = HashMap::new();
        for number in &group.incoming {
            let Some(Step::Match { stored: at, draft }) = &self.steps[*number] else { continue };
            later.insert(*at, &draft.spec);
            changed.push((*number, *at));
        }
        let now = |at: usize| self.stored[at].spec.as_ref().ok();
        let then = |at: usize| later.get(&at).copied().or(now(at));
        let mut known: HashMap<_, Vec<usize>> = HashMap::new();
        for at in &group.stored {
            if let Some(spec) = then(*at) {
                known.entry(Place::of(spec)).or_default().push(*at);
            }
        }
        changed.into_iter().find_map(|(number, at)| {
            let place = Place::of(then(at)?);
            if now(at).is_some_and(|spec| Place::of(spec) == place) {
                return None;
            }
            let of = known.get(&place)?.iter().copied().find(|other| *other != at)?;
            Some((number, at, of))
        })
    }

    fn give(&mut self, at: usize, number: usize) {
        if let Some(before) = self.stored[at].draft() {
            let draft = Box::new(combined(&before, &self.incoming[number].draft));
            self.steps[number] = Some(Step::Match { stored: at, draft });
            self.taken[at] = true;
        }
    }
}

/// Entries of one source that say the same thing: the last one counts, as in the reference.
fn superseded(incoming: &[Incoming]) -> Vec<Option<Step>> {
    let mut last = HashMap::new();
    let mut steps = vec![None; incoming.len()];
    for (number, entry) in incoming.iter().enumerate() {
        let spec = &entry.draft.spec;
        if let Some(earlier) = last.insert((Core::of(spec), Place::of(spec)), number) {
            steps[earlier] = Some(Step::Superseded { by: number });
        }
    }
    steps
}

fn rank(stored: &ForwardSpec, incoming: &ForwardSpec) -> Option<Rank> {
    let same_hosts = stored.listen.hosts == incoming.listen.hosts;
    let (one, other) = (given_alias(stored), given_alias(incoming));
    let same_alias = one.is_some() && one == other;
    let names_differ = one.is_some() && other.is_some() && !same_alias;
    let same_remote = remote_port(stored) == remote_port(incoming);
    let (here, there) = (local_port(stored), local_port(incoming));
    let fit = if same_remote && here == there && !(names_differ && (here.is_none() || !same_hosts)) {
        Fit::Ports
    } else if same_remote && here.is_some() != there.is_some() && !names_differ {
        Fit::OpenLocalPort
    } else if same_alias {
        Fit::Alias
    } else if !names_differ && (same_remote || (here.is_some() && here == there && same_hosts)) {
        Fit::OnePort
    } else {
        return None;
    };
    Some(Rank { fit, same_hosts, same_alias })
}

/// The entry, with what it leaves open as it was.
fn combined(before: &Draft, entry: &Draft) -> Draft {
    let mut draft = entry.clone();
    draft.spec.id = before.spec.id;
    // A made-up alias is no wish; a stale made-up one is no better.
    let made_up = |spec: &ForwardSpec| spec.alias.is_some() && given_alias(spec).is_none();
    if draft.spec.alias.is_none() || (made_up(&draft.spec) && !made_up(&before.spec)) {
        draft.spec.alias.clone_from(&before.spec.alias);
    }
    if draft.spec.listen.port == LocalPort::Random {
        draft.spec.listen.port = before.spec.listen.port;
    }
    // Where the context chooses, the word that a reader fills in for nothing is no other choice.
    if before.spec.namespace.is_none()
        && draft.spec.namespace.as_deref() == Some(&Defaults::default().namespace)
    {
        draft.spec.namespace = None;
    }
    // What other programs do not know they cannot say, and a door is not opened by silence.
    if draft.spec.via == Via::default() {
        draft.spec.via = before.spec.via;
    }
    if let (Workload::Expose(before), Workload::Expose(expose)) =
        (&before.spec.workload, &mut draft.spec.workload)
        && expose.access == Access::default()
    {
        expose.access.clone_from(&before.access);
    }
    for (name, value) in &before.extra {
        draft.extra.entry(name.clone()).or_insert_with(|| value.clone());
    }
    draft
}

impl<'a> Core<'a> {
    fn of(spec: &'a ForwardSpec) -> Self {
        let name = match &spec.workload {
            Workload::Service { name, .. } | Workload::Owner { name, .. } => name.clone(),
            Workload::Pod { pods: Pods::Name(name), .. } => format!("pod/{name}"),
            Workload::Pod { pods: Pods::Selector(selector), .. } => selector.clone(),
            Workload::Proxy { host, .. } => host.to_ascii_lowercase(),
            Workload::Expose(_) => spec.alias.clone().unwrap_or_default(),
        };
        Self {
            kubeconfig: spec.cluster.kubeconfig.as_deref(),
            context: &spec.cluster.context,
            // The reference has no forward without a namespace; what the context chooses is mostly this one.
            namespace: spec.namespace.as_deref().unwrap_or("default"),
            protocol: spec.protocol,
            kind: spec.workload.kind(),
            name,
        }
    }
}

impl<'a> Place<'a> {
    fn of(spec: &'a ForwardSpec) -> Self {
        let local = local_port(spec);
        Self {
            local,
            remote: remote_port(spec),
            hosts: &spec.listen.hosts,
            alias: if local.is_none() { given_alias(spec) } else { None },
        }
    }
}

fn local_port(spec: &ForwardSpec) -> Option<NonZeroU16> {
    match (&spec.workload, spec.listen.port) {
        (Workload::Expose(expose), _) => Some(expose.local_port),
        (_, LocalPort::Fixed(port)) => Some(port),
        (_, LocalPort::Random) => None,
    }
}

fn remote_port(spec: &ForwardSpec) -> String {
    match &spec.workload {
        Workload::Service { port, .. } | Workload::Pod { port, .. } | Workload::Owner { port, .. } => {
            port.to_string()
        }
        Workload::Proxy { port, .. } => port.to_string(),
        Workload::Expose(_) => String::new(),
    }
}

/// The alias, unless it is one that the reference makes up from kind, protocol and port (`service-tcp-8080`).
fn given_alias(spec: &ForwardSpec) -> Option<&str> {
    let alias = spec.alias.as_deref()?;
    let mut parts = alias.split('-');
    let kind = parts.next().is_some_and(|kind| ["service", "pod", "proxy", "expose"].contains(&kind));
    let protocol = parts.next().is_some_and(|protocol| ["tcp", "udp"].contains(&protocol));
    let port = parts.next().is_some_and(|port| port.parse::<u16>().is_ok());
    let made_up = kind && protocol && port && parts.next().is_none();
    (!made_up).then_some(alias)
}
