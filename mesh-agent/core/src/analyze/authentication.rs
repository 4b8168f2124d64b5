//! PeerAuthentications that do nothing, or something else than they seem to.

use std::collections::BTreeSet;

use super::services::target;
use super::world::{Member, World, all_out};
use super::{Code, Found, Named, counted};
use crate::manifest::Path;
use crate::model::{ObjectRef, PeerAuthentication, Scope};

pub(super) fn look(world: &World<'_>, say: &mut dyn FnMut(Found<'_>)) {
    // Those that count for nothing as a whole are reported when the snapshot is built.
    let in_force: BTreeSet<ObjectRef> = world
        .snapshot
        .peer_authentications()
        .iter()
        .map(|policy| ObjectRef::new("PeerAuthentication", &policy.namespace, &policy.name))
        .collect();
    for (named, policy) in &world.authentications {
        if !in_force.contains(&named.name) {
            continue;
        }
        effect(named, policy, say);
        if let Scope::Workload(labels) = &policy.scope {
            let members = world.selected(&policy.namespace, labels);
            selection(world, named, policy, &members, say);
            ports(world, named, policy, &members, say);
        } else if policy.namespace != world.snapshot.settings().root_namespace {
            let members: Vec<_> = world.of_namespace(&policy.namespace).collect();
            selection(world, named, policy, &members, say);
        }
    }
}

fn effect(named: &Named<'_>, policy: &PeerAuthentication, say: &mut dyn FnMut(Found<'_>)) {
    if policy.mode.is_none() && policy.ports.values().all(Option::is_none) {
        say(Found {
            code: Code::AuthenticationWithoutEffect,
            object: named,
            path: Path::of("spec"),
            message: "it sets no mode, so what its workloads accept is what it would be without it"
                .to_owned(),
            advice: "set spec.mtls.mode to STRICT or PERMISSIVE, or take the policy out".to_owned(),
        });
    }
}

fn selection(
    world: &World<'_>,
    named: &Named<'_>,
    policy: &PeerAuthentication,
    members: &[&Member<'_>],
    say: &mut dyn FnMut(Found<'_>),
) {
    let path = match policy.scope {
        Scope::Workload(_) => Path::of("spec.selector.matchLabels"),
        Scope::Mesh | Scope::Namespace => Path::of("spec"),
    };
    // That a namespace is empty is no fault of a policy for all of it.
    let narrowed = matches!(policy.scope, Scope::Workload(_)) || !world.knows_namespace(&policy.namespace);
    if members.is_empty() && narrowed && world.can_miss(&policy.namespace) {
        let among = match world.known.everything {
            true => " that there is at present",
            false => " of these documents",
        };
        say(Found {
            code: Code::AuthenticationSelectsNothing,
            object: named,
            path,
            message: format!("it selects no workload{among}"),
            advice: "does the selector fit the labels of the pods (not of the Deployment), and the namespace theirs?".to_owned(),
        });
    } else if all_out(members) {
        let verb = if members.len() == 1 { "is" } else { "are" };
        say(Found {
            code: Code::AuthenticationOutsideMesh,
            object: named,
            path,
            message: format!(
                "the {} that it selects {verb} not enrolled in the mesh: they accept plaintext whatever it says",
                counted(members.len(), "workload", "workloads")
            ),
            advice: format!(
                "enrol them: label the namespace {} or the pods mesh-agent.io/dataplane=enabled",
                policy.namespace
            ),
        });
    }
}

/// Ports here are those of workloads. One that only a Service has is a slip.
fn ports(
    world: &World<'_>,
    named: &Named<'_>,
    policy: &PeerAuthentication,
    members: &[&Member<'_>],
    say: &mut dyn FnMut(Found<'_>),
) {
    for port in policy.ports.keys() {
        let declared = |member: &&Member<'_>| {
            member.pod.ports.values().any(|own| own == port) || member.pod.probe_ports.contains(port)
        };
        if members.iter().any(declared) {
            continue;
        }
        let mut served = false;
        let mut mistaken = None;
        for (_, service) in &world.services {
            let selects = |member: &&&Member<'_>| {
                let has = |(key, value): (&String, &String)| member.pod.labels.get(key) == Some(value);
                !service.selector.is_empty() && service.selector.iter().all(has)
            };
            if *service.name.namespace != *policy.namespace {
                continue;
            }
            for member in members.iter().filter(selects) {
                for spec in &service.ports {
                    match target(spec, member.pod) {
                        Some(number) if number == *port => served = true,
                        Some(number) if spec.port == *port => mistaken = Some((&service.name, number)),
                        _ => {}
                    }
                }
            }
        }
        if let (false, Some((service, number))) = (served, mistaken) {
            say(Found {
                code: Code::ServicePortInAuthentication,
                object: named,
                path: Path::of("spec.portLevelMtls").key(&port.to_string()),
                message: format!(
                    "portLevelMtls names port {port} of Service {service}; ports here are those of the pods, which serve it at {number}"
                ),
                advice: format!("write {number} instead of {port}"),
            });
        }
    }
}
