//! The ports of a Pod that its probes and lifecycle hooks name: where the kubelet connects to.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::check;
use super::report::{NoticeKind, Path, Remarks};

/// The ports of all probes and hooks, of init containers and sidecars too. One that cannot be told is reported and left out: the
/// kubelet's connections to it are captured like others.
pub(super) fn ports(spec: Option<&core::PodSpec>, remarks: &mut Remarks) -> BTreeSet<u16> {
    let mut found = BTreeSet::new();
    let Some(spec) = spec else { return found };
    let init = spec.init_containers.iter().flatten().enumerate();
    let containers = spec.containers.iter().enumerate();
    let all = containers
        .map(|(i, c)| ("containers", i, c))
        .chain(init.map(|(i, c)| ("initContainers", i, c)));
    for (group, i, container) in all {
        let at = Path::of("spec").key(group).index(i);
        for (path, target) in targets(container) {
            let path = path.iter().fold(at.clone(), |path, key| path.key(key));
            match number(container, &target) {
                Ok(port) => drop(found.insert(port)),
                Err(why) => {
                    let message =
                        format!("{path}: {why}; the kubelet's connections to it are captured like others");
                    remarks.add(path, NoticeKind::Ignored, message);
                }
            }
        }
    }
    found
}

/// Where a probe leads, and the path of the field that says so.
type Target = (Vec<&'static str>, IntOrString);

/// The targets of a container's probes and hooks that lead to the pod itself.
fn targets(container: &core::Container) -> Vec<Target> {
    let mut found = Vec::new();
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        let Some(probe) = probe else { continue };
        http(&mut found, &[name], probe.http_get.as_ref());
        tcp(&mut found, &[name], probe.tcp_socket.as_ref());
        if let Some(grpc) = &probe.grpc {
            found.push((vec![name, "grpc", "port"], IntOrString::Int(grpc.port)));
        }
    }
    let lifecycle = container.lifecycle.as_ref();
    let hooks = [
        ("postStart", lifecycle.and_then(|l| l.post_start.as_ref())),
        ("preStop", lifecycle.and_then(|l| l.pre_stop.as_ref())),
    ];
    for (name, hook) in hooks {
        let Some(hook) = hook else { continue };
        http(&mut found, &["lifecycle", name], hook.http_get.as_ref());
        tcp(&mut found, &["lifecycle", name], hook.tcp_socket.as_ref());
    }
    found
}

fn http(found: &mut Vec<Target>, at: &[&'static str], action: Option<&core::HTTPGetAction>) {
    if let Some(action) = action {
        target(
            found,
            [at, &["httpGet", "port"]].concat(),
            action.host.as_deref(),
            &action.port,
        );
    }
}

fn tcp(found: &mut Vec<Target>, at: &[&'static str], action: Option<&core::TCPSocketAction>) {
    if let Some(action) = action {
        target(
            found,
            [at, &["tcpSocket", "port"]].concat(),
            action.host.as_deref(),
            &action.port,
        );
    }
}

/// With a `host` it leads to another place than the pod.
fn target(found: &mut Vec<Target>, path: Vec<&'static str>, host: Option<&str>, port: &IntOrString) {
    if host.is_none_or(str::is_empty) {
        found.push((path, port.clone()));
    }
}

/// A name means a TCP port of the same container, as it does to the kubelet; so does a number in quotes.
fn number(container: &core::Container, target: &IntOrString) -> Result<u16, String> {
    let number = match target {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_ref() == Some(name) && check::is_tcp(port.protocol.as_deref()));
            match (named, name.parse()) {
                (Some(port), _) => port.container_port,
                (None, Ok(number)) => number,
                (None, Err(_)) => {
                    return Err(format!("the container has no TCP port named {name:?}"));
                }
            }
        }
    };
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{number} is no port: expected 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(containers: &str) -> (BTreeSet<u16>, Vec<String>) {
        let spec: core::PodSpec =
            serde_json::from_value(serde_saphyr::from_str(containers).unwrap()).unwrap();
        let mut remarks = Remarks::default();
        let ports = ports(Some(&spec), &mut remarks);
        (
            ports,
            remarks.0.into_iter().map(|(.., message)| message).collect(),
        )
    }

    #[test]
    fn every_kind_of_probe_and_hook_counts_by_number_and_by_name() {
        let (ports, remarks) = read(
            "
containers:
- name: a
  ports: [{name: web, containerPort: 8080}, {name: health, containerPort: 8081}, {name: dns, containerPort: 53, protocol: UDP}]
  livenessProbe: {httpGet: {port: health, path: /live}}
  readinessProbe: {tcpSocket: {port: 9001}}
  startupProbe: {grpc: {port: 9002}}
  lifecycle:
    postStart: {httpGet: {port: '9003'}}
    preStop: {tcpSocket: {port: web}}
- name: b
  livenessProbe: {exec: {command: ['true']}}
initContainers:
- name: sidecar
  restartPolicy: Always
  ports: [{name: web, containerPort: 7000}]
  startupProbe: {httpGet: {port: web}}
",
        );
        assert_eq!(ports, [7000, 8080, 8081, 9001, 9002, 9003].into());
        assert!(remarks.is_empty(), "{remarks:?}");
    }

    #[test]
    fn a_probe_of_another_host_names_no_port_of_the_pod() {
        let (ports, remarks) =
            read("containers: [{name: a, livenessProbe: {httpGet: {port: 80, host: example.org}}}]");
        assert!(ports.is_empty() && remarks.is_empty(), "{ports:?} {remarks:?}");
    }

    #[test]
    fn a_port_that_cannot_be_told_is_reported_with_its_place() {
        let (ports, remarks) = read(
            "
containers:
- name: a
  ports: [{name: dns, containerPort: 53, protocol: UDP}]
  livenessProbe: {httpGet: {port: dns}}
  readinessProbe: {tcpSocket: {port: 0}}
- name: b
  startupProbe: {httpGet: {port: web}}
",
        );
        assert!(ports.is_empty(), "{ports:?}");
        assert_eq!(remarks.len(), 3, "{remarks:?}");
        assert!(
            remarks[0].starts_with("spec.containers[0].livenessProbe.httpGet.port: "),
            "{remarks:?}"
        );
    }
}
