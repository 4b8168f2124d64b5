//! What a snapshot is, by definition: all of it from all objects at once, with nothing kept from before. The oracle that [`super::Builder`]
//! is compared with; slow and plain on purpose.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::{Contested, Diagnostics, MeshSettings, Snapshot};
use crate::manifest::{Accepted, Notice, NoticeKind};
use crate::model::{Endpoint, Enrolment, MtlsMode, Object, ObjectRef, ServiceRef};
use world::World;

/// Endpoints, as text, by port.
type Ends = BTreeMap<u16, Vec<String>>;

/// Everything that a snapshot says, as values that can be compared.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plain {
    /// By uid: identity, enrolment, node, and whether it is local.
    workloads: BTreeMap<String, (String, Enrolment, String, bool)>,
    by_address: BTreeMap<IpAddr, String>,
    contested: BTreeMap<IpAddr, (Vec<ObjectRef>, bool)>,
    /// By name: host name, ClusterIPs, and endpoints by port.
    services: BTreeMap<ServiceRef, (String, Vec<IpAddr>, Ends)>,
    by_vip: BTreeMap<IpAddr, ServiceRef>,
    by_external: BTreeMap<SocketAddr, ServiceRef>,
    by_endpoint: BTreeMap<SocketAddr, Vec<ServiceRef>>,
    zones: BTreeMap<String, String>,
    /// By uid and port, for the ports that the tests use; 0 is the default.
    mtls: BTreeMap<(String, u16), (MtlsMode, Option<ObjectRef>)>,
    /// By uid: names of the policies that select it.
    authz: BTreeMap<String, BTreeSet<String>>,
    peers: BTreeSet<String>,
    policies: Vec<String>,
    enrolled: BTreeSet<IpAddr>,
    /// By name: whether it is enrolled, and whether a pod says otherwise.
    namespaces: BTreeMap<String, (bool, bool)>,
    notices: Vec<Notice>,
}

/// The ports at which PeerAuthentications are compared.
const PORTS: [u16; 3] = [0, 80, 8080];

impl Plain {
    /// What `snapshot` says.
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let mut plain = Self::default();
        let local: BTreeSet<&str> = snapshot.local_workloads().map(|w| w.uid.as_str()).collect();
        for member in snapshot.members.values() {
            let workload = &member.workload;
            let uid = workload.uid.to_string();
            let shown = (
                workload.identity.to_string(),
                workload.enrolment.clone(),
                workload.node.clone(),
                local.contains(workload.uid.as_str()),
            );
            plain.workloads.insert(uid.clone(), shown);
            for port in PORTS {
                let decision = member.mtls.on(port);
                let shown = (decision.mode, decision.decided_by.clone());
                plain.mtls.insert((uid.clone(), port), shown);
            }
            let names = member.authz.policies().map(|policy| policy.object().to_string());
            plain.authz.insert(uid, names.collect());
        }
        assert_eq!(
            local.len(),
            plain.workloads.values().filter(|w| w.3).count(),
            "local ones are members"
        );
        for (address, owner) in snapshot.by_address.iter() {
            plain.by_address.insert(*address, owner.uid.to_string());
            assert!(std::sync::Arc::ptr_eq(
                owner,
                snapshot.workload(&owner.uid).unwrap()
            ));
        }
        for (address, contested) in snapshot.contested.iter() {
            let Contested {
                claimants,
                node_address,
            } = &**contested;
            plain
                .contested
                .insert(*address, (claimants.clone(), *node_address));
        }
        for (name, service) in snapshot.services.iter() {
            assert_eq!(*name, service.name);
            let shown = |all: &Vec<Endpoint>| all.iter().map(|one| format!("{one:?}")).collect();
            let endpoints = service.endpoints.iter().map(|(port, all)| (*port, shown(all)));
            let shown = (
                service.hostname.clone(),
                service.vips.clone(),
                endpoints.collect(),
            );
            plain.services.insert(name.clone(), shown);
        }
        plain.by_vip = snapshot
            .by_vip
            .iter()
            .map(|(vip, name)| (*vip, name.clone()))
            .collect();
        for (address, ports) in snapshot.by_external.iter() {
            let one = |(port, name): (&u16, &ServiceRef)| (SocketAddr::new(*address, *port), name.clone());
            plain.by_external.extend(ports.iter().map(one));
        }
        for (address, ports) in snapshot.by_endpoint.iter() {
            let one =
                |(port, names): (&u16, &Vec<ServiceRef>)| (SocketAddr::new(*address, *port), names.clone());
            plain.by_endpoint.extend(ports.iter().map(one));
        }
        plain.zones = snapshot
            .zones
            .iter()
            .map(|(n, z)| (n.to_string(), z.to_string()))
            .collect();
        plain.peers = snapshot
            .peer_authentications
            .iter()
            .map(|p| format!("{p:?}"))
            .collect();
        let policies = snapshot.authorization_policies.iter();
        plain.policies = policies.map(|policy| policy.object().to_string()).collect();
        plain.enrolled = snapshot.enrolled_addresses().collect();
        let namespaces = snapshot.namespaces().iter();
        plain.namespaces = namespaces
            .map(|(name, standing)| (name.clone(), (standing.enrolled, standing.mixed)))
            .collect();
        plain.notices = snapshot.diagnostics.notices.clone();
        plain
    }

    /// What the snapshot of these objects has to say.
    pub(super) fn by_definition<'a>(
        settings: &MeshSettings,
        accepted: impl IntoIterator<Item = &'a Accepted>,
        diagnostics: Diagnostics,
    ) -> Self {
        let mut world = World {
            notices: diagnostics.notices,
            ..World::default()
        };
        let mut objects: BTreeMap<ObjectRef, &Accepted> = BTreeMap::new();
        for one in accepted {
            let name = one.object.name();
            match objects.get(&name) {
                None => drop(objects.insert(name, one)),
                Some(first) => world.notices.push(Notice {
                    origin: Some(one.origin.clone()),
                    object: Some(name),
                    kind: NoticeKind::Conflict,
                    message: format!(
                        "the same object stands in {} already: this one is ignored",
                        first.origin
                    ),
                }),
            }
        }
        for one in objects.values() {
            world.notices.extend(one.notices.iter().cloned());
            match &*one.object {
                Object::Namespace(namespace) => drop(world.wishes.insert(&namespace.name, namespace.wishes)),
                Object::Node(node) => world.nodes.push(node),
                Object::Pod(pod) if pod.finished => {}
                Object::Pod(pod) => world.pods.push(pod),
                Object::Service(service) => world.services.push(service),
                Object::EndpointSlice(slice) => world.slices.push(slice),
                Object::PeerAuthentication(policy) => world.peers.push(policy),
                Object::AuthorizationPolicy(policy) => world.policies.push(policy),
            }
        }
        let mut plain = world.plain(settings);
        let origin = |name: &ObjectRef| objects.get(name).map(|one| one.origin.clone());
        let once: BTreeSet<_> = world.overlaps.into_iter().collect();
        for (object, kind, message) in world.remarks.into_iter().chain(once) {
            world.notices.push(Notice {
                origin: origin(&object),
                object: Some(object),
                kind,
                message,
            });
        }
        world.notices.sort();
        plain.notices = world.notices;
        plain
    }
}
