//! Which workload an address leads to: exactly one, or none.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::Contested;
use super::mtls::Remark;
use crate::manifest::NoticeKind;
use crate::model::{ObjectRef, Workload};

/// Who claims which addresses.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// By pods with a network namespace of their own, sorted by name.
    pods: HashMap<IpAddr, Vec<Arc<Workload>>>,
    /// How many objects say that it is an address of a node.
    nodes: HashMap<IpAddr, usize>,
}

/// What becomes of an address.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) owner: Option<Arc<Workload>>,
    pub(super) contested: Option<Contested>,
    pub(super) remarks: Vec<Remark>,
}

impl Claims {
    /// What `workload` claims, and what it says of its node. Adds the addresses to `touched`.
    pub(super) fn add(&mut self, workload: &Arc<Workload>, touched: &mut BTreeSet<IpAddr>) {
        for address in &workload.node_addresses {
            self.add_node(*address, touched);
        }
        for address in &workload.addresses {
            if workload.host_network {
                self.add_node(*address, touched);
                continue;
            }
            let claimants = self.pods.entry(*address).or_insert_with(|| Vec::with_capacity(1));
            let at = claimants.partition_point(|other| by_name(other) < by_name(workload));
            claimants.insert(at, Arc::clone(workload));
            touched.insert(*address);
        }
    }

    /// Takes back what [`add`](Self::add) did for the same value.
    pub(super) fn remove(&mut self, workload: &Arc<Workload>, touched: &mut BTreeSet<IpAddr>) {
        for address in &workload.node_addresses {
            self.remove_node(*address, touched);
        }
        for address in &workload.addresses {
            if workload.host_network {
                self.remove_node(*address, touched);
                continue;
            }
            if let Some(claimants) = self.pods.get_mut(address) {
                claimants.retain(|other| !Arc::ptr_eq(other, workload));
                if claimants.is_empty() {
                    self.pods.remove(address);
                }
            }
            touched.insert(*address);
        }
    }

    /// One more object says that this is an address of a node.
    pub(super) fn add_node(&mut self, address: IpAddr, touched: &mut BTreeSet<IpAddr>) {
        let count = self.nodes.entry(address).or_default();
        *count += 1;
        if *count == 1 {
            touched.insert(address);
        }
    }

    /// One object less says that this is an address of a node.
    pub(super) fn remove_node(&mut self, address: IpAddr, touched: &mut BTreeSet<IpAddr>) {
        let Some(count) = self.nodes.get_mut(&address) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.nodes.remove(&address);
            touched.insert(address);
        }
    }

    /// Whether it is an address of a node.
    pub(super) fn is_nodes(&self, address: IpAddr) -> bool {
        self.nodes.contains_key(&address)
    }

    /// Whether pods claim it, whether or not it leads to one.
    pub(super) fn is_pods(&self, address: IpAddr) -> bool {
        self.pods.contains_key(&address)
    }

    /// Whether an enrolled workload claims it.
    pub(super) fn is_enrolled(&self, address: IpAddr) -> bool {
        let mut claimants = self.pods.get(&address).into_iter().flatten();
        claimants.any(|workload| workload.enrolment.is_enrolled())
    }

    /// Gives `address` to the one workload that has it. An address of a node, or one that several live workloads claim, goes to none; it
    /// is contested when an enrolled workload is among the claimants, so that nobody dials it in plaintext.
    ///
    /// A pod on its way out yields to its successor at the same address, unless that would turn an enrolled address into a plain one.
    pub(super) fn judge(&self, address: IpAddr) -> Outcome {
        let Some(claimants) = self.pods.get(&address) else {
            return Outcome::default();
        };
        let node_address = self.is_nodes(address);
        match owner(claimants).filter(|_| !node_address) {
            Some(owner) => Outcome {
                owner: Some(Arc::clone(owner)),
                ..Outcome::default()
            },
            None => refuse(address, claimants, node_address),
        }
    }
}

fn by_name(workload: &Workload) -> (&str, &str) {
    (&workload.namespace, &workload.name)
}

fn owner(claimants: &[Arc<Workload>]) -> Option<&Arc<Workload>> {
    if let [only] = claimants {
        return Some(only);
    }
    let mut live = claimants.iter().filter(|workload| !workload.terminating);
    let first = live.next()?;
    let nobody_enrolled = claimants.iter().all(|workload| !workload.enrolment.is_enrolled());
    (live.next().is_none() && (first.enrolment.is_enrolled() || nobody_enrolled)).then_some(first)
}

fn refuse(address: IpAddr, claimants: &[Arc<Workload>], node_address: bool) -> Outcome {
    let names: Vec<ObjectRef> = claimants
        .iter()
        .map(|workload| ObjectRef::new("Pod", &workload.namespace, &workload.name))
        .collect();
    let enrolled = claimants.iter().any(|workload| workload.enrolment.is_enrolled());
    let outcome = if enrolled {
        "it leads to no workload, and connections to it are refused, for an enrolled one is among them"
    } else {
        "it leads to no workload"
    };
    let mut remarks = Vec::new();
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
        remarks.push((name.clone(), NoticeKind::Conflict, message));
    }
    Outcome {
        owner: None,
        contested: enrolled.then_some(Contested {
            claimants: names,
            node_address,
        }),
        remarks,
    }
}
