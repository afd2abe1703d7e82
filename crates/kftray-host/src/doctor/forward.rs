//! One forward: its local addresses, its permissions, its pods.

use std::net::SocketAddr;
use std::time::Duration;

use kftray_commons::api::{ForwardReport, Holder, LocalReport};
use kftray_commons::spec::{LocalPort, Protocol};
use kftray_commons::{Code, ContextRef, ForwardSpec, Problem, Workload};
use kftray_kube::{Cluster, KubePorts, diagnose};
use kftray_portforward::ports::{Resolution, Resolve as _, Wanted};
use kftray_portforward::{LocalAddress, probe};

use super::Patient;
use crate::endpoint;

/// The first answer about a target takes a round trip or two after the login, which has been made by then.
const ENDPOINTS: Duration = Duration::from_secs(15);

/// Looks at one forward. `cluster` is none where its context cannot be used: then only this machine is looked at.
pub(super) async fn look(ports: &KubePorts, cluster: Option<&Cluster>, patient: &Patient) -> ForwardReport {
    let spec = &patient.spec;
    let mut report = ForwardReport {
        id: spec.id,
        label: spec.label(),
        target: spec.workload.to_string(),
        context: match &spec.cluster.context {
            ContextRef::Current => None,
            ContextRef::Named(name) => Some(name.clone()),
        },
        namespace: spec.namespace.clone(),
        local: Vec::new(),
        permissions: Vec::new(),
        endpoints: Vec::new(),
        problems: Vec::new(),
    };
    local(patient, &mut report).await;
    let Some(cluster) = cluster else { return report };
    let namespace = spec.namespace.clone().unwrap_or_else(|| cluster.default_namespace().to_owned());
    report.permissions = diagnose::permissions(cluster, spec, &namespace).await;
    report.problems.extend(diagnose::judge(spec, &namespace, &report.permissions));
    if let Some(problem) = diagnose::judge_relay(spec, &namespace, &report.permissions)
        // An expose needs a relay of its own; everything else can do with an installed one.
        && (matches!(spec.workload, Workload::Expose(_)) || !ports.relays().is_installed(cluster).await)
    {
        report.problems.push(problem);
    }
    report.namespace = Some(namespace);
    endpoints(ports, spec, &mut report).await;
    report
}

async fn local(patient: &Patient, report: &mut ForwardReport) {
    let spec = &patient.spec;
    if !patient.addresses.is_empty() {
        let ours =
            |address: &String| LocalReport { address: address.clone(), holder: Holder::Ours, owner: None };
        report.local = patient.addresses.iter().map(ours).collect();
        return;
    }
    if matches!(spec.workload, Workload::Expose(_)) {
        return;
    }
    let LocalPort::Fixed(port) = spec.listen.port else { return };
    for host in &spec.listen.hosts {
        // Parsing an address never fails: what is no address is a host name.
        let address = match host.parse::<LocalAddress>() {
            Ok(address) => address,
            Err(never) => match never {},
        };
        let shown = |address: SocketAddr| LocalReport {
            address: address.to_string(),
            holder: Holder::Free,
            owner: None,
        };
        match probe(&[address], Some(port), spec.protocol).await {
            Ok(addresses) => report.local.extend(addresses.into_iter().map(shown)),
            Err(problem) => {
                let taken = problem.code == Code::PortInUse;
                let owner = problem.message.split_once(" is in use by ").map(|(_, owner)| owner.to_owned());
                report.local.push(LocalReport {
                    address: format!("{host}:{port}"),
                    holder: if taken { Holder::Taken } else { Holder::Unavailable },
                    owner: owner.filter(|_| taken),
                });
                report.problems.push(problem);
            }
        }
    }
}

async fn endpoints(ports: &KubePorts, spec: &ForwardSpec, report: &mut ForwardReport) {
    // What goes by way of a relay is not asked for: that would start one.
    if spec.protocol == Protocol::Udp || matches!(spec.workload, Workload::Proxy { .. }) {
        return;
    }
    let Some((target, port)) = spec.target() else { return };
    let mut known = ports.follow(&Wanted::direct(target, port));
    let answered = known.wait_for(|resolution| !matches!(resolution, Resolution::Pending));
    let resolution = match tokio::time::timeout(ENDPOINTS, answered).await {
        Ok(Ok(resolution)) => resolution.clone(),
        Ok(Err(_)) | Err(_) => {
            let message = format!(
                "the cluster has not told the pods of {} for {} s",
                report.target,
                ENDPOINTS.as_secs()
            );
            report.problems.push(Problem::new(Code::ClusterUnreachable, message));
            return;
        }
    };
    match resolution {
        Resolution::Pending => {}
        Resolution::Endpoints { endpoints, why_none } => {
            report.endpoints = endpoints.iter().map(endpoint::info).collect();
            report.problems.extend(why_none);
        }
        // A missing permission has been told already, with the Role to ask for.
        Resolution::Failed(problem) if problem.code == Code::Forbidden && !report.problems.is_empty() => {}
        Resolution::Failed(problem) => report.problems.push(problem),
    }
}
