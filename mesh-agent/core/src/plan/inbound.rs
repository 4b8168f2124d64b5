//! Whether a connection that reached a pod may be delivered to its application.

use std::net::{IpAddr, SocketAddr};

use mesh_common::is_agent_port;
use mesh_common::mutation::{self, Mechanism};

use super::{Inbound, Permit, Reason, Refusal};
use crate::authz::{Facts, Judgement};
use crate::model::{MtlsMode, Workload, WorkloadUid};
use crate::snapshot::Snapshot;

/// Whether the connection `inbound` may be delivered to the workload `destination`, behind whose listener it arrived.
///
/// # Errors
/// When it may not; see [`Reason`].
pub fn inbound(
    snapshot: &Snapshot,
    destination: &WorkloadUid,
    inbound: &Inbound<'_>,
) -> Result<Permit, Refusal> {
    let Some(workload) = snapshot.workload(destination) else {
        let message = format!(
            "{} was refused a connection to {}: the pod {destination} is not (or no longer) among those of the configuration; see \
             `meshctl workloads`",
            client(inbound),
            inbound.address
        );
        return Err(Refusal::new(Reason::UnknownWorkload, message));
    };
    let address = own_address(inbound.address, &workload.addresses)
        .map_err(|(reason, why)| refuse(reason, workload, inbound, &why))?;
    match inbound.identity {
        Some(id)
            if !snapshot.is_local_trust_domain(id.trust_domain())
                && !mutation::is_off(Mechanism::PlanTrustDomain) =>
        {
            let why = format!(
                "its trust domain {} is neither {} nor an alias of it (settings trustDomain and trustDomainAliases)",
                id.trust_domain(),
                snapshot.settings().trust_domain
            );
            return Err(refuse(Reason::ForeignTrustDomain, workload, inbound, &why));
        }
        Some(_) => {}
        None => plaintext(snapshot, workload, inbound)?,
    }
    let judgement = judge(snapshot, workload, inbound, address)?;
    Ok(Permit {
        destination: workload.clone(),
        address,
        judgement,
    })
}

/// What AuthorizationPolicies say.
fn judge(
    snapshot: &Snapshot,
    workload: &Workload,
    inbound: &Inbound<'_>,
    address: SocketAddr,
) -> Result<Judgement, Refusal> {
    let Some(applicable) = snapshot.authorization(&workload.uid) else {
        let why = "its policies are not known: the snapshot is incomplete";
        return Err(refuse(Reason::UnknownWorkload, workload, inbound, why));
    };
    let facts = Facts {
        source: inbound.client,
        identity: inbound.identity,
        destination: address,
    };
    let judgement = applicable.judge(snapshot.local_domain(), &facts);
    if judgement.verdict.is_allowed() || mutation::is_off(Mechanism::Authorize) {
        return Ok(judgement);
    }
    let why = judgement.verdict.to_string();
    let mut refusal = refuse(Reason::PolicyDenied, workload, inbound, &why);
    refusal.judgement = Some(Box::new(judgement));
    Err(refusal)
}

/// Whether [`inbound`] may say another thing under `now` than under `before` about a connection to `destination`: it reads nothing else of
/// a snapshot than what is compared here. A peer's identity is proven by its certificate, so it does not change with a snapshot.
pub fn inbound_differs(before: &Snapshot, now: &Snapshot, destination: &WorkloadUid) -> bool {
    let workload = |snapshot: &Snapshot| {
        let workload = snapshot.workload(destination)?;
        Some(workload.addresses.clone())
    };
    let domain = |snapshot: &Snapshot| {
        let settings = snapshot.settings();
        (
            settings.trust_domain.clone(),
            settings.trust_domain_aliases.clone(),
        )
    };
    workload(before) != workload(now)
        || before.accepted_by(destination) != now.accepted_by(destination)
        || before.authorization(destination) != now.authorization(destination)
        || domain(before) != domain(now)
}

/// The address that a CONNECT authority names: `podIP:port` or `[podIPv6]:port`, one of the `pod`'s own addresses and no agent port.
///
/// # Errors
/// [`Reason::WrongAuthority`] when it is something else, [`Reason::ForbiddenDestination`] for an agent port.
pub fn hbone_authority(authority: &str, pod: &[IpAddr]) -> Result<SocketAddr, Refusal> {
    let shown: String = authority.chars().take(128).collect();
    let refuse = |reason, why: &str| Refusal::new(reason, format!("CONNECT to {shown:?} refused: {why}"));
    let expected = "expected podIP:port or [podIP]:port";
    let address: SocketAddr = authority
        .parse()
        .map_err(|_| refuse(Reason::WrongAuthority, expected))?;
    if let SocketAddr::V6(v6) = address
        && v6.scope_id() != 0
    {
        return Err(refuse(Reason::WrongAuthority, expected));
    }
    own_address(address, pod).map_err(|(reason, why)| refuse(reason, &why))
}

/// `address` in canonical form, if it is one of `own` and the port is an application's.
fn own_address(address: SocketAddr, own: &[IpAddr]) -> Result<SocketAddr, (Reason, String)> {
    let ip = address.ip().to_canonical();
    if !own.contains(&ip) && !mutation::is_off(Mechanism::Authority) {
        let own: Vec<String> = own.iter().map(ToString::to_string).collect();
        let why = format!(
            "{ip} is not an address of the pod that it reached ({})",
            own.join(", ")
        );
        return Err((Reason::WrongAuthority, why));
    }
    if address.port() == 0 {
        return Err((Reason::WrongAuthority, "port 0 names no application".to_owned()));
    }
    if is_agent_port(address.port()) {
        let why = format!(
            "port {} belongs to the mesh agent, not to an application",
            address.port()
        );
        return Err((Reason::ForbiddenDestination, why));
    }
    Ok(SocketAddr::new(ip, address.port()))
}

fn plaintext(snapshot: &Snapshot, workload: &Workload, inbound: &Inbound<'_>) -> Result<(), Refusal> {
    let decision = snapshot.mtls_decision(workload, inbound.address.port());
    match decision {
        Some(decision) if decision.mode == MtlsMode::Permissive => Ok(()),
        _ if mutation::is_off(Mechanism::StrictDrop) => Ok(()),
        decision => {
            let policy = decision.and_then(|decision| decision.decided_by.as_ref());
            let policy =
                policy.map_or_else(|| "the default of this snapshot".to_owned(), ToString::to_string);
            let why = format!(
                "{policy} is STRICT for this port and the connection came in plaintext; is the client's pod enrolled in the mesh?"
            );
            Err(refuse(Reason::PlaintextRefused, workload, inbound, &why))
        }
    }
}

fn refuse(reason: Reason, workload: &Workload, inbound: &Inbound<'_>, why: &str) -> Refusal {
    let message = format!(
        "{} was refused a connection to {} of Pod {}/{}: {why}",
        client(inbound),
        inbound.address,
        workload.namespace,
        workload.name
    );
    Refusal::new(reason, message)
}

fn client(inbound: &Inbound<'_>) -> String {
    match inbound.identity {
        Some(id) => format!("{id} ({})", inbound.client),
        None => inbound.client.to_string(),
    }
}
