//! Wants a certificate for each identity that has an enrolled pod on this node, and none for others.

use std::collections::HashSet;
use std::sync::Arc;

use mesh_core::model::SpiffeId;
use mesh_core::snapshot::Snapshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::identity::Identities;
use crate::state::SnapshotCell;

/// Follows the snapshots until `stopping`. What fails is tried again by the rotation task of [`Identities`], which also logs it.
pub(super) async fn keep(
    identities: Arc<Identities>,
    snapshots: Arc<SnapshotCell>,
    stopping: CancellationToken,
) {
    let mut versions = snapshots.watch();
    let mut asked = HashSet::new();
    let mut asking = JoinSet::new();
    loop {
        versions.mark_unchanged();
        let wanted = local_identities(&snapshots.load());
        identities.retain(&wanted);
        for id in wanted.difference(&asked) {
            let (identities, id) = (identities.clone(), id.clone());
            asking.spawn(async move { drop(identities.ensure(&id).await) });
        }
        asked = wanted;
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                changed = versions.changed() => if changed.is_err() { return } else { break },
                Some(_) = asking.join_next() => {}
            }
        }
    }
}

fn local_identities(snapshot: &Snapshot) -> HashSet<SpiffeId> {
    let enrolled = snapshot
        .local_workloads()
        .filter(|workload| workload.enrolment.is_enrolled());
    enrolled.map(|workload| workload.identity.clone()).collect()
}

#[cfg(test)]
mod tests;
