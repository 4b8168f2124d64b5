//! The families of what policies decided.

use prometheus::proto::MetricFamily;

use super::{Kind, Row};
use crate::telemetry::policy::PolicyLog;

/// All of them.
pub(super) fn families(policies: &PolicyLog) -> Vec<MetricFamily> {
    let decisions = policies.counts().into_iter().map(|(tally, n)| {
        Row::new(n as f64)
            .label("namespace", &tally.policy.namespace)
            .label("policy", &tally.policy.name)
            .label("action", tally.action.as_str())
            .label("verdict", tally.word.as_str())
    });
    let rejudged = policies.rejudgings();
    vec![
        Kind::Counter.family(
            "mesh_agent_policy_decisions_total",
            "Connections by AuthorizationPolicy and what it said of them.",
            decisions.collect(),
        ),
        Kind::Counter.family(
            "mesh_agent_connections_rejudged_total",
            "Connections that stood while what decides about them changed: kept, or closed.",
            vec![
                Row::new(rejudged.kept as f64).label("result", "kept"),
                Row::new(rejudged.closed as f64).label("result", "closed"),
            ],
        ),
    ]
}
