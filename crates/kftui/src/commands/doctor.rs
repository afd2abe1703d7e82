//! `kftui doctor`: what stands in the way. Asks the host; where that cannot be reached it looks by itself, since that is
//! when one needs a doctor most.

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use kftray_commons::Problem;
use kftray_commons::api::{
    ContextReport, DoctorReport, DoctorRequest, ForwardReport, Granted, Holder, Need, PodCondition,
};
use kftray_host::doctor::{self, Patient};
use kftray_kube::{KubeOptions, KubePorts};

use super::select::SelectArgs;
use crate::connect;
use crate::exit::Exit;
use crate::render::{Paint, Progress};
use crate::shown::{self, Format, Forward};

pub(crate) const DOCTOR_HELP: &str = "\
Examples:
  kftui doctor                       the contexts of all forwards, and every forward
  kftui doctor db
  kftui doctor --context prod
  kftui doctor --output json > report.json      to attach to a ticket: nothing in it is secret

Per context: kubeconfig, login and plugin, proxy, transport, server version, clock. Per forward:
local port and who has it, permissions, pods. Nothing is changed. Code 4 if something is wrong.";

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) select: SelectArgs,

    /// This context and the forwards of it, repeatable; @current is the current one
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Vec<String>,

    /// Kubeconfig for --context
    #[arg(long, value_name = "PATH", requires = "context")]
    pub(crate) kubeconfig: Option<String>,

    /// Look from this program, not from the host: its environment may be another
    #[arg(long)]
    pub(crate) here: bool,

    #[command(flatten)]
    pub(crate) output: shown::OutputArgs,
}

/// Looks and tells.
pub(crate) async fn doctor(args: DoctorArgs) -> Result<Exit> {
    let mut progress = Progress::on_terminal();
    progress.set(Some("asking the clusters".to_owned()));
    let examined = examine(&args).await;
    progress.set(None);
    let (report, host) = examined?;
    if let Some(problem) = &host {
        shown::trouble("host", problem);
    }
    match args.output.output {
        Format::Table | Format::Name => crate::documents::print(text(&report, shown::paint()).as_bytes())?,
        format @ (Format::Json | Format::Yaml) => {
            crate::documents::print(shown::document(format, &report)?.as_bytes())?
        }
    };
    Ok(match host {
        Some(_) => Exit::HostUnreachable,
        None if report.is_well() => Exit::Clean,
        None => Exit::NeedsUser,
    })
}

async fn examine(args: &DoctorArgs) -> Result<(DoctorReport, Option<Problem>)> {
    let client = match connect::host().await {
        Ok(client) => client,
        Err(error) => {
            let problem = match error.downcast::<kftray_commons::api::Error>() {
                Ok(error) => error.problem(),
                Err(error) => error.downcast::<Problem>()?,
            };
            return Ok((here(args, Vec::new(), Vec::new()).await, Some(problem)));
        }
    };
    let all = Forward::all(&client.snapshot().await?);
    let chosen = args.select.choose_or_all(&all)?;
    let labels =
        if args.select.is_empty() { Vec::new() } else { chosen.iter().map(|one| one.name.clone()).collect() };
    if args.here {
        let patients = chosen.iter().filter_map(patient).collect();
        return Ok((here(args, labels, patients).await, None));
    }
    Ok((client.doctor(&request(args, labels)).await?, None))
}

fn patient(one: &Forward) -> Option<Patient> {
    let config = one.config.as_ref()?;
    let read = kftray_commons::border::read_object(
        &config.spec,
        config.id,
        &kftray_commons::border::Defaults::open(),
    );
    Some(Patient { spec: read.result.ok()?, addresses: one.addresses.clone() })
}

async fn here(args: &DoctorArgs, labels: Vec<String>, patients: Vec<Patient>) -> DoctorReport {
    doctor::collect(&KubePorts::new(KubeOptions::from_process()), &request(args, labels), patients).await
}

fn request(args: &DoctorArgs, labels: Vec<String>) -> DoctorRequest {
    DoctorRequest { contexts: args.context.clone(), kubeconfig: args.kubeconfig.clone(), labels }
}

/// The report for people.
fn text(report: &DoctorReport, paint: Paint) -> String {
    let mut text = format!("kftray {} on {}\n", report.version, report.system);
    for one in &report.contexts {
        text.push('\n');
        context(one, report.at, paint, &mut text);
    }
    for one in &report.forwards {
        text.push('\n');
        forward(one, paint, &mut text);
    }
    let wrong = report.contexts.iter().filter(|one| !one.problems.is_empty()).count()
        + report.forwards.iter().filter(|one| !one.problems.is_empty()).count();
    let looked = report.contexts.len() + report.forwards.len();
    text.push_str(&match wrong {
        0 => format!("\n{}\n", paint.good(format!("all well ({looked} looked at)"))),
        _ => format!("\n{}\n", paint.bad(format!("{wrong} of {looked} have a problem"))),
    });
    text
}

/// `  name: value`, nothing for an empty value.
fn line(text: &mut String, paint: Paint, name: &str, value: &str) {
    if !value.is_empty() {
        let name = paint.dim(format!("{:<12}", format!("{name}:")));
        text.push_str(&format!("  {name} {value}\n"));
    }
}

fn problems(text: &mut String, paint: Paint, problems: &[Problem]) {
    for problem in problems {
        line(text, paint, "problem", &format!("{} [{}]", paint.bad(&problem.message), problem.code));
        line(text, paint, "cure", &problem.remedy);
    }
}

fn head(text: &mut String, paint: Paint, what: &str, name: &str, well: bool) {
    let mark = if well { paint.good("ok") } else { paint.bad("problem") };
    text.push_str(&format!("{what} {}: {mark}\n", paint.strong(name)));
}

fn context(one: &ContextReport, now: u64, paint: Paint, text: &mut String) {
    let asked = one.asked.clone().unwrap_or_else(|| "(current)".to_owned());
    let name = one.name.clone().unwrap_or(asked);
    head(text, paint, "context", &name, one.problems.is_empty());
    line(text, paint, "kubeconfig", &one.paths.join(", "));
    let user = one.user.as_ref().map(|user| format!(" as {user}")).unwrap_or_default();
    line(
        text,
        paint,
        "cluster",
        &one.cluster.as_ref().map(|cluster| format!("{cluster}{user}")).unwrap_or_default(),
    );
    line(text, paint, "server", one.server.as_deref().unwrap_or_default());
    line(text, paint, "namespace", one.namespace.as_deref().unwrap_or_default());
    if let Some(login) = &one.login {
        let end = login.expires_at.map(|end| match end.checked_sub(now) {
            Some(left) => format!(", ends in {}", super::list::span(left)),
            None => format!(", ended on {}", day(end)),
        });
        line(text, paint, "login", &format!("{}{}", login.kind, end.unwrap_or_default()));
        if let Some(plugin) = &login.plugin {
            let path = plugin.path.as_deref().unwrap_or("not found");
            let took = plugin.took_ms.map(|took| format!(", took {took} ms")).unwrap_or_default();
            line(text, paint, "plugin", &format!("{path}{took}"));
            line(text, paint, "variables", &plugin.variables.join(", "));
        }
    }
    line(text, paint, "way", one.route.as_deref().unwrap_or_default());
    if let Some(transport) = &one.transport {
        let reason = one.transport_reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        line(text, paint, "transport", &format!("{transport}{reason}"));
    }
    if let Some(version) = &one.server_version {
        let took = one.answered_ms.map(|took| format!(", answered in {took} ms")).unwrap_or_default();
        line(text, paint, "version", &format!("{version}{took}"));
    }
    line(text, paint, "clock", &one.clock_skew_seconds.map(skew).unwrap_or_default());
    problems(text, paint, &one.problems);
}

fn skew(seconds: i64) -> String {
    match seconds {
        // The header has whole seconds.
        -2..=2 => "the same".to_owned(),
        3.. => format!("the server's is {seconds} s ahead"),
        _ => format!("the server's is {} s behind", seconds.unsigned_abs()),
    }
}

fn day(at: u64) -> String {
    let at = Timestamp::from_millisecond(i64::try_from(at).unwrap_or_default()).unwrap_or_default();
    at.strftime("%Y-%m-%d").to_string()
}

fn forward(one: &ForwardReport, paint: Paint, text: &mut String) {
    head(text, paint, "forward", &one.label, one.problems.is_empty());
    let namespace = one.namespace.as_ref().map(|name| format!(" in namespace {name}")).unwrap_or_default();
    line(text, paint, "target", &format!("{}{namespace}", one.target));
    for local in &one.local {
        let holder = match (local.holder, &local.owner) {
            (Holder::Ours, _) => "ours".to_owned(),
            (Holder::Free, _) => "free".to_owned(),
            (Holder::Taken, Some(owner)) => format!("taken by {owner}"),
            (Holder::Taken, None) => "taken by another program".to_owned(),
            (Holder::Unavailable, _) => "cannot be opened".to_owned(),
            (Holder::Unknown, _) => "unknown".to_owned(),
        };
        line(text, paint, "local", &format!("{} {holder}", local.address));
    }
    let granted = |wanted: Granted| {
        let those = one.permissions.iter().filter(|permission| permission.granted == wanted);
        let told = those.map(|permission| {
            let optional =
                if wanted == Granted::No && permission.need == Need::Better { " (not needed)" } else { "" };
            format!("{} {}{optional}", permission.verb, permission.resource)
        });
        told.collect::<Vec<_>>().join(", ")
    };
    line(text, paint, "may", &granted(Granted::Yes));
    line(text, paint, "may not", &granted(Granted::No));
    line(text, paint, "not told", &granted(Granted::Unknown));
    for pod in &one.endpoints {
        let condition = match pod.condition {
            PodCondition::Ready => "ready",
            PodCondition::Draining => "terminating",
            PodCondition::NotReady => "not ready",
            PodCondition::Unknown => "",
        };
        let node = pod.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        line(text, paint, "pod", &format!("{}/{}:{} {condition}{node}", pod.namespace, pod.pod, pod.port));
    }
    problems(text, paint, &one.problems);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_for_people() {
        let report: DoctorReport = serde_json::from_value(json!({
            "at": 1_000_000_000_000_u64, "version": "9.9", "system": "linux x86_64",
            "contexts": [
                {"asked": "prod", "name": "prod", "paths": ["/home/me/.kube/config"], "cluster": "c", "user": "me",
                 "server": "https://c:6443", "namespace": "shop", "route": "proxy http://p:3128 (HTTPS_PROXY)",
                 "login": {"kind": "credential plugin aws", "expires_at": 1_000_000_600_000_u64,
                    "plugin": {"command": "aws", "path": "/usr/bin/aws", "variables": ["AWS_PROFILE"], "took_ms": 812}},
                 "transport": "spdy", "transport_reason": "websocket: refused", "server_version": "v1.36.0",
                 "answered_ms": 950, "clock_skew_seconds": -90,
                 "problems": [{"code": "clock_wrong", "message": "this machine's clock is 90 s ahead", "remedy": "Set it."}]},
                {"paths": ["/x"], "problems": [{"code": "kubeconfig_missing", "message": "there is none", "remedy": "Make one."}]}
            ],
            "forwards": [
                {"id": 1, "label": "db", "target": "svc/db:5432", "namespace": "shop",
                 "local": [{"address": "localhost:5432", "holder": "taken", "owner": "postgres (pid 7)"}],
                 "permissions": [
                    {"verb": "get", "resource": "services", "granted": "yes", "need": "must"},
                    {"verb": "watch", "resource": "services", "granted": "no", "need": "better"},
                    {"verb": "list", "resource": "pods", "granted": "unknown", "need": "better"}],
                 "endpoints": [{"pod": "db-0", "namespace": "shop", "port": 5432, "node": "n1", "condition": "ready"}],
                 "problems": [{"code": "port_in_use", "message": "localhost:5432 is in use by postgres (pid 7)", "remedy": "Stop it."}]},
                {"id": 2, "label": "web", "target": "svc/web:80"}
            ]
        }))
        .expect("a report");
        insta::assert_snapshot!(text(&report, Paint::new(false)));
    }
}
