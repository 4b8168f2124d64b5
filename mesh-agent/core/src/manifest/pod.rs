//! v1 Pod, v1 Namespace and v1 Node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::report::{Invalid, NoticeKind, Path, Remarks};
use super::{check, exclusions, probes};
use crate::model::{Location, Namespace, Node, Owner, Pod};

const NETNS: &str = "mesh-agent.io/netns";
const ZONE: &str = "topology.kubernetes.io/zone";
const CGROUP: &str = "mesh-agent.io/cgroup";
/// The annotations that place a pod on its host.
pub const PLACEMENT: [&str; 2] = [NETNS, CGROUP];
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
const SIDECARS: [&str; 2] = ["istio-proxy", "linkerd-proxy"];

/// A Namespace from the document.
///
/// # Errors
/// When its name is missing or no name.
pub fn namespace(document: &core::Namespace, remarks: &mut Remarks) -> Result<Namespace, Invalid> {
    Ok(Namespace {
        name: check::name(&document.metadata)?,
        wishes: check::wishes(document.metadata.labels.as_ref(), remarks),
    })
}

/// A Node from the document.
///
/// # Errors
/// When its name is missing or no name.
pub fn node(document: &core::Node, _: &mut Remarks) -> Result<Node, Invalid> {
    let zone = document
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(ZONE));
    // Host names stand there too; like the addresses in a pod's status, these only ever keep others away from an address.
    let status = document.status.as_ref();
    let listed = status.and_then(|s| s.addresses.as_ref()).into_iter().flatten();
    let addresses = listed.filter_map(|entry| entry.address.parse::<IpAddr>().ok());
    Ok(Node {
        name: check::name(&document.metadata)?,
        zone: zone.filter(|zone| !zone.is_empty()).cloned(),
        addresses: addresses.map(|address| address.to_canonical()).collect(),
    })
}

/// A Pod from the document. The annotations that place it ([`Pod::location`]) are taken at their word: a source whose pods are written
/// by tenants must clear them.
///
/// # Errors
/// When a name, address, port or annotation cannot be what it says.
pub fn pod(document: &core::Pod, remarks: &mut Remarks) -> Result<Pod, Invalid> {
    let meta = &document.metadata;
    let spec = document.spec.as_ref();
    let status = document.status.as_ref();
    let service_account = match spec.and_then(|s| s.service_account_name.as_deref()) {
        None | Some("") => "default".to_owned(),
        Some(name) => check::kubernetes_name(name, "spec.serviceAccountName")?,
    };
    let phase = status.and_then(|s| s.phase.as_deref());
    Ok(Pod {
        namespace: check::namespace(meta)?,
        name: check::name(meta)?,
        uid: meta.uid.clone().unwrap_or_default(),
        service_account,
        node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        addresses: addresses(status)?,
        node_addresses: node_addresses(status, remarks),
        host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
        ports: named_ports(spec, remarks)?.into(),
        labels: meta.labels.clone().unwrap_or_default().into(),
        wishes: check::wishes(meta.labels.as_ref(), remarks),
        obstacle: obstacle(document),
        ready: is_ready(status),
        terminating: meta.deletion_timestamp.is_some(),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        location: location(meta.annotations.as_ref())?,
        probe_ports: probes::ports(spec, remarks),
        exclusions: exclusions::asked(meta.annotations.as_ref(), remarks),
        owner: owner(document).into(),
    })
}

/// `status.podIPs`, and `status.podIP` where that does not name it.
fn addresses(status: Option<&core::PodStatus>) -> Result<Vec<IpAddr>, Invalid> {
    let mut found = Vec::new();
    let Some(status) = status else { return Ok(found) };
    for (i, entry) in status.pod_ips.iter().flatten().enumerate() {
        let path = Path::of("status.podIPs").index(i).key("ip");
        let address = check::address(&entry.ip, path)?;
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if let Some(text) = status.pod_ip.as_deref().filter(|text| !text.is_empty()) {
        let address = check::address(text, Path::of("status.podIP"))?;
        if !found.contains(&address) {
            found.push(address);
        }
    }
    Ok(found)
}

/// The addresses of the pod's node. They only ever keep identities away from addresses, so a strange one does no harm.
fn node_addresses(status: Option<&core::PodStatus>, remarks: &mut Remarks) -> Vec<IpAddr> {
    let Some(status) = status else { return Vec::new() };
    let listed = status.host_ips.iter().flatten().map(|entry| entry.ip.as_str());
    let mut found = Vec::new();
    for text in listed.chain(status.host_ip.as_deref()) {
        match text.parse::<IpAddr>() {
            Ok(address) if found.contains(&address.to_canonical()) => {}
            Ok(address) => found.push(address.to_canonical()),
            Err(_) => remarks.add(
                Path::of("status.hostIPs"),
                NoticeKind::Ignored,
                format!("{text:?} is no IP address of a node: ignored"),
            ),
        }
    }
    found
}

fn named_ports(
    spec: Option<&core::PodSpec>,
    remarks: &mut Remarks,
) -> Result<BTreeMap<String, u16>, Invalid> {
    let mut ports = BTreeMap::new();
    let Some(spec) = spec else { return Ok(ports) };
    // Restartable init containers are native sidecars: their ports count.
    let init = spec.init_containers.iter().flatten();
    let groups = [
        ("containers", spec.containers.iter().collect::<Vec<_>>()),
        ("initContainers", init.collect()),
    ];
    for (group, containers) in groups {
        for (i, container) in containers.into_iter().enumerate() {
            if group == "initContainers" && container.restart_policy.as_deref() != Some("Always") {
                continue;
            }
            for (j, entry) in container.ports.iter().flatten().enumerate() {
                let path = Path::of("spec").key(group).index(i).key("ports").index(j);
                let number = check::port(entry.container_port.into(), path.clone().key("containerPort"))?;
                let (Some(name), true) = (entry.name.as_ref(), check::is_tcp(entry.protocol.as_deref()))
                else {
                    continue;
                };
                let first = *ports.entry(name.clone()).or_insert(number);
                if first != number {
                    let message =
                        format!("port name {name:?} stands for {first} already: {number} is ignored");
                    remarks.add(path.key("name"), NoticeKind::Conflict, message);
                }
            }
        }
    }
    Ok(ports)
}

/// Why capture of this pod would be a pretence.
fn obstacle(document: &core::Pod) -> Option<String> {
    let spec = document.spec.as_ref();
    if spec.and_then(|s| s.host_network) == Some(true) {
        return Some(
            "it runs in the host's network namespace (hostNetwork), which it shares with others".into(),
        );
    }
    let annotated = |key: &str| {
        document
            .metadata
            .annotations
            .as_ref()
            .is_some_and(|a| a.contains_key(key))
    };
    let labelled = |key: &str| {
        document
            .metadata
            .labels
            .as_ref()
            .is_some_and(|l| l.contains_key(key))
    };
    if annotated(SIDECAR_STATUS) {
        return Some(format!(
            "it carries a sidecar proxy (annotation {SIDECAR_STATUS})"
        ));
    }
    let containers = spec.map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let sidecar = containers.and_then(|mut c| c.find(|c| SIDECARS.contains(&c.name.as_str())));
    if let Some(sidecar) = sidecar {
        return Some(format!("it carries a sidecar proxy (container {})", sidecar.name));
    }
    if let Some(class) = spec.and_then(|s| s.runtime_class_name.as_deref()) {
        let lower = class.to_ascii_lowercase();
        if ["gvisor", "runsc", "kata", "firecracker"]
            .iter()
            .any(|sandbox| lower.contains(sandbox))
        {
            return Some(format!(
                "runtimeClassName {class} keeps its sockets in a sandbox of its own, where they cannot be captured"
            ));
        }
    }
    if labelled("kubevirt.io") || annotated("kubevirt.io/domain") {
        return Some("it is a KubeVirt virtual machine, whose guest's sockets cannot be captured".into());
    }
    None
}

fn is_ready(status: Option<&core::PodStatus>) -> bool {
    match status.and_then(|s| s.conditions.as_ref()) {
        None => true,
        Some(conditions) if conditions.is_empty() => true,
        Some(conditions) => conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
    }
}

fn location(annotations: Option<&BTreeMap<String, String>>) -> Result<Option<Location>, Invalid> {
    let get = |key: &str| annotations.and_then(|a| a.get(key)).map(|value| value.trim());
    let at = |key: &str| Path::of("metadata.annotations").key(key);
    let (netns, cgroup) = match (get(NETNS), get(CGROUP)) {
        (None, None) => return Ok(None),
        (Some(netns), Some(cgroup)) => (netns, cgroup),
        (Some(_), None) => {
            let message = format!("annotation {NETNS} stands without {CGROUP}: expected both or neither");
            return Err(Invalid::at(at(NETNS), message));
        }
        (None, Some(_)) => {
            let message = format!("annotation {CGROUP} stands without {NETNS}: expected both or neither");
            return Err(Invalid::at(at(CGROUP), message));
        }
    };
    let climbs = |path: &str| path.split('/').any(|part| part == ".." || part == ".");
    if !netns.starts_with('/') || climbs(netns) || netns.contains('\0') {
        let message = format!(
            "annotation {NETNS} is {netns:?}: expected the absolute path of a network namespace, such as /run/netns/order"
        );
        return Err(Invalid::at(at(NETNS), message));
    }
    if cgroup.trim_matches('/').is_empty() || climbs(cgroup) || cgroup.contains('\0') {
        let message = format!(
            "annotation {CGROUP} is {cgroup:?}: expected the path of the workload's own cgroup, absolute or below the cgroup2 \
             mount, such as mesh/order"
        );
        return Err(Invalid::at(at(CGROUP), message));
    }
    Ok(Some(Location {
        netns: netns.to_owned(),
        cgroup: cgroup.to_owned(),
    }))
}

/// The controller, with the hash stripped where a Deployment (or Rollout) or a CronJob stands behind it.
fn owner(document: &core::Pod) -> Owner {
    let meta = &document.metadata;
    let own = |kind: &str, name: &str| Owner {
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    let controller = meta
        .owner_references
        .iter()
        .flatten()
        .find(|reference| reference.controller == Some(true))
        .or_else(|| meta.owner_references.iter().flatten().next());
    let Some(controller) = controller else {
        return own("Pod", meta.name.as_deref().unwrap_or_default());
    };
    let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key));
    let behind = |kind: &str, hash: Option<&String>| {
        let stripped = controller.name.strip_suffix(hash?.as_str())?.strip_suffix('-')?;
        (!stripped.is_empty()).then(|| own(kind, stripped))
    };
    let stripped = match controller.kind.as_str() {
        "ReplicaSet" => behind("Deployment", label("pod-template-hash"))
            .or_else(|| behind("Rollout", label("rollouts-pod-template-hash"))),
        "Job" => cron_job(&controller.name).map(|name| own("CronJob", name)),
        _ => None,
    };
    stripped.unwrap_or_else(|| own(&controller.kind, &controller.name))
}

/// The CronJob that made the Job `name`: it adds the scheduled time, 8 to 10 digits.
fn cron_job(name: &str) -> Option<&str> {
    let (stem, digits) = name.rsplit_once('-')?;
    let scheduled = (8..=10).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_digit());
    (scheduled && !stem.is_empty()).then_some(stem)
}
