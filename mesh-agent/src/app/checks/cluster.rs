//! What `meshctl check` says about the cluster around the agent, by what its sources have learnt anyway.

use std::collections::BTreeMap;

use mesh_core::snapshot::IstioLabel;

use super::{Facts, check};
use crate::admin::document::{Check, EnrolmentState, Level, Status, WorkloadEntry, Workloads};
use crate::sources::{KindState, KindStatus, ServerStatus};

/// Oldest minor version of Kubernetes 1 that has all that is asked for (discovery.k8s.io/v1).
const OLDEST: u32 = 21;
/// Minor versions with whose recorded answers the source is tested.
const TESTED: [u32; 1] = [33];
/// A view is old when the server was not heard for so long: it says something each minute, and a watch begins anew within six.
const OLD_VIEW: u64 = 600;

/// A pod of the agents' DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::app) struct AgentPod {
    pub(in crate::app) node: String,
    /// Which version of the DaemonSet it is of.
    pub(in crate::app) revision: String,
    pub(in crate::app) ready: bool,
}

/// Those that apply.
pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let mut checks: Vec<Check> = facts.servers.iter().map(version).collect();
    if !facts.kinds.is_empty() {
        checks.extend([
            definitions(&facts.kinds),
            access(&facts.kinds),
            view(&facts.kinds),
        ]);
    }
    checks.extend(agents(&facts.agents));
    checks.push(other_meshes(&facts.status, &facts.workloads, facts.istio_label));
    checks
}

fn version(server: &ServerStatus) -> Check {
    let name = "api version";
    let address = &server.address;
    let Some(version) = &server.version else {
        let problem = server.problem.as_deref().unwrap_or("it was not asked yet");
        return check(
            name,
            Level::Warn,
            format!("the version of {address} is not known: {problem}"),
            "the API server check says whether it can be reached",
        );
    };
    let tested: Vec<String> = TESTED.iter().map(|minor| format!("1.{minor}")).collect();
    let tested = tested.join(", ");
    let (level, detail) = match minor(version) {
        Some(minor) if TESTED.contains(&minor) => {
            (Level::Ok, format!("{address} is {version}, which is tested"))
        }
        Some(minor) if minor >= OLDEST => (
            Level::Ok,
            format!("{address} is {version}, which has all that is needed; tested is {tested}"),
        ),
        Some(_) => (
            Level::Fail,
            format!("{address} is {version}: it has no discovery.k8s.io/v1, so no endpoints are known"),
        ),
        None => (
            Level::Warn,
            format!("{address} says {version:?}, which is no version of Kubernetes 1; tested is {tested}"),
        ),
    };
    check(name, level, detail, "Kubernetes 1.21 or newer is needed")
}

/// Of `v1.33.1+k3s1`, 33.
fn minor(version: &str) -> Option<u32> {
    let rest = version.strip_prefix("v1.")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// In which versions kinds are there, and which are not: a policy of one that is not cannot be applied.
fn definitions(kinds: &[KindStatus]) -> Check {
    let absent: Vec<&str> = kinds
        .iter()
        .filter(|kind| kind.state == KindState::Absent)
        .map(|kind| kind.kind.as_str())
        .collect();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for kind in kinds {
        if let Some(version) = &kind.api_version {
            versions.entry(version).or_default().push(&kind.kind);
        }
    }
    let mut lines: Vec<String> = versions
        .into_iter()
        .map(|(version, kinds)| format!("{version}: {}", kinds.join(", ")))
        .collect();
    if !absent.is_empty() {
        lines.push(format!(
            "not installed: {}; none of them can be applied, and each is followed as soon as its CustomResourceDefinition is there",
            absent.join(", ")
        ));
    }
    if lines.is_empty() {
        lines.push("none is known yet".to_owned());
    }
    check("api kinds", Level::Ok, lines.join("\n"), "")
}

/// Who is refused what, by the answers that lists and watches got.
fn access(kinds: &[KindStatus]) -> Check {
    let name = "api access";
    let refused = |reason: &str| -> Vec<&KindStatus> {
        kinds
            .iter()
            .filter(|kind| kind.reason.as_deref() == Some(reason))
            .collect()
    };
    let (unauthorized, forbidden) = (refused("unauthorized"), refused("forbidden"));
    let credentials = refused("credentials");
    let all = [&unauthorized[..], &forbidden, &credentials].concat();
    if all.is_empty() {
        let heard = kinds.iter().filter(|kind| kind.age_seconds.is_some()).count();
        return check(
            name,
            Level::Ok,
            format!("nothing is refused; {heard} of {} kinds were heard", kinds.len()),
            "",
        );
    }
    let names = |kinds: &[&KindStatus]| {
        kinds
            .iter()
            .map(|kind| kind.kind.clone())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut lines = Vec::new();
    for (what, kinds) in [
        ("refused for want of permission (403)", &forbidden),
        (
            "refused, for the credentials are not accepted (401)",
            &unauthorized,
        ),
        ("not asked for, for there are no credentials", &credentials),
    ] {
        if !kinds.is_empty() {
            lines.push(format!("{what}: {}", names(kinds)));
        }
    }
    let level = match all.iter().any(|kind| kind.state == KindState::Waiting) {
        true => Level::Fail,
        false => Level::Warn,
    };
    let hint = match forbidden.is_empty() {
        false => {
            "grant the agent's account list and watch on these, as deploy/kubernetes/rbac.yaml does; `kubectl auth can-i watch pods \
                  --as system:serviceaccount:NAMESPACE:mesh-agent` asks the server"
        }
        true => "was the account or its token removed? Credentials are read again with each attempt",
    };
    check(name, level, lines.join("\n"), hint)
}

/// How old what is known is.
fn view(kinds: &[KindStatus]) -> Check {
    let heard: Vec<(u64, &KindStatus)> = kinds
        .iter()
        .filter(|kind| kind.state != KindState::Absent)
        .filter_map(|kind| Some((kind.age_seconds?, kind)))
        .collect();
    let Some((age, oldest)) = heard.iter().max_by_key(|(age, _)| *age) else {
        return check(
            "api view",
            Level::Warn,
            "the API server was not heard yet".to_owned(),
            "the API server check says why",
        );
    };
    let stored: Vec<&str> = kinds
        .iter()
        .filter(|kind| kind.state == KindState::Stored)
        .map(|kind| kind.kind.as_str())
        .collect();
    let mut detail = format!("{} was heard {age} s ago, all others since", oldest.kind);
    if !stored.is_empty() {
        detail += &format!("\nkept from an earlier run: {}", stored.join(", "));
    }
    let level = match *age > OLD_VIEW || !stored.is_empty() {
        true => Level::Warn,
        false => Level::Ok,
    };
    check(
        "api view",
        level,
        detail,
        "what changes in the cluster does not reach this node; what was known stays in force until the API server is back",
    )
}

/// Whether the agents of all nodes are of one version; nothing where their pods are not among the documents.
fn agents(agents: &[AgentPod]) -> Option<Check> {
    let mut revisions: BTreeMap<&str, Vec<&AgentPod>> = BTreeMap::new();
    for agent in agents {
        revisions.entry(&agent.revision).or_default().push(agent);
    }
    if revisions.is_empty() {
        return None;
    }
    let unready = agents.iter().filter(|agent| !agent.ready).count();
    let mut detail = format!(
        "{} agents of {} revision(s) of their DaemonSet, {unready} not ready",
        agents.len(),
        revisions.len()
    );
    let mixed = revisions.len() > 1;
    for (revision, of) in revisions.iter().filter(|_| mixed) {
        let mut nodes: Vec<&str> = of.iter().map(|agent| agent.node.as_str()).collect();
        let more = nodes.len().saturating_sub(5);
        nodes.truncate(5);
        let rest = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        detail += &format!("\n{revision}: {}{rest}", nodes.join(", "));
    }
    Some(check(
        "agents",
        if mixed { Level::Warn } else { Level::Ok },
        detail,
        "an upgrade is under way, or has stopped: `kubectl rollout status daemonset/mesh-agent`",
    ))
}

fn other_meshes(status: &Status, workloads: &Workloads, label: IstioLabel) -> Check {
    let name = "other meshes";
    let others = &status.other_meshes;
    let left = |w: &&WorkloadEntry| {
        w.local && w.enrolment == EnrolmentState::NotEnrolled && w.enrolment_reason.is_some()
    };
    let left: Vec<String> = workloads
        .workloads
        .iter()
        .filter(left)
        .map(|w| format!("{}/{}", w.namespace, w.name))
        .collect();
    if others.is_empty() && left.is_empty() {
        return check(name, Level::Ok, "none is seen on this node".to_owned(), "");
    }
    let mut lines: Vec<String> = others
        .iter()
        .map(|other| format!("{} runs on this node (Pod {})", other.part, other.pod))
        .collect();
    let istio = others.iter().any(|other| other.istio);
    let hint = match label {
        IstioLabel::Enrol if istio => {
            lines.push(
                "label istio.io/dataplane-mode enrols here all the same: both may take the same pods"
                    .to_owned(),
            );
            "set istioLabel to auto, and label pods and namespaces mesh-agent.io/dataplane=enabled where this mesh is to have them"
        }
        IstioLabel::Auto | IstioLabel::Leave if istio || !left.is_empty() => {
            lines.push(format!(
                "label istio.io/dataplane-mode is left to Istio, and with it {} pods of this node",
                left.len()
            ));
            lines.extend(left.iter().take(5).cloned());
            "label pods or namespaces mesh-agent.io/dataplane=enabled to have them here; setting istioLabel overrides what is seen"
        }
        _ => "pods with its proxies are refused one by one; see `meshctl workloads`",
    };
    check(name, Level::Warn, lines.join("\n"), hint)
}

#[cfg(test)]
mod tests;
