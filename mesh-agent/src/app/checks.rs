//! What `meshctl check` says about a running agent: pure functions of its documents.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::snapshot::IstioLabel;

use crate::admin::document::{
    Bpf, BpfForeign, CaptureState, CertificateState, Certificates, Check, EnrolmentState, Level,
    OlderConnections, RuntimeState, Status, WorkloadEntry, Workloads,
};
use crate::capture::{KubeletError, ProbePassage};
use crate::sources::{KindState, KindStatus, ServerStatus};
use crate::telemetry::traffic::Room;
use crate::worker::WorkerStatus;

use super::descriptors::Descriptors;

mod cluster;

pub(super) use cluster::AgentPod;

/// A map that is fuller than this is worth a look.
const FULL: f64 = 0.8;

/// What the checks look at.
pub(super) struct Facts {
    pub(super) status: Status,
    pub(super) workloads: Workloads,
    pub(super) certificates: Certificates,
    pub(super) bpf: Bpf,
    pub(super) workers: Vec<WorkerStatus>,
    pub(super) descriptors: Descriptors,
    /// Whether the kubelet's probes pass; `None` before that was looked at.
    pub(super) probes: Option<ProbePassage>,
    pub(super) older: OlderConnections,
    /// How full the table of the metrics' label sets is.
    pub(super) metrics: Room,
    /// The kinds that are followed at an API server.
    pub(super) kinds: Vec<KindStatus>,
    /// The API servers that are followed.
    pub(super) servers: Vec<ServerStatus>,
    /// The agents' pods, where the documents have them.
    pub(super) agents: Vec<AgentPod>,
    /// Whose Istio's enrolment label is.
    pub(super) istio_label: IstioLabel,
}

/// The checks of the agent, in the order in which to read them.
pub(super) fn of_agent(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![readiness(&facts.status), configuration(&facts.status)];
    checks.extend(api_server(&facts.kinds));
    checks.extend(cluster::checks(facts));
    checks.extend([pods(&facts.workloads), container_runtime(&facts.status)]);
    checks.extend(cni(&facts.status));
    checks.extend([
        certificates(&facts.certificates),
        maps(&facts.bpf),
        shadowed_ports(&facts.bpf),
        probes(facts.probes.as_ref(), &facts.workloads),
        older(&facts.older),
        debug_log(&facts.bpf),
        first_packets(&facts.bpf),
        foreign_programs(&facts.bpf),
        workers(&facts.workers),
        descriptors(facts.descriptors),
        metrics(facts.metrics),
    ]);
    checks
}

/// Nothing where no API server is followed.
fn api_server(kinds: &[KindStatus]) -> Option<Check> {
    if kinds.is_empty() {
        return None;
    }
    let followed = |kind: &&KindStatus| matches!(kind.state, KindState::Watching | KindState::Absent);
    let (good, bad): (Vec<_>, Vec<_>) = kinds.iter().partition(followed);
    let mut detail = format!("{} of {} kinds are followed", good.len(), kinds.len());
    for kind in &bad {
        let problem = kind.problem.as_deref().unwrap_or("it is being listed");
        detail += &format!("\n{}: {}: {problem}", kind.kind, kind.state.as_str());
    }
    let level = match bad.iter().any(|kind| kind.state == KindState::Waiting) {
        _ if bad.is_empty() => Level::Ok,
        true => Level::Fail,
        false => Level::Warn,
    };
    Some(check(
        "api server",
        level,
        detail,
        "what was known stays in force, and nothing is in force before every kind was; each line says what helps",
    ))
}

fn check(name: &str, level: Level, detail: String, hint: &str) -> Check {
    Check {
        name: name.to_owned(),
        level,
        detail,
        hint: (level != Level::Ok).then(|| hint.to_owned()),
    }
}

fn descriptors(descriptors: Descriptors) -> Check {
    let limit = descriptors
        .limit
        .map_or_else(|| "an unknown number of".to_owned(), |limit| limit.to_string());
    let mut detail = format!(
        "{limit} descriptors; a workload may have {} connections on each worker",
        descriptors.connections
    );
    if descriptors.connections < descriptors.asked {
        detail += &format!(", not {} as its budget says", descriptors.asked);
    }
    let level = if descriptors.is_short() {
        Level::Warn
    } else {
        Level::Ok
    };
    check(
        "descriptors",
        level,
        detail,
        "raise the hard limit of open files (LimitNOFILE= in a unit), or lower --budget-connections",
    )
}

fn metrics(room: Room) -> Check {
    let mut detail = format!("{} of {} label sets", room.used, room.capacity);
    if room.used >= room.capacity {
        detail += "; connections of further ones are counted under \"other\"";
    }
    let full = room.used as f64 > room.capacity as f64 * FULL;
    check(
        "metrics",
        if full { Level::Warn } else { Level::Ok },
        detail,
        "labels app and version are part of each label set: do pods carry values that are unique to each?",
    )
}

fn readiness(status: &Status) -> Check {
    if status.ready {
        let detail = format!("mesh-agent {} (process {}) is ready", status.version, status.pid);
        return check("agent", Level::Ok, detail, "");
    }
    let detail = format!("not ready: {}", status.not_ready.join("; "));
    check(
        "agent",
        Level::Fail,
        detail,
        "the checks below and the agent's log say more",
    )
}

fn configuration(status: &Status) -> Check {
    let detail = format!(
        "snapshot {}: {} workloads, {} services, {} rejected documents",
        status.snapshot.version, status.snapshot.workloads, status.snapshot.services, status.rejections
    );
    let level = if status.rejections == 0 {
        Level::Ok
    } else {
        Level::Warn
    };
    check(
        "configuration",
        level,
        detail,
        "`meshctl config` says what is wrong, with file, line and column",
    )
}

fn pods(workloads: &Workloads) -> Check {
    let local = || workloads.workloads.iter().filter(|w| w.local);
    let name = |w: &WorkloadEntry, why: &Option<String>| {
        format!(
            "{}/{}: {}",
            w.namespace,
            w.name,
            why.as_deref().unwrap_or("no reason given")
        )
    };
    let failed = local().filter_map(|w| match (w.capture, w.enrolment) {
        (CaptureState::Failed, _) => Some(name(w, &w.capture_reason)),
        (_, EnrolmentState::Refused) => Some(name(w, &w.enrolment_reason)),
        _ => None,
    });
    let failed: Vec<String> = failed.collect();
    let pending: Vec<String> = local()
        .filter(|w| w.capture == CaptureState::Pending)
        .map(|w| name(w, &w.capture_reason))
        .collect();
    let captured = local().filter(|w| w.capture == CaptureState::Captured).count();
    let wanted = captured + failed.len() + pending.len();
    let mut detail = format!("{captured} of {wanted} pods that ask for the mesh are captured");
    for line in failed.iter().chain(&pending) {
        detail += &format!("\n{line}");
    }
    let level = match (failed.is_empty(), pending.is_empty()) {
        (false, _) => Level::Fail,
        (true, false) => Level::Warn,
        (true, true) => Level::Ok,
    };
    check(
        "pods",
        level,
        detail,
        "set right what each line names; it is tried again by itself",
    )
}

/// Nothing where the plugin is not wanted.
fn cni(status: &Status) -> Option<Check> {
    let cni = status.cni.as_ref()?;
    let (level, detail) = if cni.installed {
        let detail = format!("the container runtime calls it by {}", cni.detail);
        (Level::Ok, detail)
    } else {
        (Level::Warn, format!("it is not installed: {}", cni.detail))
    };
    Some(check(
        "CNI plugin",
        level,
        detail,
        "new pods are captured some hundred milliseconds after they have begun; see --cni-conf-dir and --cni-bin-dir",
    ))
}

/// Pods are found without it, too: it matters where a pod's processes are in several network namespaces.
fn container_runtime(status: &Status) -> Check {
    let name = "container runtime";
    let Some(runtime) = &status.container_runtime else {
        let detail = "pods are not looked for: annotations say where they live".to_owned();
        return check(name, Level::Ok, detail, "");
    };
    let level = match runtime.state {
        RuntimeState::Off | RuntimeState::Up => Level::Ok,
        RuntimeState::Asking | RuntimeState::Down => Level::Warn,
    };
    check(
        name,
        level,
        runtime.detail.clone(),
        "name its socket with --pods-cri-socket, or `off` if there is none",
    )
}

fn certificates(certificates: &Certificates) -> Check {
    let all = &certificates.certificates;
    let of = |state| all.iter().filter(move |c| c.state == state);
    let missing = of(CertificateState::Pending).count() + of(CertificateState::Expired).count();
    let failing = of(CertificateState::RenewalFailing).count();
    let mut detail = format!(
        "{} of {} identities have a valid certificate",
        all.len() - missing,
        all.len()
    );
    for entry in all {
        if let Some(error) = &entry.error {
            detail += &format!("\n{}: {error}", entry.identity);
        }
    }
    let level = match (missing, failing) {
        (0, 0) => Level::Ok,
        (0, _) => Level::Warn,
        _ => Level::Fail,
    };
    check(
        "certificates",
        level,
        detail,
        "look at the issuer; it is tried again by itself",
    )
}

fn maps(bpf: &Bpf) -> Check {
    let full: Vec<String> = bpf
        .maps
        .iter()
        .filter_map(|map| {
            let entries = map.entries?;
            let full = map.capacity > 0 && entries as f64 / map.capacity as f64 > FULL;
            full.then(|| format!("{} holds {entries} of {}", map.name, map.capacity))
        })
        .collect();
    if full.is_empty() {
        return check(
            "bpf maps",
            Level::Ok,
            format!("{} maps with room", bpf.maps.len()),
            "",
        );
    }
    check(
        "bpf maps",
        Level::Warn,
        full.join("\n"),
        "a full map refuses connections; see `meshctl connections`",
    )
}

fn shadowed_ports(bpf: &Bpf) -> Check {
    let mut lines = Vec::new();
    for pod in bpf.pods.iter().filter(|pod| !pod.shadowed_ports.is_empty()) {
        let ports: Vec<String> = pod.shadowed_ports.iter().map(ToString::to_string).collect();
        lines.push(format!("{} listens on {}", pod.workload, ports.join(", ")));
    }
    if lines.is_empty() {
        return check(
            "ports",
            Level::Ok,
            "no pod listens on the agent's ports".to_owned(),
            "",
        );
    }
    check(
        "ports",
        Level::Warn,
        lines.join("\n"),
        "these ports are the agent's: nobody off the pod reaches them",
    )
}

/// Without a kubelet there is nothing to pass; it matters where pods declare probes.
fn probes(passage: Option<&ProbePassage>, workloads: &Workloads) -> Check {
    let declaring = workloads
        .workloads
        .iter()
        .filter(|w| !w.uncaptured.probe_ports.is_empty());
    let declaring: BTreeSet<String> = declaring.map(|w| format!("{}/{}", w.namespace, w.name)).collect();
    let (level, found) = match passage {
        None => (Level::Ok, "not looked at yet".to_owned()),
        Some(ProbePassage::Of(cgroup)) => {
            let detail = format!(
                "those of the kubelet in {} reach the ports declared for them",
                cgroup.display()
            );
            (Level::Ok, detail)
        }
        Some(ProbePassage::OfProcess { cgroup, pid }) => {
            let detail = format!(
                "those of the kubelet, process {pid}, reach the ports declared for them; its cgroup {} is not its own, so no other process there counts",
                cgroup.display()
            );
            (Level::Ok, detail)
        }
        Some(ProbePassage::None(why @ (KubeletError::Off | KubeletError::NotFound))) => {
            let level = if declaring.is_empty() || *why == KubeletError::Off {
                Level::Ok
            } else {
                Level::Warn
            };
            (level, format!("none pass uncaptured: {why}"))
        }
        Some(ProbePassage::None(why)) => (Level::Warn, format!("none pass uncaptured: {why}")),
        Some(ProbePassage::Failed(why)) => (Level::Warn, format!("none pass uncaptured: {why}")),
    };
    let detail = if level == Level::Warn && !declaring.is_empty() {
        let pods: Vec<String> = declaring.into_iter().collect();
        format!("{found}\ndeclared by {}", pods.join(", "))
    } else {
        found
    };
    check(
        "kubelet probes",
        level,
        detail,
        "name the kubelet's own cgroup with --kubelet-cgroup; until then probes are captured like other connections, and refused where \
         the pod is STRICT",
    )
}

fn older(older: &OlderConnections) -> Check {
    let mut detail = format!(
        "{} connections go around the agent, {} were closed",
        older.connections.len(),
        older.closed
    );
    for problem in &older.problems {
        detail += &format!("\n{problem}");
    }
    let level = if older.problems.is_empty() {
        Level::Ok
    } else {
        Level::Warn
    };
    check(
        "older connections",
        level,
        detail,
        "`meshctl connections --older` lists them; restart the pods whose connections cannot be closed",
    )
}

/// Lines per connection cost more than connections do: nobody should forget that they are on.
fn debug_log(bpf: &Bpf) -> Check {
    if !bpf.log.on {
        return check(
            "bpf log",
            Level::Ok,
            "the BPF programs write no debug lines".to_owned(),
            "",
        );
    }
    let pod = bpf.log.pod.as_deref().unwrap_or("all pods");
    check(
        "bpf log",
        Level::Warn,
        format!(
            "debug lines are on for {pod}, {} s more",
            bpf.log.remaining_seconds
        ),
        "they cost time with each connection: `meshctl bpf log off`",
    )
}

fn first_packets(bpf: &Bpf) -> Check {
    let believing = bpf.pods.iter().filter(|pod| pod.believes_first_packets);
    let pods: Vec<&str> = believing.map(|pod| pod.workload.as_str()).collect();
    if pods.is_empty() {
        let detail = "no pod takes data of TCP Fast Open without a cookie".to_owned();
        return check("fast open", Level::Ok, detail, "");
    }
    check(
        "fast open",
        Level::Fail,
        format!("net.ipv4.tcp_fastopen has bit 0x200 in: {}", pods.join(", ")),
        "packets with forged sources reach these applications: clear the bit",
    )
}

fn foreign_programs(bpf: &Bpf) -> Check {
    let mut found: BTreeMap<&BpfForeign, usize> = BTreeMap::new();
    for program in bpf.pods.iter().flat_map(|pod| &pod.foreign) {
        *found.entry(program).or_default() += 1;
    }
    if found.is_empty() {
        let detail = "no program of others sees the sockets of captured pods".to_owned();
        return check("foreign programs", Level::Ok, detail, "");
    }
    let line = |(program, pods): (&BpfForeign, usize)| {
        let name = if program.name.is_empty() {
            "(no name)"
        } else {
            &program.name
        };
        let meaning = foreign_meaning(&program.hook);
        format!(
            "{} {name} (id {}), {pods} pods: {meaning}",
            program.hook, program.id
        )
    };
    let lines: Vec<String> = found.into_iter().map(line).collect();
    check(
        "foreign programs",
        Level::Warn,
        lines.join("\n"),
        "`bpftool prog show id ID` and `bpftool cgroup tree` say whose they are; harmless where each line says what you expect",
    )
}

/// What a program of others at a hook may do to capture.
fn foreign_meaning(hook: &str) -> &'static str {
    match hook {
        "sk_lookup" => "may choose another listener than the agent's: inbound connections could go around it",
        "connect4" | "connect6" => "runs after ours, and sees the agent's port instead of the destination",
        "getpeername4" | "getpeername6" => "runs after ours, and may change the names that we show",
        "getsockname4" | "getsockname6" => "may change an application's own name",
        "sock_create" => "may refuse sockets or bind them to a device (see connect_refused_device)",
        "setsockopt" => "may refuse or change options",
        "bind4" | "bind6" => "may refuse or move binds, not connections",
        _ => "sees the sockets' events, and may change their options",
    }
}

fn workers(workers: &[WorkerStatus]) -> Check {
    let panics: u64 = workers.iter().map(|w| w.panics).sum();
    let tunnels: usize = workers.iter().map(|w| w.tunnels).sum();
    let detail = format!(
        "{} workers, {tunnels} tunnels dialled, {panics} tasks panicked",
        workers.len()
    );
    let level = if panics == 0 { Level::Ok } else { Level::Warn };
    check(
        "workers",
        level,
        detail,
        "a panic is a fault of the agent and cost one connection: please report it",
    )
}

#[cfg(test)]
mod tests;
