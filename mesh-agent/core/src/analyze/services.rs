//! Services and EndpointSlices that lead nowhere, or not where they seem to.

use std::collections::HashSet;

use mesh_common::is_agent_port;

use super::world::{Member, Mesh, World};
use super::{Code, Found, Named};
use crate::manifest::Path;
use crate::model::{ObjectRef, Pod, PortSpec, ServiceSpec, TargetPort};

pub(super) fn look(world: &World<'_>, say: &mut dyn FnMut(Found<'_>)) {
    // Endpoints may be written by hand, too.
    let served: HashSet<(&str, &str)> = world
        .slices
        .iter()
        .filter(|(_, slice)| !slice.endpoints.is_empty())
        .filter_map(|(_, slice)| Some((slice.namespace.as_str(), slice.service.as_deref()?)))
        .collect();
    for (named, service) in world
        .services
        .iter()
        .filter(|(_, service)| !service.external_name)
    {
        if service.ports.is_empty() {
            say(Found {
                code: Code::NoTcpPort,
                object: named,
                path: Path::of("spec.ports"),
                message: "it has no TCP port: the mesh carries nothing to it".to_owned(),
                advice: "nothing, if it serves UDP or SCTP alone: these pass uncaptured".to_owned(),
            });
        }
        if service.selector.is_empty() {
            continue;
        }
        let namespace = &*service.name.namespace;
        let members = world.selected(namespace, &service.selector);
        let has_endpoints = served.contains(&(namespace, &*service.name.name));
        if members.is_empty() && !has_endpoints && world.can_miss(namespace) {
            let among = match world.known.everything {
                true => " that there is at present",
                false => " of these documents",
            };
            say(Found {
                code: Code::ServiceSelectsNothing,
                object: named,
                path: Path::of("spec.selector"),
                message: format!("it selects no pod{among}: connections to it are refused"),
                advice: "does the selector fit the labels of the pods, in the same namespace?".to_owned(),
            });
        }
        targets(named, service, &members, say);
        mixed(named, &members, say);
    }
    slices(world, say);
}

fn targets(
    named: &Named<'_>,
    service: &ServiceSpec,
    members: &[&Member<'_>],
    say: &mut dyn FnMut(Found<'_>),
) {
    for spec in &service.ports {
        if let TargetPort::Name(name) = &spec.target
            && !members.is_empty()
            && members.iter().all(|member| target(spec, member.pod).is_none())
        {
            say(Found {
                code: Code::TargetPortMissing,
                object: named,
                path: Path::of("spec.ports"),
                message: format!(
                    "port {}: no pod that it selects has a TCP port named {name:?}, so it leads nowhere",
                    spec.port
                ),
                advice: "name the port in the pods' containers, or write its number as targetPort".to_owned(),
            });
        }
        let agents = members
            .iter()
            .filter(|member| member.mesh == Mesh::In)
            .filter_map(|member| target(spec, member.pod))
            .find(|number| is_agent_port(*number));
        if let Some(number) = agents {
            say(Found {
                code: Code::AgentPort,
                object: named,
                path: Path::of("spec.ports"),
                message: format!(
                    "port {} leads to port {number} of enrolled pods, which is the mesh agent's: it is refused",
                    spec.port
                ),
                advice: "let the application listen on another port".to_owned(),
            });
        }
    }
}

fn mixed(named: &Named<'_>, members: &[&Member<'_>], say: &mut dyn FnMut(Found<'_>)) {
    let count = |mesh: Mesh| members.iter().filter(|member| member.mesh == mesh).count();
    let (inside, outside) = (count(Mesh::In), count(Mesh::Out));
    if inside > 0 && outside > 0 {
        say(Found {
            code: Code::MixedService,
            object: named,
            path: Path::of("spec.selector"),
            message: format!(
                "{inside} of the pods that it selects are enrolled and {outside} are not: enrolled clients reach the former by mutual \
                 TLS and the latter in plaintext"
            ),
            advice: "enrol all of them, unless that is under way".to_owned(),
        });
    }
}

fn slices(world: &World<'_>, say: &mut dyn FnMut(Found<'_>)) {
    if !world.known.everything {
        return;
    }
    let services: HashSet<(&str, &str)> = world
        .services
        .iter()
        .map(|(_, service)| (&*service.name.namespace, &*service.name.name))
        .collect();
    for (named, slice) in &world.slices {
        let Some(service) = slice.service.as_deref() else {
            continue;
        };
        let object = ObjectRef::new("Service", &slice.namespace, service);
        if !services.contains(&(slice.namespace.as_str(), service)) && !world.is_rejected(&object) {
            say(Found {
                code: Code::SliceWithoutService,
                object: named,
                path: Path::of("metadata.labels"),
                message: format!("it belongs to {object}, which does not exist: its endpoints serve nobody"),
                advice: "correct the label kubernetes.io/service-name, or take the slice out".to_owned(),
            });
        }
    }
}

/// The port of `pod` that a Service's port leads to.
pub(super) fn target(spec: &PortSpec, pod: &Pod) -> Option<u16> {
    match &spec.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod.ports.get(name).copied(),
    }
}
