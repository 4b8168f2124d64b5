//! Which workload an address leads to: exactly one, or none.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Contested;
use crate::manifest::NoticeKind;
use crate::model::{Node, ObjectRef, Pod, Workload};

/// The outcome for all addresses.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    pub(super) by_address: HashMap<IpAddr, Arc<Workload>>,
    pub(super) contested: HashMap<IpAddr, Contested>,
    /// All that pods claim, whether or not it leads to one.
    pub(super) of_pods: HashSet<IpAddr>,
    pub(super) of_nodes: HashSet<IpAddr>,
    pub(super) remarks: Vec<super::mtls::Remark>,
}

/// Gives each address to the one workload that has it. An address of a node, or one that several live workloads claim, goes to none; it
/// is contested when an enrolled workload is among the claimants, so that nobody dials it in plaintext.
///
/// A pod on its way out yields to its successor at the same address, unless that would turn an enrolled address into a plain one.
pub(super) fn index(pods: &[(&Pod, Arc<Workload>)], nodes: &[&Node]) -> Addresses {
    let mut of_nodes: HashSet<IpAddr> = nodes.iter().flat_map(|node| &node.addresses).copied().collect();
    let mut claims: BTreeMap<IpAddr, Vec<&(&Pod, Arc<Workload>)>> = BTreeMap::new();
    for entry in pods {
        let (pod, _) = entry;
        of_nodes.extend(&pod.node_addresses);
        for address in &pod.addresses {
            if pod.host_network {
                of_nodes.insert(*address);
            } else {
                claims.entry(*address).or_default().push(entry);
            }
        }
    }
    let mut found = Addresses::default();
    for (address, claimants) in claims {
        let node_address = of_nodes.contains(&address);
        match owner(&claimants).filter(|_| !node_address) {
            Some(workload) => drop(found.by_address.insert(address, workload.clone())),
            None => found.refuse(address, &claimants, node_address),
        }
        found.of_pods.insert(address);
    }
    found.of_nodes = of_nodes;
    found
}

fn owner<'a>(claimants: &[&'a (&Pod, Arc<Workload>)]) -> Option<&'a Arc<Workload>> {
    if let [(_, only)] = claimants {
        return Some(only);
    }
    let mut live = claimants.iter().filter(|(pod, _)| !pod.terminating);
    let (_, first) = live.next()?;
    let nobody_enrolled = claimants
        .iter()
        .all(|(_, workload)| !workload.enrolment.is_enrolled());
    (live.next().is_none() && (first.enrolment.is_enrolled() || nobody_enrolled)).then_some(first)
}

impl Addresses {
    fn refuse(&mut self, address: IpAddr, claimants: &[&(&Pod, Arc<Workload>)], node_address: bool) {
        let names: Vec<ObjectRef> = claimants
            .iter()
            .map(|(pod, _)| ObjectRef::new("Pod", &pod.namespace, &pod.name))
            .collect();
        let enrolled = claimants
            .iter()
            .any(|(_, workload)| workload.enrolment.is_enrolled());
        let outcome = if enrolled {
            "it leads to no workload, and connections to it are refused, for an enrolled one is among them"
        } else {
            "it leads to no workload"
        };
        for (i, name) in names.iter().enumerate() {
            let others: Vec<String> = names
                .iter()
                .enumerate()
                .filter(|(j, _)| i != *j)
                .map(|(_, other)| other.to_string())
                .collect();
            let with = match (node_address, others.is_empty()) {
                (true, _) => "a node".to_owned(),
                (false, _) => others.join(", "),
            };
            let message = format!("address {address} is shared with {with}: {outcome}");
            self.remarks.push((name.clone(), NoticeKind::Conflict, message));
        }
        if enrolled {
            self.contested.insert(
                address,
                Contested {
                    claimants: names,
                    node_address,
                },
            );
        }
    }
}
