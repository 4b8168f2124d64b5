//! Whether an inbound connection is let in: now, and for as long as it stands.

use mesh_core::plan::{self, Permit, Refusal};

use crate::tunnel::{Facts, PodContext, Stands};

/// Asks `plan` about a connection, and keeps it in mind for when the answer changes.
pub(super) fn admit(context: &PodContext, facts: Facts) -> (Stands, Result<Permit, Refusal>) {
    let stands = context.standing.enter(facts.clone());
    let snapshot = context.path.snapshots.load();
    let admitted = plan::inbound(&snapshot, &context.pod.uid, &facts.question());
    if admitted.is_ok() {
        stands.let_in(snapshot.version());
    }
    (stands, admitted)
}
