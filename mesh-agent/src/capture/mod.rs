//! Steers the sockets of enrolled pods into the agent: loads the BPF programs, attaches them per pod, owns what is in the kernel.
//! Never decides where a connection goes.

mod announced;
mod bpffs;
mod cgroup;
mod checks;
mod debug_log;
mod diag;
mod discovery;
mod enrolled;
pub mod enroller;
mod error;
pub mod events;
mod flows;
mod foreign;
mod kubelet;
mod links;
mod local;
mod mounts;
mod netns;
mod node;
mod objects;
mod older;
mod pod;
mod residents;
mod sockets;
mod status;
mod sys;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use mesh_common::Role;
use mesh_core::model::{SpiffeId, WorkloadUid};
use thiserror::Error;

pub use announced::{AnnounceError, Announcement, Announcements};
pub use bpffs::{NodeBpffs, default_dir, mount_on_node};
pub use cgroup::join_parents_cgroup_namespace;
pub use checks::{Check, Outcome, checks};
pub use debug_log::{DebugLogError, DebugLogStatus, LONGEST as LONGEST_DEBUG_LOG};
pub use discovery::{DiscoveryStatus, FoundBy, RuntimeState, SandboxStatus};
pub use error::{CaptureError, EnrolError};
pub use foreign::ForeignProgram;
pub use kubelet::KubeletError;
pub use node::{Beginning, Capture, CaptureOptions, CaptureState, ProbePassage, unload};
pub use older::OlderConnections;
pub use pod::{PodSpec, Rules};
pub use sockets::{Family, SocketSource};
pub use status::{CaptureStatus, LinkStatus, MapStatus, PodStatus, ProgramStatus};

/// An enrolled pod, as the data path knows it.
pub struct Pod {
    /// Which workload it is.
    pub uid: WorkloadUid,
    /// Its identity, fixed for the pod's life: taken from the workload behind the netns and nothing else.
    pub identity: SpiffeId,
    /// `status.podIPs`: the addresses under which it can be reached.
    pub addresses: Vec<std::net::IpAddr>,
    /// Cookie of its network namespace (`SO_NETNS_COOKIE`).
    pub netns: u64,
    /// Its place in the listener map.
    pub slot: u32,
    /// Sockets inside its network namespace.
    pub sockets: Arc<dyn SocketSource>,
}

impl std::fmt::Debug for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pod")
            .field("uid", &self.uid)
            .field("netns", &self.netns)
            .field("slot", &self.slot)
            .finish()
    }
}

/// A listening socket inside a pod's netns, for one worker.
#[derive(Debug)]
pub struct Listener {
    /// What it is for.
    pub role: Role,
    /// Which worker serves it.
    pub worker: usize,
    /// The socket: listening, non-blocking.
    pub socket: std::net::TcpListener,
}

/// Who serves the listeners of a pod: the workers. Called by the enroller, off the data path.
pub trait PodServer: Send + Sync {
    /// How many workers there are, 1 to `mesh_common::MAX_WORKERS`.
    fn workers(&self) -> usize;
    /// Starts to accept on these listeners. Called before any connection can reach them.
    fn serve(&self, pod: Arc<Pod>, listeners: Vec<Listener>);
    /// Stops accepting for the pod, drops its tunnel pools and closes its connections.
    fn retire(&self, pod: &WorkloadUid);
}

/// Why the flow table could not answer.
#[derive(Debug, Error)]
pub enum FlowError {
    /// The kernel refused the map operation.
    #[error("the flow map refused: {0} (see `meshctl bpf` for its fill)")]
    Map(#[source] io::Error),
    /// The socket could not be asked for its addresses.
    #[error("a captured socket has no addresses any more: {0}")]
    Socket(#[source] io::Error),
}

/// What the data path asks of the flow maps. One implementation is the kernel's BPF maps, one lives in memory for tests.
pub trait FlowTable: Send + Sync {
    /// The destination that the application asked for when it opened the connection `client` → `local` (as the accepted socket shows
    /// them), and forgets the hand-off. `None`: there is no such flow, so the connection is not one that was captured: refuse it.
    ///
    /// # Errors
    /// When the map cannot be read: refuse the connection.
    fn take_destination(
        &self,
        pod: &Pod,
        client: SocketAddr,
        local: SocketAddr,
    ) -> Result<Option<SocketAddr>, FlowError>;

    /// Tells the kernel, before `socket` connects to an application in a pod, which client the application is to see as its peer.
    ///
    /// # Errors
    /// When the map cannot be written.
    fn announce_delivery(&self, socket: BorrowedFd<'_>, client: SocketAddr) -> Result<(), FlowError>;
}
