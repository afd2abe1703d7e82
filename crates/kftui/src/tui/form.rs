//! The form in which a forward is made or changed.
//!
//! It edits the entry as a file has it, so that what this version does not know survives; and it asks the same border
//! what is wrong that reads files, so that a fault is told in the same words at the field it belongs to.

use kftray_commons::ForwardId;
use kftray_commons::api::{Config, ConfigPut};
use kftray_commons::border::{self, Defaults};
use kftray_commons::tags::Tags;
use serde_json::{Map, Value};

use super::data::tags_text;
use super::editor::Editor;

/// Kinds of forwards, as in a file, most usual first.
pub(super) const KINDS: &[&str] =
    &["service", "pod", "deployment", "statefulset", "daemonset", "replicaset", "job", "proxy", "expose"];

/// Longest time that ends a forward, in minutes: a year.
const MINUTES_MAX: u32 = 525_600;

/// A form for one forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form {
    /// The config that is changed, with its revision; `None` for a new one.
    pub(super) of: Option<(ForwardId, u64)>,
    /// The entry as it was.
    base: Map<String, Value>,
    fields: Vec<Field>,
    /// Number of the field with the cursor among the visible ones.
    pub(super) focus: usize,
    pub(super) faults: Vec<FieldFault>,
    /// Somebody tried to save: from now on every fault is shown, and not only those of fields that were filled in.
    pub(super) strict: bool,
    /// Waits for the host's answer.
    pub(super) busy: bool,
    /// What the host said against it.
    pub(super) refusal: Option<String>,
    dirty: bool,
}

/// One line of the form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    /// The name in a file.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) hint: &'static str,
    pub(super) input: Input,
    /// Kinds it is for; empty: all.
    kinds: &'static [&'static str],
    touched: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    Text(Editor),
    Choice { options: &'static [&'static str], chosen: usize },
    Flag(bool),
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FieldFault {
    pub(super) field: &'static str,
    pub(super) message: String,
    pub(super) remedy: String,
}

const OWNERS: &[&str] = &["deployment", "statefulset", "daemonset", "replicaset", "job"];
const OBJECTS: &[&str] = &["service", "pod", "deployment", "statefulset", "daemonset", "replicaset", "job"];
const FORWARDS: &[&str] =
    &["service", "pod", "deployment", "statefulset", "daemonset", "replicaset", "job", "proxy"];
const EXPOSE: &[&str] = &["expose"];

/// Name, title, hint, kinds of every text field, in the order of the form. Choices and flags are woven in below.
fn fields() -> Vec<Field> {
    let text = |name, title, hint, kinds| Field {
        name,
        title,
        hint,
        input: Input::Text(Editor::default()),
        kinds,
        touched: false,
    };
    let choice = |name, title, hint, kinds, options| Field {
        input: Input::Choice { options, chosen: 0 },
        ..text(name, title, hint, kinds)
    };
    let flag =
        |name, title, hint, kinds| Field { input: Input::Flag(false), ..text(name, title, hint, kinds) };
    vec![
        choice("workload_type", "Kind", "What is at the other end.", &[], KINDS),
        text("service", "Service", "Name of the Service, as kubectl prints it.", &["service"]),
        text("target", "Pod", "Name of a pod, or a label selector such as app=web.", &["pod"]),
        text("target", "Name", "Name of the object, as kubectl prints it.", OWNERS),
        text(
            "remote_address",
            "Host",
            "Host name or IP address that the cluster reaches, with or without a port.",
            &["proxy"],
        ),
        text("remote_port", "Remote port", "Number or name; of a Service the Service's own port.", OBJECTS),
        text("remote_port", "Remote port", "Number, unless the host has it.", &["proxy"]),
        text("local_port", "Local port", "Number; empty or 0 takes any free one.", FORWARDS),
        text("local_port", "Local port", "Port on which your program listens.", EXPOSE),
        text("namespace", "Namespace", "Empty: default.", &[]),
        text("context", "Context", "Empty follows the kubeconfig's current context; a name pins it.", &[]),
        text("alias", "Alias", "What you call it; empty: target and port.", FORWARDS),
        text("alias", "Alias", "Name in the cluster; for a public one the host name.", EXPOSE),
        choice("exposure_type", "Exposure", "Who may reach it.", EXPOSE, &["internal", "public"]),
        text("group", "Group", "Forwards of a group are started and stopped together.", &[]),
        text("tags", "Tags", "key=value, key2: to group, filter and start by.", &[]),
        choice(
            "protocol",
            "Protocol",
            "UDP goes by way of a relay in the cluster.",
            FORWARDS,
            &["tcp", "udp"],
        ),
        text(
            "local_address",
            "Local address",
            "Empty: localhost. Other addresses may open it to other machines.",
            FORWARDS,
        ),
        text("local_address", "Local host", "Host on which your program listens; empty: localhost.", EXPOSE),
        flag(
            "auto_loopback_address",
            "Own loopback",
            "An address of its own, so that ports need not differ.",
            FORWARDS,
        ),
        flag("domain_enabled", "Host name", "The alias becomes a host name on this machine.", FORWARDS),
        text(
            "idle_minutes",
            "Idle limit",
            "Ends after so many minutes without traffic; empty: the setting.",
            &[],
        ),
        text("ttl_minutes", "Time to live", "Ends so many minutes after its start; empty: the setting.", &[]),
        text("kubeconfig", "Kubeconfig", "Path; empty: $KUBECONFIG, else ~/.kube/config.", &[]),
        text("ingress_class", "Ingress class", "For a public one; empty: the cluster's default.", EXPOSE),
        flag("cert_manager_enabled", "Certificate", "TLS from cert-manager, for a public one.", EXPOSE),
        text("cert_issuer", "Issuer", "Name of the cert-manager issuer.", EXPOSE),
        choice(
            "cert_issuer_kind",
            "Issuer kind",
            "In the namespace, or for the whole cluster.",
            EXPOSE,
            &["ClusterIssuer", "Issuer"],
        ),
    ]
}

impl Form {
    /// For a new forward that begins with these fields of an entry.
    pub(super) fn new(base: Map<String, Value>, group: Option<&str>) -> Self {
        let mut form = Self {
            of: None,
            fields: fields(),
            focus: 0,
            faults: Vec::new(),
            strict: false,
            busy: false,
            refusal: None,
            dirty: false,
            base,
        };
        form.fill(group);
        form.check();
        // The kind is usually right: the first thing to type is the name.
        form.focus = 1;
        form
    }

    /// To change a config.
    pub(super) fn edit(config: &Config) -> Self {
        let mut form = Self::new(config.spec.clone(), config.summary.group.as_deref());
        form.of = Some((config.id, config.revision));
        for field in &mut form.fields {
            field.touched = true;
        }
        form
    }

    /// For a new one like this.
    pub(super) fn duplicate(config: &Config) -> Self {
        let mut base = config.spec.clone();
        base.remove("id");
        if let Some(alias) = base.get("alias").and_then(Value::as_str) {
            let copy = format!("{alias}-copy");
            base.insert("alias".to_owned(), copy.into());
        }
        // Two forwards on one port would get in each other's way.
        if base.get("workload_type").and_then(Value::as_str) != Some("expose") {
            base.remove("local_port");
        }
        Self::new(base, config.summary.group.as_deref())
    }

    fn fill(&mut self, group: Option<&str>) {
        for field in &mut self.fields {
            if field.name == "group" {
                field.input = Input::Text(Editor::of(group.unwrap_or_default()));
                continue;
            }
            let value = self.base.get(field.name).or_else(|| match field.name {
                "local_address" => self.base.get("bind_address"),
                "target" => self.base.get("service"),
                _ => None,
            });
            match (&mut field.input, value) {
                (_, None) => {}
                (Input::Text(editor), Some(value)) => *editor = Editor::of(as_text(field.name, value)),
                (Input::Choice { options, chosen }, Some(value)) => {
                    let word = as_text(field.name, value);
                    *chosen =
                        options.iter().position(|option| option.eq_ignore_ascii_case(&word)).unwrap_or(0);
                }
                (Input::Flag(flag), Some(value)) => {
                    *flag = matches!(as_text(field.name, value).to_ascii_lowercase().as_str(), "true" | "1");
                }
            }
        }
    }

    pub(super) fn is_new(&self) -> bool {
        self.of.is_none()
    }

    /// Whether something would be lost by leaving.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub(super) fn kind(&self) -> &'static str {
        let kind = self.fields.iter().find(|field| field.name == "workload_type");
        match kind.map(|field| &field.input) {
            Some(Input::Choice { options, chosen }) => options.get(*chosen).copied().unwrap_or("service"),
            Some(Input::Text(_) | Input::Flag(_)) | None => "service",
        }
    }

    fn is_shown(&self, field: &Field) -> bool {
        let kind = self.kind();
        let public = self.fields.iter().any(|field| {
            field.name == "exposure_type" && matches!(field.input, Input::Choice { chosen: 1, .. })
        });
        let for_public = ["ingress_class", "cert_manager_enabled", "cert_issuer", "cert_issuer_kind"]
            .contains(&field.name);
        (field.kinds.is_empty() || field.kinds.contains(&kind)) && (!for_public || public)
    }

    /// The fields that the kind has.
    pub(super) fn visible(&self) -> Vec<&Field> {
        self.fields.iter().filter(|field| self.is_shown(field)).collect()
    }

    pub(super) fn focused(&self) -> Option<&Field> {
        self.visible().get(self.focus).copied()
    }

    fn focused_mut(&mut self) -> Option<&mut Field> {
        let shown: Vec<bool> = self.fields.iter().map(|field| self.is_shown(field)).collect();
        let visible = self.fields.iter_mut().zip(shown).filter(|(_, shown)| *shown);
        visible.map(|(field, _)| field).nth(self.focus)
    }

    /// Puts the cursor on a visible field by number.
    pub(super) fn go(&mut self, field: usize) {
        if let Some(left) = self.focused_mut() {
            // Where nothing was typed nothing is wrong yet.
            let empty = matches!(&left.input, Input::Text(editor) if editor.is_empty());
            left.touched |= !empty;
        }
        self.focus = field.min(self.visible().len().saturating_sub(1));
    }

    /// Moves the cursor by so many fields, around at the ends.
    pub(super) fn step(&mut self, by: isize) {
        let count = self.visible().len().max(1);
        let next = self.focus.saturating_add_signed(by);
        let next = match (by, self.focus) {
            (..0, 0) => count - 1,
            _ if next >= count => 0,
            _ => next,
        };
        self.go(next);
    }

    /// Something is done to the focused field; `true` if it changed or took it.
    pub(super) fn input(&mut self, change: impl FnOnce(&mut Input) -> bool) -> bool {
        let Some(field) = self.focused_mut() else { return false };
        let before = field.input.clone();
        let taken = change(&mut field.input);
        if field.input != before {
            field.touched = true;
            self.dirty = true;
            self.refusal = None;
            self.check();
        }
        taken
    }

    /// The entry as it would be written down.
    pub(super) fn spec(&self) -> Map<String, Value> {
        let mut spec = self.base.clone();
        spec.remove("id");
        if self.fields.iter().any(|field| field.name == "local_address" && self.is_shown(field)) {
            spec.remove("bind_address");
        }
        // What this kind does not show may still mean something to it (a host beside a UDP service); to another kind not.
        let kind_before = self.base.get("workload_type").and_then(Value::as_str).unwrap_or("service");
        if !kind_before.eq_ignore_ascii_case(self.kind()) {
            for field in self.fields.iter().filter(|field| field.name != "group" && !self.is_shown(field)) {
                spec.remove(field.name);
            }
        }
        for field in self.visible().into_iter().filter(|field| field.name != "group") {
            match field.value() {
                Some(value) => spec.insert(field.name.to_owned(), value),
                None => spec.remove(field.name),
            };
        }
        spec
    }

    /// The wish that saving is.
    pub(super) fn put(&self) -> ConfigPut {
        let group = self
            .fields
            .iter()
            .find(|field| field.name == "group")
            .map(|field| field.text().trim().to_owned());
        let known = self.of.is_some();
        ConfigPut {
            spec: self.spec(),
            revision: self.of.map(|(_, revision)| revision),
            // A new one without a group has none; of a known one an empty text takes it out.
            group: group.filter(|group| known || !group.is_empty()),
        }
    }

    /// Looks at everything again.
    pub(super) fn check(&mut self) {
        let mut spec = self.spec();
        let mut found = told(&spec);
        // What is missing hides what is wrong with the rest: it is looked at as if it were there.
        for (name, example) in EXAMPLES {
            if found.iter().any(|fault| fault.field.as_deref() == Some(name) && is_missing(fault)) {
                spec.insert((*name).to_owned(), (*example).into());
            }
        }
        let known: Vec<Option<String>> = found.iter().map(|fault| fault.field.clone()).collect();
        found.extend(told(&spec).into_iter().filter(|fault| !known.contains(&fault.field)));
        let mut faults = Vec::new();
        for fault in &found {
            let found = self.visible().into_iter().find(|field| Some(field.name) == fault.field.as_deref());
            let (field, hint) = found.map_or(("workload_type", ""), |field| (field.name, field.hint));
            // The border speaks of files; a form has the field before one's eyes.
            let missing = is_missing(fault);
            let message = if missing { "is needed".to_owned() } else { fault.message.clone() };
            let remedy = if missing { hint.to_owned() } else { fault.remedy.clone() };
            faults.push(FieldFault { field, message, remedy });
        }
        for name in ["idle_minutes", "ttl_minutes"] {
            let field = self.visible().into_iter().find(|field| field.name == name);
            let text = field.map(|field| field.text().trim().to_owned()).unwrap_or_default();
            let fine = text.is_empty() || text.parse::<u32>().is_ok_and(|minutes| minutes <= MINUTES_MAX);
            if !fine && !faults.iter().any(|fault| fault.field == name) {
                let message = format!("`{text}` is no number of minutes");
                let remedy = format!("Write 0 for never, or up to {MINUTES_MAX}.");
                faults.push(FieldFault { field: name, message, remedy });
            }
        }
        let order: Vec<&str> = self.visible().into_iter().map(|field| field.name).collect();
        faults.sort_by_key(|fault| order.iter().position(|name| *name == fault.field));
        self.faults = faults;
    }

    /// The fault to show at a field: while nobody has tried to save, only where something was entered.
    pub(super) fn fault(&self, field: &Field) -> Option<&FieldFault> {
        let fault = self.faults.iter().find(|fault| fault.field == field.name)?;
        (self.strict || field.touched).then_some(fault)
    }

    /// Goes to the first fault; false if there is none.
    pub(super) fn go_to_fault(&mut self) -> bool {
        let visible = self.visible();
        let faulty = |field: &&Field| self.faults.iter().any(|fault| fault.field == field.name);
        let Some(place) = visible.iter().position(faulty) else { return false };
        self.go(place);
        true
    }
}

impl Field {
    /// What was typed; empty for choices and flags.
    fn text(&self) -> &str {
        match &self.input {
            Input::Text(editor) => editor.text(),
            Input::Choice { .. } | Input::Flag(_) => "",
        }
    }

    /// As it is written into an entry; `None`: not at all.
    fn value(&self) -> Option<Value> {
        match &self.input {
            Input::Flag(flag) => flag.then_some(Value::Bool(true)),
            Input::Choice { options, chosen } => options.get(*chosen).map(|word| (*word).into()),
            Input::Text(editor) => {
                let text = editor.text().trim();
                let number = || text.parse::<u32>().map_or_else(|_| Value::from(text), Value::from);
                match (self.name, text) {
                    (_, "") => None,
                    ("remote_port" | "local_port" | "idle_minutes" | "ttl_minutes", _) => Some(number()),
                    // What is no tag is left to the border to tell.
                    ("tags", _) => Some(match Tags::from_text(text) {
                        Ok(tags) => {
                            tags.iter().map(|(key, value)| (key.to_owned(), Value::from(value))).collect()
                        }
                        Err(_) => text.into(),
                    }),
                    _ => Some(text.into()),
                }
            }
        }
    }
}

/// What the border has against an entry.
fn told(spec: &Map<String, Value>) -> Vec<border::Fault> {
    let import = border::import(&Value::Object(spec.clone()).to_string(), &Defaults::default());
    import.faults().flat_map(|entry| entry.faults.clone()).collect()
}

fn is_missing(fault: &border::Fault) -> bool {
    fault.message.starts_with("is missing")
}

/// What stands for a needed field while it is missing.
const EXAMPLES: &[(&str, &str)] = &[
    ("service", "x"),
    ("target", "x"),
    ("remote_address", "x"),
    ("remote_port", "80"),
    ("local_port", "80"),
    ("alias", "x"),
];

/// A value of an entry as one would type it.
fn as_text(name: &str, value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Number(number) if name == "local_port" && number.as_u64() == Some(0) => String::new(),
        Value::Object(map) if name == "tags" => {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            tags_text(&map.iter().map(|(key, value)| (key.clone(), text(value))).collect())
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use kftray_commons::api::Summary;
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        let Value::Object(map) = value else { panic!("{value}") };
        map
    }

    fn config(spec: Value) -> Config {
        let summary = Summary { group: Some("morning".into()), ..Summary::default() };
        Config { id: ForwardId(7), revision: 3, desired: false, spec: map(spec), summary }
    }

    fn type_into(form: &mut Form, name: &str, text: &str) {
        let place = form.visible().iter().position(|field| field.name == name).expect("shown");
        form.go(place);
        form.input(|input| {
            let Input::Text(editor) = input else { panic!("{name} is no text") };
            *editor = Editor::of(text);
            true
        });
    }

    #[test]
    fn what_is_unknown_survives() {
        let form = Form::edit(&config(json!({
            "id": 7, "service": "web", "workload_type": "service", "remote_port": "http", "local_port": 8080,
            "protocol": "tcp", "namespace": "shop", "tags": {"team": "blue", "x": ""}, "future": {"a": [1]},
        })));
        let put = form.put();
        assert_eq!(
            Value::Object(put.spec),
            json!({
                "service": "web", "workload_type": "service", "remote_port": "http", "local_port": 8080,
                "protocol": "tcp", "namespace": "shop", "tags": {"team": "blue", "x": ""}, "future": {"a": [1]},
            })
        );
        assert_eq!(put.revision, Some(3));
        assert_eq!(put.group.as_deref(), Some("morning"));
    }

    #[test]
    fn faults_stand_at_their_fields() {
        let mut form = Form::new(Map::new(), None);
        let needed: Vec<_> = form.faults.iter().map(|fault| fault.field).collect();
        assert_eq!(needed, ["service", "remote_port"]);
        assert!(form.visible().iter().all(|field| form.fault(field).is_none()), "nothing was entered yet");
        type_into(&mut form, "service", "Web Shop");
        let field = form.focused().expect("a field").clone();
        assert!(
            form.fault(&field).is_some_and(|fault| fault.message.contains("Web Shop")),
            "{:?}",
            form.faults
        );
        type_into(&mut form, "service", "web");
        type_into(&mut form, "remote_port", "80");
        assert_eq!(form.faults, []);
        type_into(&mut form, "local_port", "123456");
        type_into(&mut form, "tags", "a b");
        type_into(&mut form, "ttl_minutes", "soon");
        let faulty: Vec<_> = form.faults.iter().map(|fault| fault.field).collect();
        assert_eq!(faulty.len(), 3, "{:?}", form.faults);
        for name in ["local_port", "tags", "ttl_minutes"] {
            assert!(faulty.contains(&name), "{name}");
        }
        form.go(0);
        assert!(form.go_to_fault());
        assert_eq!(form.focused().map(|field| field.name), Some("local_port"));
    }

    #[test]
    fn every_kind_can_be_filled_in() {
        for (number, kind) in KINDS.iter().enumerate() {
            let mut form = Form::new(Map::new(), None);
            form.go(0);
            form.input(|input| {
                let Input::Choice { chosen, .. } = input else { panic!("no choice") };
                *chosen = number;
                true
            });
            assert_eq!(form.kind(), *kind);
            for field in ["service", "target", "remote_address", "remote_port", "alias"] {
                if form.visible().iter().any(|shown| shown.name == field) {
                    type_into(&mut form, field, if field == "remote_port" { "80" } else { "web" });
                }
            }
            type_into(&mut form, "local_port", "8080");
            assert_eq!(form.faults, [], "{kind}");
            let spec = form.spec();
            assert_eq!(spec.get("workload_type").and_then(Value::as_str), Some(*kind));
        }
    }

    #[test]
    fn a_copy_is_another() {
        let form = Form::duplicate(&config(json!({
            "id": 7, "service": "web", "alias": "web", "remote_port": 80, "local_port": 8080,
        })));
        assert!(form.is_new());
        let spec = form.spec();
        assert_eq!(spec.get("alias"), Some(&json!("web-copy")));
        assert_eq!(spec.get("local_port"), None);
        assert_eq!(spec.get("id"), None);
    }
}
