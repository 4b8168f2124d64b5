//! Who came to local workloads in plaintext and was let in, since the start: what stands in the way of STRICT. Bounded; decides nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use mesh_core::model::WorkloadUid;

use super::connections::ConnectionInfo;

/// Sources that are kept apart for one workload; the others are one.
pub const SOURCES: usize = 256;
/// Ports that are named for one source.
const PORTS: usize = 8;

/// Who came.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PlaintextSource {
    /// The workload that has the address.
    Workload {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// An address that no workload has.
    Address(IpAddr),
    /// Sources above [`SOURCES`].
    Others,
}

/// How often, and when last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaintextSeen {
    /// Connections.
    pub count: u64,
    /// The last one.
    pub last: SystemTime,
    /// Ports of the workload; the first few.
    pub ports: BTreeSet<u16>,
}

/// Who came, by workload.
#[derive(Debug, Default)]
pub struct PlaintextBook(Mutex<HashMap<WorkloadUid, BTreeMap<PlaintextSource, PlaintextSeen>>>);

impl PlaintextBook {
    /// A connection in plaintext was let in.
    pub(super) fn seen(&self, info: &ConnectionInfo, now: SystemTime) {
        let Some(destination) = &info.destination else {
            return;
        };
        let source = match &info.source {
            Some(workload) => PlaintextSource::Workload {
                namespace: workload.namespace.clone(),
                name: workload.name.clone(),
            },
            None => PlaintextSource::Address(info.source_address.ip()),
        };
        let mut book = self.lock();
        let sources = book.entry(destination.uid.clone()).or_default();
        let source = if sources.contains_key(&source) || sources.len() < SOURCES {
            source
        } else {
            PlaintextSource::Others
        };
        let seen = sources.entry(source).or_insert(PlaintextSeen {
            count: 0,
            last: now,
            ports: BTreeSet::new(),
        });
        seen.count += 1;
        seen.last = now;
        if seen.ports.len() < PORTS {
            seen.ports.insert(info.destination_address.port());
        }
    }

    /// Who came to `workload`.
    pub fn of(&self, workload: &WorkloadUid) -> BTreeMap<PlaintextSource, PlaintextSeen> {
        self.lock().get(workload).cloned().unwrap_or_default()
    }

    /// Forgets workloads that are not `current`.
    pub fn expire(&self, current: impl Fn(&WorkloadUid) -> bool) {
        self.lock().retain(|workload, _| current(workload));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WorkloadUid, BTreeMap<PlaintextSource, PlaintextSeen>>> {
        // A panic elsewhere leaves counts that are whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::connections::Reporter;
    use crate::telemetry::connections::tests::info;

    #[test]
    fn sources_are_told_apart_by_workload_or_address_with_count_ports_and_time() {
        let book = PlaintextBook::default();
        let mut plain = info(Reporter::Destination);
        let uid = plain.destination.as_ref().unwrap().uid.clone();
        let start = SystemTime::now();
        book.seen(&plain, start);
        plain.destination_address.set_port(9090);
        plain.source_address.set_port(40001);
        book.seen(&plain, start + Duration::from_secs(5));
        plain.source = None;
        book.seen(&plain, start);
        let of = book.of(&uid);
        let order = PlaintextSource::Workload {
            namespace: "shop".into(),
            name: "order-1".into(),
        };
        assert_eq!(of[&order].count, 2);
        assert_eq!(of[&order].last, start + Duration::from_secs(5));
        assert_eq!(of[&order].ports, [8080, 9090].into());
        assert_eq!(
            of[&PlaintextSource::Address("198.18.0.1".parse().unwrap())].count,
            1
        );
        book.expire(|_| false);
        assert!(book.of(&uid).is_empty());
    }

    #[test]
    fn a_scan_from_everywhere_to_everything_takes_bounded_room() {
        let book = PlaintextBook::default();
        let mut plain = info(Reporter::Destination);
        let uid = plain.destination.as_ref().unwrap().uid.clone();
        plain.source = None;
        let all = 4 * SOURCES as u32;
        for n in 0..all {
            plain.source_address.set_ip(IpAddr::V4(n.into()));
            plain.destination_address.set_port(n as u16);
            book.seen(&plain, SystemTime::now());
        }
        let of = book.of(&uid);
        assert_eq!(of.len(), SOURCES + 1);
        assert_eq!(
            of[&PlaintextSource::Others].count,
            u64::from(all) - SOURCES as u64
        );
        assert!(of.values().all(|seen| seen.ports.len() <= PORTS));
    }
}
