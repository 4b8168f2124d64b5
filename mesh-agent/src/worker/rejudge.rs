//! Judging connections again that stand, when a snapshot changes what decides about them. Only pods for which something changed are
//! looked at; the judge is `plan::inbound`, as when a connection opens.

use std::sync::Arc;

use mesh_common::mutation::{self, Mechanism};
use mesh_core::plan;
use mesh_core::snapshot::Snapshot;

use crate::tunnel::{Judged, PodContext};

/// Ends the connections of `pods` on this worker that were let in under `before` and are refused under `now`.
pub(super) async fn rejudge(pods: Vec<Arc<PodContext>>, before: &Snapshot, now: &Snapshot) {
    for context in pods {
        let uid = &context.pod.uid;
        let changed = plan::inbound_differs(before, now, uid)
            || context.standing.let_in_between(before.version(), now.version());
        // The connections of a pod that is gone end with it, when it is retired.
        let gone = now.workload(uid).is_none();
        if !changed || gone || context.standing.is_empty() || mutation::is_off(Mechanism::ReJudging) {
            continue;
        }
        let Judged { kept, closed } = context
            .standing
            .judge(now.version(), |facts| {
                plan::inbound(now, uid, &facts.question()).map(drop)
            })
            .await;
        context.path.log.policies().rejudged(kept, closed);
        tracing::info!(
            target: "mesh_agent::policy",
            pod = %uid,
            configuration = now.version(),
            kept,
            closed,
            "what decides about its connections has changed: those that stand were judged again"
        );
    }
}
