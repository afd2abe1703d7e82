//! Browsing a cluster: context, namespace, Service or workload, port. Typing filters at every step.

use std::collections::BTreeSet;

use kftray_commons::Problem;
use kftray_commons::api::{
    ConfigPut, ContextList, Error, NamespaceList, PortInfo, ServiceList, WorkloadList,
};
use serde_json::{Map, Value, json};

use super::data::Data;
use super::editor::Editor;
use super::message::{Effect, Where};

/// Namespaces of the cluster itself come last: few people look for them.
const OF_THE_CLUSTER: &str = "kube-";

/// Ports below this need privileges on most systems.
const FIRST_FREE_TO_ALL: u16 = 1024;

/// What is added to a privileged port to get one that is not: 80 becomes 8080, 443 becomes 8443.
const ABOVE_PRIVILEGES: u16 = 8000;

/// Something that the host was asked for.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) enum Load<T> {
    #[default]
    Unasked,
    /// For the answer to the question of that number.
    Waiting(u64),
    There(T),
    Failed(Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Step {
    #[default]
    Context,
    Namespace,
    Object,
    Port,
}

impl<T> Load<T> {
    /// Whether this is the question that was asked last.
    pub(super) fn awaits(&self, number: u64) -> bool {
        matches!(self, Self::Waiting(asked) if *asked == number)
    }
}

/// What is listed of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Objects {
    #[default]
    Services,
    Workloads,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Picker {
    pub(super) step: Step,
    pub(super) place: Where,
    pub(super) objects: Objects,
    pub(super) object: Option<Object>,
    pub(super) filter: Editor,
    pub(super) cursor: usize,
    pub(super) ticks: BTreeSet<String>,
    /// Local ports that configs have.
    taken: BTreeSet<u16>,
    /// Number of the last question.
    pub(super) asked: u64,
    pub(super) contexts: Load<ContextList>,
    pub(super) namespaces: Load<NamespaceList>,
    pub(super) services: Load<ServiceList>,
    pub(super) workloads: Load<WorkloadList>,
    /// The forwards are being written down.
    pub(super) busy: bool,
}

/// What is forwarded to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    /// As in a file.
    kind: String,
    name: String,
    ports: Vec<PortInfo>,
}

/// A line of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    /// What tells it from the others of its step.
    pub(super) key: String,
    pub(super) text: String,
    /// Of second rank, beside it.
    pub(super) aside: String,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Context,
    Namespace,
    Object(Object),
    Port(PortInfo),
}

/// What going on at an item leads to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Going {
    /// Nothing to go to.
    Nowhere,
    /// This has no ports.
    NoPorts(String),
    /// Another step, and what to ask for it.
    On(Option<Effect>),
    /// These are to be added.
    Add(Vec<ConfigPut>),
}

impl Picker {
    /// At its beginning, with the question it begins with.
    pub(super) fn open(asked: u64) -> (Self, Effect) {
        let picker = Self { asked, contexts: Load::Waiting(asked), ..Self::default() };
        (picker, Effect::Contexts(asked))
    }

    /// Everything of the step, filtered.
    pub(super) fn items(&self) -> Vec<Item> {
        let all = match self.step {
            Step::Context => self.context_items(),
            Step::Namespace => self.namespace_items(),
            Step::Object => self.object_items(),
            Step::Port => self.port_items(),
        };
        let words: Vec<String> =
            self.filter.text().to_lowercase().split_whitespace().map(str::to_owned).collect();
        let found = |item: &Item| {
            let hay = format!("{} {}", item.text, item.aside).to_lowercase();
            words.iter().all(|word| hay.contains(word))
        };
        let mut items: Vec<Item> = all.into_iter().filter(found).collect();
        // Who may not list namespaces still may use one.
        let typed = self.filter.text().trim();
        let known = items.iter().any(|item| item.key == typed);
        if self.step == Step::Namespace && !known && kftray_commons::names::label(typed).is_ok() {
            let text = format!("use namespace {typed}");
            items.push(Item { key: typed.to_owned(), text, aside: String::new(), what: What::Namespace });
        }
        items
    }

    fn context_items(&self) -> Vec<Item> {
        let Load::There(list) = &self.contexts else { return Vec::new() };
        let item = |context: &kftray_commons::api::ContextInfo| Item {
            key: context.name.clone(),
            text: context.name.clone(),
            aside: match (context.current, context.cluster == context.name) {
                (true, _) => "current".to_owned(),
                (false, true) => String::new(),
                (false, false) => context.cluster.clone(),
            },
            what: What::Context,
        };
        list.contexts.iter().map(item).collect()
    }

    fn namespace_items(&self) -> Vec<Item> {
        let Load::There(list) = &self.namespaces else { return Vec::new() };
        let usual = self.usual_namespace();
        let mut names: Vec<&String> = list.namespaces.iter().collect();
        names.sort_by_key(|name| {
            (Some(name.as_str()) != usual, name.starts_with(OF_THE_CLUSTER), name.as_str())
        });
        let item = |name: &String| Item {
            key: name.clone(),
            text: name.clone(),
            aside: if Some(name.as_str()) == usual { "of the context".to_owned() } else { String::new() },
            what: What::Namespace,
        };
        names.into_iter().map(item).collect()
    }

    /// The namespace that the context names.
    fn usual_namespace(&self) -> Option<&str> {
        let Load::There(list) = &self.contexts else { return None };
        let context = list.contexts.iter().find(|context| context.name == self.place.context)?;
        context.namespace.as_deref()
    }

    fn object_items(&self) -> Vec<Item> {
        match self.objects {
            Objects::Services => {
                let Load::There(list) = &self.services else { return Vec::new() };
                let item = |service: &kftray_commons::api::ServiceInfo| {
                    let object = Object {
                        kind: "service".to_owned(),
                        name: service.name.clone(),
                        ports: service.ports.clone(),
                    };
                    let aside = match service.kind.as_str() {
                        "ClusterIP" | "" => ports_text(&service.ports),
                        kind => format!("{}  {kind}", ports_text(&service.ports)),
                    };
                    Item {
                        key: service.name.clone(),
                        text: service.name.clone(),
                        aside,
                        what: What::Object(object),
                    }
                };
                list.services.iter().map(item).collect()
            }
            Objects::Workloads => {
                let Load::There(list) = &self.workloads else { return Vec::new() };
                let item = |workload: &kftray_commons::api::WorkloadInfo| {
                    let object = Object {
                        kind: workload.kind.clone(),
                        name: workload.name.clone(),
                        ports: workload.ports.clone(),
                    };
                    let ready = format!("{} of {} ready", workload.ready, workload.wanted);
                    Item {
                        key: format!("{}/{}", workload.kind, workload.name),
                        text: format!("{}/{}", workload.kind, workload.name),
                        aside: format!("{ready}  {}", ports_text(&workload.ports)),
                        what: What::Object(object),
                    }
                };
                list.workloads.iter().map(item).collect()
            }
        }
    }

    fn port_items(&self) -> Vec<Item> {
        let Some(object) = &self.object else { return Vec::new() };
        let item = |port: &PortInfo| Item {
            key: format!("{}/{}", port.port, port.protocol),
            text: port.port.to_string(),
            aside: {
                let told = [port.name.as_deref(), Some(port.protocol.as_str()), port.app_protocol.as_deref()];
                let told: Vec<&str> = told.into_iter().flatten().filter(|part| !part.is_empty()).collect();
                format!("{}  → localhost:{}", told.join("  "), local_port(port.port, &self.taken))
            },
            what: What::Port(port.clone()),
        };
        object.ports.iter().map(item).collect()
    }

    /// Why there is nothing, or not everything.
    pub(super) fn problem(&self) -> Option<(String, String)> {
        let error = |error: &Error| (error.message.clone(), error.remedy.clone());
        let partial = |problem: &Problem| (problem.message.clone(), problem.remedy.clone());
        match (self.step, self.objects) {
            (Step::Context, _) => match &self.contexts {
                Load::Failed(failed) => Some(error(failed)),
                Load::Unasked | Load::Waiting(_) | Load::There(_) => None,
            },
            (Step::Namespace, _) => match &self.namespaces {
                Load::Failed(failed) => Some(error(failed)),
                Load::There(list) => list.problem.as_ref().map(partial),
                Load::Unasked | Load::Waiting(_) => None,
            },
            (Step::Object, Objects::Services) => match &self.services {
                Load::Failed(failed) => Some(error(failed)),
                Load::There(list) => list.problem.as_ref().map(partial),
                Load::Unasked | Load::Waiting(_) => None,
            },
            (Step::Object, Objects::Workloads) => match &self.workloads {
                Load::Failed(failed) => Some(error(failed)),
                Load::There(list) => list.problems.first().map(partial),
                Load::Unasked | Load::Waiting(_) => None,
            },
            (Step::Port, _) => None,
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        match (self.step, self.objects) {
            (Step::Context, _) => matches!(self.contexts, Load::Waiting(_)),
            (Step::Namespace, _) => matches!(self.namespaces, Load::Waiting(_)),
            (Step::Object, Objects::Services) => matches!(self.services, Load::Waiting(_)),
            (Step::Object, Objects::Workloads) => matches!(self.workloads, Load::Waiting(_)),
            (Step::Port, _) => false,
        }
    }

    /// Puts the cursor where most people want it: on the current context, on the first of everything else.
    pub(super) fn settle(&mut self) {
        let items = self.items();
        self.cursor = match self.step {
            Step::Context if self.filter.is_empty() => {
                items.iter().position(|item| item.aside == "current").unwrap_or(0)
            }
            Step::Context | Step::Namespace | Step::Object | Step::Port => 0,
        };
    }

    /// Where there is no choice, on to the next step: with one context, into it.
    pub(super) fn skip(&mut self) -> Option<Effect> {
        let only = matches!(&self.contexts, Load::There(list) if list.contexts.len() == 1);
        if self.step != Step::Context || !only || self.namespaces != Load::Unasked {
            return None;
        }
        match self.go_on(&Data::default()) {
            Going::On(effect) => effect,
            Going::Nowhere | Going::NoPorts(_) | Going::Add(_) => None,
        }
    }

    /// What the filter lets through has changed.
    pub(super) fn refilter(&mut self) {
        self.cursor = 0;
    }

    /// Into the item under the cursor. `data` says which local ports are taken.
    pub(super) fn go_on(&mut self, data: &Data) -> Going {
        let items = self.items();
        if self.can_tick() && !self.ticks.is_empty() {
            return Going::Add(self.ticked(data));
        }
        let Some(item) = items.into_iter().nth(self.cursor) else { return Going::Nowhere };
        match item.what {
            What::Context => {
                let known = self.place.context == item.key && matches!(self.namespaces, Load::There(_));
                self.place.context = item.key;
                self.enter(Step::Namespace);
                if known {
                    return Going::On(None);
                }
                self.asked += 1;
                self.namespaces = Load::Waiting(self.asked);
                Going::On(Some(Effect::Namespaces(self.asked, self.place.clone())))
            }
            What::Namespace => {
                self.place.namespace = item.key;
                self.services = Load::Unasked;
                self.workloads = Load::Unasked;
                self.enter(Step::Object);
                Going::On(self.ask_objects())
            }
            What::Object(object) if object.ports.is_empty() => Going::NoPorts(item.text),
            What::Object(object) => {
                self.object = Some(object);
                self.taken = taken(data);
                self.enter(Step::Port);
                Going::On(None)
            }
            What::Port(port) => match &self.object {
                Some(object) => Going::Add(puts(&self.place, &[(object, &port)], data)),
                None => Going::Nowhere,
            },
        }
    }

    /// The entry of the item under the cursor, for the form.
    pub(super) fn for_form(&self, data: &Data) -> Option<Map<String, Value>> {
        let item = self.items().into_iter().nth(self.cursor)?;
        let put = match (&item.what, &self.object) {
            (What::Object(object), _) => {
                let none = PortInfo::default();
                puts(&self.place, &[(object, object.ports.first().unwrap_or(&none))], data).pop()
            }
            (What::Port(port), Some(object)) => puts(&self.place, &[(object, port)], data).pop(),
            (What::Port(_), None) | (What::Context | What::Namespace, _) => None,
        };
        put.map(|put| put.spec)
    }

    fn ticked(&self, data: &Data) -> Vec<ConfigPut> {
        // Those that the filter hides are ticked all the same.
        let unfiltered = Self { filter: Editor::default(), ..self.clone() };
        let items = unfiltered.items();
        let ticked = items.iter().filter(|item| self.ticks.contains(&item.key));
        let mut wanted = Vec::new();
        for item in ticked {
            match (&item.what, &self.object) {
                (What::Object(object), _) => wanted.extend(object.ports.iter().map(|port| (object, port))),
                (What::Port(port), Some(object)) => wanted.push((object, port)),
                (What::Port(_), None) | (What::Context | What::Namespace, _) => {}
            }
        }
        puts(&self.place, &wanted, data)
    }

    fn enter(&mut self, step: Step) {
        self.step = step;
        self.filter = Editor::default();
        self.ticks.clear();
        self.settle();
    }

    /// What has to be asked for the objects in view, if it is not known.
    fn ask_objects(&mut self) -> Option<Effect> {
        match self.objects {
            Objects::Services if self.services == Load::Unasked => {
                self.asked += 1;
                self.services = Load::Waiting(self.asked);
                Some(Effect::Services(self.asked, self.place.clone()))
            }
            Objects::Workloads if self.workloads == Load::Unasked => {
                self.asked += 1;
                self.workloads = Load::Waiting(self.asked);
                Some(Effect::Workloads(self.asked, self.place.clone()))
            }
            Objects::Services | Objects::Workloads => None,
        }
    }

    /// Services or workloads.
    pub(super) fn switch(&mut self) -> Option<Effect> {
        if self.step != Step::Object {
            return None;
        }
        self.objects = match self.objects {
            Objects::Services => Objects::Workloads,
            Objects::Workloads => Objects::Services,
        };
        self.enter(Step::Object);
        self.ask_objects()
    }

    /// A step back; false if this was the first.
    pub(super) fn back(&mut self) -> bool {
        if !self.filter.is_empty() {
            self.filter = Editor::default();
            self.refilter();
            return true;
        }
        let (step, on) = match self.step {
            Step::Context => return false,
            Step::Namespace => (Step::Context, self.place.context.clone()),
            Step::Object => (Step::Namespace, self.place.namespace.clone()),
            Step::Port => {
                let object = self.object.take();
                let key = object.map(|object| match self.objects {
                    Objects::Services => object.name,
                    Objects::Workloads => format!("{}/{}", object.kind, object.name),
                });
                (Step::Object, key.unwrap_or_default())
            }
        };
        self.enter(step);
        if let Some(place) = self.items().iter().position(|item| item.key == on) {
            self.cursor = place;
        }
        true
    }

    /// Whether several can be added at once here.
    pub(super) fn can_tick(&self) -> bool {
        matches!(self.step, Step::Object | Step::Port)
    }

    /// Ticks the item under the cursor, where several can be added.
    pub(super) fn tick(&mut self) {
        if !self.can_tick() {
            return;
        }
        if let Some(item) = self.items().into_iter().nth(self.cursor) {
            if !self.ticks.remove(&item.key) {
                self.ticks.insert(item.key);
            }
            self.step_cursor(1);
        }
    }

    pub(super) fn step_cursor(&mut self, by: isize) {
        let last = self.items().len().saturating_sub(1);
        self.cursor = self.cursor.saturating_add_signed(by).min(last);
    }

    /// Where one is, as words from left to right.
    pub(super) fn path(&self) -> Vec<&str> {
        let object = self.object.as_ref().map_or("", |object| object.name.as_str());
        let path = [self.place.context.as_str(), self.place.namespace.as_str(), object];
        let depth = match self.step {
            Step::Context => 0,
            Step::Namespace => 1,
            Step::Object => 2,
            Step::Port => 3,
        };
        path.into_iter().take(depth).collect()
    }
}

/// `80 http, 443`, or that there is none.
fn ports_text(ports: &[PortInfo]) -> String {
    if ports.is_empty() {
        return "no ports".to_owned();
    }
    let one = |port: &PortInfo| match &port.name {
        Some(name) => format!("{} {name}", port.port),
        None => port.port.to_string(),
    };
    ports.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Configs for ports of objects, each with a local port that no other config has.
fn puts(place: &Where, wanted: &[(&Object, &PortInfo)], data: &Data) -> Vec<ConfigPut> {
    let mut taken = taken(data);
    let mut puts = Vec::new();
    for (object, port) in wanted {
        let local = local_port(port.port, &taken);
        taken.insert(local);
        let alias = match &port.name {
            Some(name) if object.ports.len() > 1 => format!("{}-{name}", object.name),
            None if object.ports.len() > 1 => format!("{}-{}", object.name, port.port),
            Some(_) | None => object.name.clone(),
        };
        let field = if object.kind == "service" { "service" } else { "target" };
        let protocol = if port.protocol.eq_ignore_ascii_case("udp") { "udp" } else { "tcp" };
        let mut spec = Map::new();
        spec.insert("alias".to_owned(), alias.into());
        spec.insert("workload_type".to_owned(), object.kind.as_str().into());
        spec.insert(field.to_owned(), object.name.as_str().into());
        spec.insert("namespace".to_owned(), place.namespace.as_str().into());
        spec.insert("context".to_owned(), place.context.as_str().into());
        if port.port != 0 {
            spec.insert("remote_port".to_owned(), json!(port.port));
            spec.insert("local_port".to_owned(), json!(local));
        }
        spec.insert("protocol".to_owned(), protocol.into());
        if let Some(kubeconfig) = &place.kubeconfig {
            spec.insert("kubeconfig".to_owned(), kubeconfig.as_str().into());
        }
        puts.push(ConfigPut { spec, revision: None, group: None });
    }
    puts
}

/// Local ports that configs have.
fn taken(data: &Data) -> BTreeSet<u16> {
    data.iter().filter_map(|entry| entry.summary()).map(|summary| summary.local_port).collect()
}

/// The same number where that can be had by everybody, else one that reminds of it; the next where it is taken.
fn local_port(remote: u16, taken: &BTreeSet<u16>) -> u16 {
    let wish = if remote < FIRST_FREE_TO_ALL { remote + ABOVE_PRIVILEGES } else { remote };
    (wish..=u16::MAX).find(|port| !taken.contains(port)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_ports() {
        assert_eq!(local_port(80, &BTreeSet::new()), 8080);
        assert_eq!(local_port(443, &BTreeSet::from([8443, 8444])), 8445);
        assert_eq!(local_port(5432, &BTreeSet::new()), 5432);
        assert_eq!(local_port(65_535, &BTreeSet::from([65_535])), 0);
    }
}
