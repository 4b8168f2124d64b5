//! Tells the kernel behind which addresses somebody is enrolled, for the one decision that cannot wait for the agent: a connection that
//! will not reach it, because its socket is bound to another device than the pod's.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use mesh_common::{Addr, MAX_ENROLLED};
use mesh_core::snapshot::Snapshot;

use super::node::Capture;
use super::sys::Table;

/// Stands for all addresses.
const ALL: Addr = Addr([0; 4]);

/// Addresses of enrolled workloads, contested ones too, and those of services that lead to one of them.
pub(super) fn addresses(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let mut all: BTreeSet<IpAddr> = snapshot
        .workloads()
        .filter(|workload| workload.enrolment.is_enrolled())
        .flat_map(|workload| workload.addresses.iter().copied())
        .collect();
    let vips: Vec<IpAddr> = snapshot
        .services()
        .filter(|service| {
            let mut endpoints = service.endpoints.values().flatten();
            endpoints.any(|endpoint| all.contains(&endpoint.address.ip()))
        })
        .flat_map(|service| service.vips.iter().copied())
        .collect();
    all.extend(vips);
    all
}

impl Capture {
    /// Brings the kernel's set in line. Blocks for as long as the set is large: not for the data path.
    ///
    /// # Errors
    /// When the kernel refuses. Then, and when there are more addresses than fit, every address counts as enrolled.
    pub(super) fn put_enrolled(&self, addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
        // One place is for the mark that stands for all.
        let fits = addresses.len() < MAX_ENROLLED as usize;
        let brought = if fits {
            bring(&self.enrolled, addresses)
        } else {
            Err(io::ErrorKind::StorageFull.into())
        };
        match brought {
            Ok(()) => self.enrolled.remove(&ALL).map(drop),
            Err(error) => {
                self.enrolled.insert(&ALL, &1)?;
                Err(error)
            }
        }
    }
}

/// New ones first: a moment with too many refuses, one with too few would let pass.
fn bring(table: &Table<Addr, u32>, addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
    let wanted: BTreeSet<[u32; 4]> = addresses.iter().map(|ip| Addr::from_ip(*ip).0).collect();
    let present: BTreeSet<[u32; 4]> = table.keys()?.into_iter().map(|addr| addr.0).collect();
    for addr in wanted.difference(&present) {
        table.insert(&Addr(*addr), &1)?;
    }
    for addr in present.difference(&wanted).filter(|addr| **addr != ALL.0) {
        table.remove(&Addr(*addr))?;
    }
    Ok(())
}
