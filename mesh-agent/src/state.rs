//! The published snapshot: written by one publisher, read by everybody without a lock.

use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_core::snapshot::Snapshot;
use tokio::sync::watch;

/// Holds the snapshot in force.
#[derive(Debug)]
pub struct SnapshotCell {
    current: ArcSwap<Snapshot>,
    version: watch::Sender<u64>,
}

impl SnapshotCell {
    /// A cell that holds `first`.
    pub fn new(first: Snapshot) -> Self {
        let version = watch::Sender::new(first.version());
        Self {
            current: ArcSwap::from_pointee(first),
            version,
        }
    }

    /// The snapshot in force. Never blocks.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Puts `next` in force and wakes whoever watches.
    pub fn publish(&self, next: Arc<Snapshot>) {
        let version = next.version();
        self.current.store(next);
        self.version.send_replace(version);
    }

    /// Reports each published version (the latest only).
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
