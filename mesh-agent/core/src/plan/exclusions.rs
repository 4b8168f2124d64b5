//! Which of a pod's exclusions are granted: those that the agent's settings allow, and none of them where STRICT would be undone.

use std::collections::BTreeSet;

use mesh_common::mutation::{self, Mechanism};
use serde::Serialize;

use crate::model::{Exclusions, MtlsMode, Workload};
use crate::snapshot::Snapshot;

/// Which kinds of exclusions the agent's settings allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AllowedExclusions {
    /// `mesh-agent.io/exclude-outbound-ports`.
    pub outbound_ports: bool,
    /// `mesh-agent.io/exclude-outbound-cidrs`.
    pub outbound_cidrs: bool,
    /// `mesh-agent.io/exclude-inbound-ports`.
    pub inbound_ports: bool,
    /// `mesh-agent.io/on-agent-down: allow`.
    pub inbound_when_down: bool,
}

impl AllowedExclusions {
    /// All of them.
    pub fn all() -> Self {
        Self {
            outbound_ports: true,
            outbound_cidrs: true,
            inbound_ports: true,
            inbound_when_down: true,
        }
    }
}

/// An exclusion that is not granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedExclusion {
    /// What was asked for, such as `inbound port 8080`.
    pub what: String,
    /// Why it is not granted, and what to look at.
    pub why: String,
}

/// What became of a pod's exclusions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExclusionDecision {
    /// Granted.
    pub in_force: Exclusions,
    /// Not granted: those connections are captured.
    pub refused: Vec<RefusedExclusion>,
}

/// Decides on what the annotations of `workload` ask for.
pub fn exclusions(snapshot: &Snapshot, workload: &Workload, allowed: AllowedExclusions) -> ExclusionDecision {
    let asked = &workload.exclusions;
    let mut decision = ExclusionDecision::default();
    let mut refuse = |what: String, why: String| decision.refused.push(RefusedExclusion { what, why });
    decision.in_force.outbound_ports = granted(
        &asked.outbound_ports,
        (allowed.outbound_ports, "outbound-ports", "outbound port"),
        &mut refuse,
    );
    decision.in_force.outbound_cidrs = granted(
        &asked.outbound_cidrs,
        (allowed.outbound_cidrs, "outbound-cidrs", "outbound network"),
        &mut refuse,
    );
    let mut inbound = granted(
        &asked.inbound_ports,
        (allowed.inbound_ports, "inbound-ports", "inbound port"),
        &mut refuse,
    );
    inbound.retain(|port| {
        let strict = match mutation::is_off(Mechanism::StrictExclusion) {
            false => strict(snapshot, workload, *port),
            true => None,
        };
        let why = match (strict, judged(snapshot, workload)) {
            (None, None) => return true,
            (Some(policy), _) => format!("{policy} is STRICT: plaintext may not go around the agent"),
            (None, Some(policy)) => {
                format!("{policy} decides who may connect: nobody may go around the agent")
            }
        };
        refuse(format!("inbound port {port}"), why);
        false
    });
    if asked.inbound_when_down {
        match refused_when_down(snapshot, workload, allowed) {
            None => decision.in_force.inbound_when_down = true,
            Some(why) => refuse("inbound connections while the agent is down".to_owned(), why),
        }
    }
    decision.in_force.inbound_ports = inbound;
    decision
}

/// Why a workload may not be reached past a dead agent. Only where the agent would not have refused anybody either.
fn refused_when_down(snapshot: &Snapshot, workload: &Workload, allowed: AllowedExclusions) -> Option<String> {
    if !allowed.inbound_when_down {
        return Some("the agent's setting allow-exclusions does not name inbound-when-down".to_owned());
    }
    if let Some(policy) = strict_anywhere(snapshot, workload) {
        return Some(format!(
            "{policy} is STRICT: plaintext may not go around the agent"
        ));
    }
    judged(snapshot, workload)
        .map(|policy| format!("{policy} decides who may connect: nobody may go around the agent"))
}

/// The policy that makes the workload, or any port of it, STRICT.
fn strict_anywhere(snapshot: &Snapshot, workload: &Workload) -> Option<String> {
    let Some(decisions) = snapshot.mtls_decisions(workload) else {
        return Some("the workload is not in the configuration, which".to_owned());
    };
    let strict = decisions
        .into_iter()
        .find(|decision| decision.mode != MtlsMode::Permissive)?;
    let policy = strict.decided_by.as_ref();
    Some(policy.map_or_else(|| "the default".to_owned(), ToString::to_string))
}

fn granted<T: Ord + Copy + std::fmt::Display>(
    asked: &BTreeSet<T>,
    (allowed, setting, what): (bool, &str, &str),
    refuse: &mut impl FnMut(String, String),
) -> BTreeSet<T> {
    if allowed {
        return asked.clone();
    }
    for one in asked {
        let why = format!("the agent's setting allow-exclusions does not name {setting}");
        refuse(format!("{what} {one}"), why);
    }
    BTreeSet::new()
}

/// A policy that decides who may connect to the workload.
fn judged(snapshot: &Snapshot, workload: &Workload) -> Option<String> {
    match snapshot.authorization(&workload.uid) {
        None => Some("the workload is not in the configuration, which".to_owned()),
        Some(applicable) => applicable
            .deciding()
            .next()
            .map(|policy| policy.object().to_string()),
    }
}

/// The policy that makes the workload, or this port of it, STRICT. A port that a policy opens in a STRICT workload is not excluded either:
/// the agent lets plaintext in there by itself.
fn strict(snapshot: &Snapshot, workload: &Workload, port: u16) -> Option<String> {
    // No policy names port 0, so this is what holds for the workload.
    [port, 0]
        .into_iter()
        .find_map(|port| match snapshot.mtls_decision(workload, port) {
            None => Some("the workload is not in the configuration, which".to_owned()),
            Some(decision) if decision.mode == MtlsMode::Permissive => None,
            Some(decision) => {
                let policy = decision.decided_by.as_ref();
                Some(policy.map_or_else(|| "the default".to_owned(), ToString::to_string))
            }
        })
}
