//! One captured pod: what of it is in the kernel, and the order in which that comes and goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use mesh_common::{Addr, MAX_WORKERS, Role};
use mesh_core::model::{Exclusions, SpiffeId, Workload, WorkloadUid};
use socket2::Socket;

use super::cgroup::PodCgroup;
use super::error::EnrolError;
use super::links::PodLinks;
use super::netns::{Interfaces, Netns};
use super::older::Older;
use super::sockets::NetnsSockets;
use super::{Listener, Pod};

/// What capture needs to know of a workload. Two equal specs need no change in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Which workload.
    pub uid: WorkloadUid,
    /// Its identity.
    pub identity: SpiffeId,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Path of its network namespace; the kernel's name for it (`net:[…]`) where it was found.
    pub netns: String,
    /// Path of its cgroup.
    pub cgroup: String,
}

impl PodSpec {
    /// The spec of a workload that is enrolled and says where it lives.
    pub fn of(workload: &Workload) -> Option<Self> {
        let location = workload.location.as_ref()?;
        let wanted = workload.enrolment.is_enrolled() && !workload.host_network;
        wanted.then(|| Self::at(workload, location.netns.clone(), location.cgroup.clone()))
    }

    /// The spec of a workload that lives there.
    pub(super) fn at(workload: &Workload, netns: String, cgroup: String) -> Self {
        Self {
            uid: workload.uid.clone(),
            identity: workload.identity.clone(),
            addresses: workload.addresses.clone(),
            netns,
            cgroup,
        }
    }

    /// Whether both live at the same place: then a change needs no new links.
    pub(super) fn same_place(&self, other: &Self) -> bool {
        (&self.netns, &self.cgroup) == (&other.netns, &other.cgroup)
    }

    /// The first address of each family.
    pub(super) fn by_family(&self) -> (Addr, Addr) {
        let first = |v4: bool| self.addresses.iter().find(|ip| ip.to_canonical().is_ipv4() == v4);
        let addr = |ip: Option<&IpAddr>| ip.map_or(Addr::default(), |ip| Addr::from_ip(*ip));
        (addr(first(true)), addr(first(false)))
    }
}

/// A pod's namespace and cgroup, looked at and found fit for capture.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) netns: Arc<Netns>,
    pub(super) cgroup: PodCgroup,
    pub(super) interfaces: Interfaces,
    /// Readable when addresses change. Opened before the addresses were read, so that no change is lost.
    pub(super) changes: OwnedFd,
}

impl Place {
    /// Opens and judges the place that `spec` names; its namespace may be open already.
    pub(super) fn find(
        spec: &PodSpec,
        netns: Option<File>,
        open_cgroup: impl FnOnce(&str) -> Result<PodCgroup, EnrolError>,
    ) -> Result<Self, EnrolError> {
        if spec.addresses.is_empty() {
            return Err(EnrolError::NoAddress);
        }
        let gone = |source| EnrolError::Netns {
            path: spec.netns.clone(),
            source,
        };
        let netns = match netns {
            Some(file) => Netns::opened(file),
            None => Netns::open(Path::new(&spec.netns)),
        };
        let netns = netns.map_err(gone)?;
        let cgroup = open_cgroup(&spec.cgroup)?;
        let changes = netns.address_changes().map_err(gone)?;
        let interfaces = netns.interfaces().map_err(gone)?;
        let facts = Facts {
            is_home: netns.is_home().map_err(gone)?,
            forwards: netns.forwards().map_err(gone)?,
            believes_first_packets: netns.believes_first_packets().map_err(gone)?,
            interfaces: &interfaces,
        };
        judge(spec, &facts)?;
        Ok(Self {
            netns: Arc::new(netns),
            cgroup,
            interfaces,
            changes,
        })
    }
}

/// What was found in a namespace.
struct Facts<'a> {
    is_home: bool,
    forwards: bool,
    believes_first_packets: bool,
    interfaces: &'a Interfaces,
}

fn judge(spec: &PodSpec, facts: &Facts<'_>) -> Result<(), EnrolError> {
    if facts.is_home {
        return Err(EnrolError::HostNetns);
    }
    // Pods inherit the host's forwarding switch, on every Kubernetes node it is on: it means something only where there is something
    // to forward between.
    if facts.forwards && facts.interfaces.up.len() > 1 {
        return Err(EnrolError::Forwards {
            interfaces: facts.interfaces.up.iter().cloned().collect(),
        });
    }
    if facts.believes_first_packets {
        return Err(EnrolError::FastOpenWithoutCookie);
    }
    match spec
        .addresses
        .iter()
        .find(|ip| !facts.interfaces.addresses.contains_key(ip))
    {
        Some(ip) => Err(EnrolError::AddressMissing(*ip)),
        None => Ok(()),
    }
}

/// A pod's listeners: three roles by each worker.
pub(super) fn make_listeners(netns: &Netns, workers: usize) -> Result<Vec<Listener>, EnrolError> {
    let workers = workers.clamp(1, MAX_WORKERS as usize);
    let places: Vec<(Role, usize)> = [Role::Outbound, Role::Inbound, Role::Tunnel]
        .into_iter()
        .flat_map(|role| (0..workers).map(move |worker| (role, worker)))
        .collect();
    let sockets: Vec<Socket> = netns.listeners(places.len()).map_err(EnrolError::kernel(
        "making listeners in its network namespace (is its loopback up?)",
    ))?;
    let listener = |((role, worker), socket): ((Role, usize), Socket)| Listener {
        role,
        worker,
        socket: socket.into(),
    };
    Ok(places.into_iter().zip(sockets).map(listener).collect())
}

/// A pod under capture.
#[derive(Debug)]
pub(super) struct CapturedPod {
    pub(super) spec: PodSpec,
    pub(super) pod: Arc<Pod>,
    pub(super) netns: Arc<Netns>,
    pub(super) cgroup: PodCgroup,
    /// The pod's own addresses as they are in the kernel's map, with their devices.
    pub(super) own: BTreeMap<IpAddr, u32>,
    pub(super) links: PodLinks,
    /// The bank of its slot that its listeners are in.
    pub(super) bank: u32,
    pub(super) changes: Arc<OwnedFd>,
    /// What passes uncaptured, as it is in the kernel's maps.
    pub(super) rules: Rules,
    /// What goes around capture.
    pub(super) older: Older,
}

/// What of a pod's traffic passes uncaptured. Changes without any effect on its captured connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Ports that the kubelet may reach.
    pub probe_ports: BTreeSet<u16>,
    /// What is excluded.
    pub exclusions: Exclusions,
}

impl CapturedPod {
    /// Whether namespace and cgroup are still those that the paths lead to.
    pub(super) fn is_current(&self) -> bool {
        self.netns.is_current() && self.cgroup.is_current()
    }
}

/// The pod as the data path sees it.
pub(super) fn data_path_pod(spec: &PodSpec, netns: &Arc<Netns>, slot: u32) -> Arc<Pod> {
    Arc::new(Pod {
        uid: spec.uid.clone(),
        identity: spec.identity.clone(),
        addresses: spec.addresses.clone(),
        netns: netns.cookie(),
        slot,
        sockets: Arc::new(NetnsSockets::new(Arc::clone(netns))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(addresses: &[&str]) -> PodSpec {
        PodSpec {
            uid: WorkloadUid::new("shop", "order", ""),
            identity: "spiffe://cluster.local/ns/shop/sa/order".parse().unwrap(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            netns: "/run/netns/order".into(),
            cgroup: "order".into(),
        }
    }

    fn interfaces(up: &[&str], addresses: &[&str]) -> Interfaces {
        Interfaces {
            addresses: addresses.iter().map(|a| (a.parse().unwrap(), 2)).collect(),
            up: up.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    fn judged(spec: &PodSpec, forwards: bool, interfaces: &Interfaces) -> Result<(), EnrolError> {
        judge(
            spec,
            &Facts {
                is_home: false,
                forwards,
                believes_first_packets: false,
                interfaces,
            },
        )
    }

    #[test]
    fn an_inherited_forwarding_switch_alone_is_no_reason_to_refuse() {
        let seen = interfaces(&["eth0"], &["198.18.0.1"]);
        assert!(judged(&spec(&["198.18.0.1"]), true, &seen).is_ok());
    }

    #[test]
    fn a_namespace_that_routes_is_refused_for_good() {
        let seen = interfaces(&["eth0", "tap0"], &["198.18.0.1"]);
        let refused = judged(&spec(&["198.18.0.1"]), true, &seen).unwrap_err();
        assert!(matches!(refused, EnrolError::Forwards { .. }));
        assert!(!refused.is_pending());
        assert!(judged(&spec(&["198.18.0.1"]), false, &seen).is_ok());
    }

    #[test]
    fn a_namespace_whose_listeners_believe_a_single_packet_is_refused() {
        let facts = Facts {
            is_home: false,
            forwards: false,
            believes_first_packets: true,
            interfaces: &interfaces(&["eth0"], &["198.18.0.1"]),
        };
        let refused = judge(&spec(&["198.18.0.1"]), &facts).unwrap_err();
        assert!(matches!(refused, EnrolError::FastOpenWithoutCookie));
        assert!(!refused.is_pending());
    }

    #[test]
    fn an_address_that_is_not_there_yet_is_waited_for() {
        let seen = interfaces(&["eth0"], &["198.18.0.1"]);
        let refused = judged(&spec(&["198.18.0.1", "2001:db8::1"]), false, &seen).unwrap_err();
        assert!(matches!(refused, EnrolError::AddressMissing(ip) if ip.is_ipv6()));
        assert!(refused.is_pending());
    }

    #[test]
    fn the_first_address_of_each_family_counts() {
        let (v4, v6) = spec(&["2001:db8::1", "198.18.0.1", "198.18.0.2"]).by_family();
        assert_eq!(v4.to_ip(), "198.18.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(v6.to_ip(), "2001:db8::1".parse::<IpAddr>().unwrap());
        assert!(spec(&["198.18.0.1"]).by_family().1.is_unset());
    }
}
