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

impl Capture {
    /// Brings the kernel's set in line with `snapshot`. What has changed since the snapshot `told`, which it is in line with, costs what has
    /// changed; without that, as much as there is. Blocks: not for the data path.
    ///
    /// # Errors
    /// When the kernel refuses. Then, and when there are more addresses than fit, every address counts as enrolled, and the set is in line
    /// with no snapshot.
    pub(super) fn put_enrolled(&self, snapshot: &Snapshot, told: Option<u64>) -> io::Result<()> {
        // One place is for the mark that stands for all.
        let fits = snapshot.enrolled_count() < MAX_ENROLLED as usize;
        let brought = match told.and_then(|version| snapshot.enrolled_since(version)) {
            _ if !fits => Err(io::ErrorKind::StorageFull.into()),
            Some(changed) => follow(&self.enrolled, snapshot, &changed),
            None => bring(&self.enrolled, &snapshot.enrolled_addresses().collect()),
        };
        match brought {
            Ok(()) if told.is_some() => Ok(()),
            Ok(()) => self.enrolled.remove(&ALL).map(drop),
            Err(error) => {
                self.enrolled.insert(&ALL, &1)?;
                Err(error)
            }
        }
    }
}

/// New ones first, as below.
fn follow(table: &Table<Addr, u32>, snapshot: &Snapshot, changed: &BTreeSet<IpAddr>) -> io::Result<()> {
    let (new, old): (Vec<&IpAddr>, Vec<&IpAddr>) = changed
        .iter()
        .partition(|address| snapshot.is_enrolled_at(**address));
    for address in new {
        table.insert(&Addr::from_ip(*address), &1)?;
    }
    for address in old.into_iter().filter(|address| Addr::from_ip(**address) != ALL) {
        table.remove(&Addr::from_ip(*address))?;
    }
    Ok(())
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
