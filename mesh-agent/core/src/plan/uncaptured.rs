//! What becomes of a pod's connection that goes around capture because it is older than that: kept where plaintext is allowed, closed
//! where STRICT would have refused it.

use std::net::SocketAddr;

use mesh_common::mutation::{self, Mechanism};
use serde::Serialize;

use super::{Reason, Refusal};
use crate::model::{MtlsMode, Workload, WorkloadUid};
use crate::snapshot::Snapshot;

/// Who opened a connection, as far as can be told afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Somebody off the pod.
    Inbound,
    /// The pod.
    Outbound,
}

/// A connection of a pod that the agent does not carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Uncaptured {
    /// Who opened it.
    pub way: Way,
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// Why a connection of `workload` is to be closed; `None` where it may go on.
///
/// STRICT says what comes in. So an inbound connection ends where the pod's port is STRICT, and an outbound one where it leads to an
/// enrolled workload whose port is; an outbound connection to somewhere outside the mesh could not be had over mutual TLS and goes on.
pub fn uncaptured(snapshot: &Snapshot, workload: &Workload, connection: &Uncaptured) -> Option<Refusal> {
    let Uncaptured { way, local, remote } = *connection;
    let (server, port) = match way {
        Way::Inbound => (
            format!("Pod {}/{}", workload.namespace, workload.name),
            local.port(),
        ),
        Way::Outbound => return strict_destination(snapshot, workload, connection),
    };
    let decided_by = strict(snapshot, &workload.uid, port)?;
    let message = format!(
        "the connection of {remote} to {local} of {server} is older than its capture and in plaintext, and {decided_by} is STRICT for this port"
    );
    Some(Refusal::new(Reason::PlaintextRefused, message))
}

fn strict_destination(snapshot: &Snapshot, workload: &Workload, connection: &Uncaptured) -> Option<Refusal> {
    let remote = SocketAddr::new(connection.remote.ip().to_canonical(), connection.remote.port());
    let direct = snapshot
        .workload_by_address(remote.ip())
        .map(|w| (w.uid.clone(), remote.port()));
    // Which endpoint stands behind a service's address is known to the kernel alone: one that is STRICT is enough.
    let service = snapshot.service_by_vip(remote.ip());
    let endpoints = service.and_then(|service| service.endpoints.get(&remote.port()));
    let behind = endpoints
        .into_iter()
        .flatten()
        .filter_map(|endpoint| Some((endpoint.workload.clone()?, endpoint.address.port())));
    let enrolled = |uid: &WorkloadUid| snapshot.workload(uid).filter(|w| w.enrolment.is_enrolled());
    direct.into_iter().chain(behind).find_map(|(uid, port)| {
        let server = enrolled(&uid)?;
        let decided_by = strict(snapshot, &uid, port)?;
        let message = format!(
            "the connection of Pod {}/{} to {remote} is older than its capture and in plaintext, and {decided_by} is STRICT for port {port} \
             of Pod {}/{}",
            workload.namespace, workload.name, server.namespace, server.name
        );
        Some(Refusal::new(Reason::PlaintextRefused, message))
    })
}

/// What makes a workload's port STRICT.
fn strict(snapshot: &Snapshot, uid: &WorkloadUid, port: u16) -> Option<String> {
    let workload = snapshot.workload(uid)?;
    let decision = snapshot.mtls_decision(workload, port)?;
    let policy = decision.decided_by.as_ref();
    (decision.mode == MtlsMode::Strict && !mutation::is_off(Mechanism::OlderClosed))
        .then(|| policy.map_or_else(|| "the default".to_owned(), ToString::to_string))
}
