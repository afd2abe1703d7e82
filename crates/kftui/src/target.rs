//! `TARGET PORT... [TARGET PORT...]...`: the words of `kftui forward`, kubectl's spelling included.

use std::num::NonZeroU16;

use kftray_commons::names;
use kftray_commons::selector;
use kftray_commons::spec::{LocalPort, Protocol};
use kftray_commons::{RemotePort, TargetObject, WorkloadKind};

/// One target and one of its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) object: TargetObject,
    pub(crate) local: LocalPort,
    pub(crate) remote: RemotePort,
    pub(crate) protocol: Protocol,
}

/// A word that is not understood, with what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}\n\n  {hint}")]
pub(crate) struct WordFault {
    message: String,
    hint: String,
}

fn fault(message: impl Into<String>, hint: impl Into<String>) -> WordFault {
    WordFault { message: message.into(), hint: hint.into() }
}

/// Reads all words.
///
/// A bare word is a pod's name, as kubectl has it; a port's name alone is therefore written `:http`.
pub(crate) fn parse(words: &[String]) -> Result<Vec<Wanted>, WordFault> {
    let mut wanted = Vec::new();
    // The target in hand, and how many ports it has got.
    let mut current: Option<(TargetObject, usize)> = None;
    for word in words {
        if is_port(word) {
            let Some((object, ports)) = &mut current else {
                return Err(fault(
                    format!("`{word}` is a port, but no target comes before it"),
                    format!("write the target first: kftui forward svc/web {word}"),
                ));
            };
            let (local, remote, protocol) = port(word)?;
            *ports += 1;
            wanted.push(Wanted { object: object.clone(), local, remote, protocol });
        } else {
            let next = target(word)?;
            complete(current.replace((next, 0)).as_ref(), Some(word))?;
        }
    }
    complete(current.as_ref(), None)?;
    Ok(wanted)
}

/// A target must have at least one port before the next one, or the end, comes.
fn complete(target: Option<&(TargetObject, usize)>, next: Option<&str>) -> Result<(), WordFault> {
    let Some((object, 0)) = target else { return Ok(()) };
    let shown = short(object);
    // `svc/web http`: the next word looks like the name of a port.
    if let Some(next) = next.filter(|next| names::port_name(next).is_ok()) {
        return Err(fault(
            format!("{shown} has no port; `{next}` after it was read as the name of a pod"),
            format!("if it is the name of a port: kftui forward {shown} :{next}  or  {shown} 8080:{next}"),
        ));
    }
    let name = match object {
        TargetObject::Pod(name) => Some(name).filter(|name| names::port_name(name).is_ok()),
        TargetObject::Service(_)
        | TargetObject::Labels(_)
        | TargetObject::Workload { .. }
        | TargetObject::Host(_) => None,
    };
    let name = name.map(|name| format!("; if `{name}` is a port's name, write :{name}")).unwrap_or_default();
    Err(fault(
        format!("{shown} has no port"),
        format!("write one after it: kftui forward {shown} 8080:80{name}"),
    ))
}

/// A port word begins with a digit or colon and holds a port; everything else is a target. Names of pods may begin with
/// a digit, too, but then hold more than digits and have no colon.
fn is_port(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let before = word.split(['/', '@']).next().unwrap_or(word);
    digits(before) || (before.contains(':') && !word.contains('=')) || before.starts_with('-')
}

fn port(word: &str) -> Result<(LocalPort, RemotePort, Protocol), WordFault> {
    let (ports, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => {
            return Err(fault(
                format!("`{word}`: `{protocol}` is no protocol that can be forwarded"),
                "write 8080:80, 80 or :http for TCP, 53:53/udp for UDP",
            ));
        }
    };
    let (local, remote) = pair(ports)?;
    Ok((local, remote, protocol))
}

fn pair(word: &str) -> Result<(LocalPort, RemotePort), WordFault> {
    match word.split(':').collect::<Vec<_>>()[..] {
        [both] => {
            let number = number(both, word)?;
            Ok((LocalPort::Fixed(number), RemotePort::Number(number)))
        }
        [local, remote] => Ok((local_port(local, word)?, remote_port(remote, word)?)),
        [address, local, remote] if !address.is_empty() => Err(fault(
            format!("`{word}` has an address in it"),
            format!("write {local}:{remote} --address {address}"),
        )),
        _ => Err(fault(format!("`{word}` has too many colons"), "write LOCAL:REMOTE, such as 8080:80")),
    }
}

fn local_port(text: &str, word: &str) -> Result<LocalPort, WordFault> {
    if text.is_empty() || text == "0" {
        return Ok(LocalPort::Random);
    }
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(fault(
            format!("`{text}` in `{word}` is not a local port: a name is only known in the cluster"),
            format!("write a number: 8080:{}", word.split_once(':').map_or("80", |(_, remote)| remote)),
        ));
    }
    number(text, word).map(LocalPort::Fixed)
}

fn remote_port(text: &str, word: &str) -> Result<RemotePort, WordFault> {
    if text.is_empty() {
        return Err(fault(
            format!("`{word}` has no remote port"),
            format!("write LOCAL:REMOTE, such as {word}80"),
        ));
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return number(text, word).map(RemotePort::Number);
    }
    match names::port_name(text) {
        Ok(()) => Ok(RemotePort::Name(text.to_owned())),
        Err(why) => Err(fault(
            format!("`{text}` in `{word}` {why}"),
            "write a port's number from 1 to 65535, or its name as the Service or pod has it",
        )),
    }
}

fn number(text: &str, word: &str) -> Result<NonZeroU16, WordFault> {
    text.parse().map_err(|_| {
        let inside = if text == word { String::new() } else { format!(" in `{word}`") };
        fault(format!("`{text}`{inside} is not a port"), "ports go from 1 to 65535")
    })
}

/// A target from one word.
pub(crate) fn target(word: &str) -> Result<TargetObject, WordFault> {
    if let Some((kind, name)) = word.split_once('/')
        && !selector::looks_like(word)
    {
        return object(word, kind, name);
    }
    if selector::looks_like(word) {
        return match selector::check(word) {
            Ok(()) => Ok(TargetObject::Labels(word.to_owned())),
            Err(why) => Err(fault(
                format!("`{word}` is not a label selector: {why}"),
                "write app=web, or app=web,tier=front",
            )),
        };
    }
    pod(word, word)
}

fn object(word: &str, kind: &str, name: &str) -> Result<TargetObject, WordFault> {
    if name.is_empty() {
        return Err(fault(format!("`{word}` has no name"), format!("write {kind}/NAME, such as {kind}/web")));
    }
    if name.contains('/') {
        return Err(fault(
            format!("`{word}` has two slashes"),
            "write KIND/NAME, and the namespace as -n NAME",
        ));
    }
    let lower = kind.to_ascii_lowercase();
    match lower.as_str() {
        "service" | "services" | "svc" => {
            checked(word, name, names::label)?;
            return Ok(TargetObject::Service(name.to_owned()));
        }
        "pod" | "pods" | "po" => return pod(word, name),
        // What it may be is said by the check of the whole forward.
        "proxy" | "host" => return Ok(TargetObject::Host(name.trim_matches(['[', ']']).to_owned())),
        _ => {}
    }
    if let Some(kind) = WorkloadKind::parse(&lower) {
        checked(word, name, names::subdomain)?;
        return Ok(TargetObject::Workload { kind, name: name.to_owned() });
    }
    Err(match lower.as_str() {
        "cronjob" | "cronjobs" | "cj" => {
            fault(format!("`{word}`: a CronJob has no pods itself, its Jobs have"), "write job/NAME")
        }
        "replicationcontroller" | "replicationcontrollers" | "rc" => fault(
            format!("`{word}`: replication controllers are not served"),
            "write a label selector, such as app=web",
        ),
        "ingress" | "ingresses" | "ing" => fault(
            format!("`{word}`: an Ingress has no pods itself"),
            "forward to the Service behind it: svc/NAME",
        ),
        "node" | "nodes" | "no" => {
            fault(format!("`{word}`: Kubernetes forwards to pods only"), "write svc/NAME or pod/NAME")
        }
        _ => fault(
            format!("`{kind}` in `{word}` is not a kind that can be forwarded to"),
            "kinds are svc, pod, deploy, sts, ds, rs, job and proxy: svc/web",
        ),
    })
}

fn pod(word: &str, name: &str) -> Result<TargetObject, WordFault> {
    checked(word, name, names::subdomain)?;
    Ok(TargetObject::Pod(name.to_owned()))
}

fn checked(word: &str, name: &str, check: fn(&str) -> Result<(), names::NameFault>) -> Result<(), WordFault> {
    check(name).map_err(|why| {
        fault(
            format!("`{word}` is not a target: `{name}` {why}"),
            "write svc/NAME, pod/NAME, deploy/NAME, or a label selector such as app=web",
        )
    })
}

/// With kubectl's short kind.
fn short(object: &TargetObject) -> String {
    match object {
        TargetObject::Service(name) => format!("svc/{name}"),
        TargetObject::Pod(name) => format!("pod/{name}"),
        TargetObject::Labels(selector) => selector.clone(),
        TargetObject::Workload { kind, name } => format!("{}/{name}", kind.short()),
        TargetObject::Host(host) => format!("proxy/{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Vec<Wanted>, WordFault> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    /// What was understood, in one notation.
    fn told(line: &str) -> String {
        let wanted = read(line).unwrap_or_else(|fault| panic!("{line}: {fault}"));
        let each = wanted.iter().map(|one| {
            let udp = if one.protocol == Protocol::Udp { "/udp" } else { "" };
            format!("{} {}>{}{udp}", one.object, one.local.number(), one.remote)
        });
        each.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn understood() {
        for (line, expected) in [
            ("svc/web 8080:80", "service/web 8080>80"),
            ("service/web 8080:80", "service/web 8080>80"),
            ("services/web 80", "service/web 80>80"),
            ("pod/x 80", "pod/x 80>80"),
            ("po/x :80", "pod/x 0>80"),
            ("x 0:80", "pod/x 0>80"),
            ("web-7d9f 80", "pod/web-7d9f 80>80"),
            ("deploy/y :http", "deployment/y 0>http"),
            ("deployment/y 8080:http", "deployment/y 8080>http"),
            ("deployments.apps/y 80", "deployment/y 80>80"),
            ("deployment.v1.apps/y 80", "deployment/y 80>80"),
            ("Deploy/y 80", "deployment/y 80>80"),
            ("sts/db 5432", "statefulset/db 5432>5432"),
            ("ds/agent 80", "daemonset/agent 80>80"),
            ("rs/web-7d 80", "replicaset/web-7d 80>80"),
            ("job/once 80", "job/once 80>80"),
            ("jobs.batch/once 80", "job/once 80>80"),
            ("app=web 80", "app=web 80>80"),
            ("app=web,tier!=back 80", "app=web,tier!=back 80>80"),
            ("app.kubernetes.io/name=web 80", "app.kubernetes.io/name=web 80>80"),
            ("!canary 80", "!canary 80>80"),
            ("svc/a 8080:80 svc/b 5432", "service/a 8080>80, service/b 5432>5432"),
            ("svc/a 1 2:3 x :4", "service/a 1>1, service/a 2>3, pod/x 0>4"),
            ("0db 80", "pod/0db 80>80"),
            (
                "svc/dns 53/udp 5353:53/UDP :dns/udp",
                "service/dns 53>53/udp, service/dns 5353>53/udp, service/dns 0>dns/udp",
            ),
            ("svc/web 80/tcp", "service/web 80>80"),
            ("proxy/db.corp.example 5432", "host/db.corp.example 5432>5432"),
            ("host/10.0.0.7 5432:5433", "host/10.0.0.7 5432>5433"),
            ("proxy/[fd00::7] 80", "host/fd00::7 80>80"),
        ] {
            assert_eq!(told(line), expected, "{line}");
        }
        let spaced = ["app in (a, b)".to_owned(), "80".to_owned()];
        assert_eq!(
            parse(&spaced).expect("a selector")[0].object,
            TargetObject::Labels("app in (a, b)".into())
        );
    }

    #[test]
    fn refused_with_the_word_and_an_example() {
        let lines = [
            "8080:80",
            "svc/web",
            "web",
            "svc/web http",
            "svc/web http https",
            "svc/a svc/b 80",
            "svc/web 0",
            "svc/web 70000",
            "svc/web 8080:",
            "svc/web http:80",
            "svc/web 80:80:80",
            "svc/web 127.0.0.1:8080:80",
            "svc/web :HTTP",
            "svc/web :-x",
            "svc/web 53/sctp",
            "svc/web 99999:1",
            "svc/ 80",
            "svc/Web 80",
            "svc/a/b 80",
            "ing/web 80",
            "cj/web 80",
            "node/x 80",
            "foo/web 80",
            "We_b 80",
            "app=we=b 80",
            "a,b,, 80",
        ];
        let all = lines.iter().map(|line| {
            let fault = read(line).expect_err(line);
            format!("{line}\n    {}", fault.to_string().replace("\n\n", "\n  "))
        });
        insta::assert_snapshot!(all.collect::<Vec<_>>().join("\n"));
    }
}
