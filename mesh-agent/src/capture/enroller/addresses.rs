//! Follows the addresses of captured pods, each by a task: what the kernel says has changed is read anew. Enrols nothing.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use mesh_core::model::WorkloadUid;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::capture::node::Capture;
use crate::capture::sys::async_readable;

/// Follows the addresses of one pod until it is dropped.
pub(super) struct Watcher {
    changes: Arc<OwnedFd>,
    task: JoinHandle<()>,
}

impl Watcher {
    pub(super) fn start(capture: Arc<Capture>, uid: WorkloadUid, changes: Arc<OwnedFd>) -> Self {
        let watched = Arc::clone(&changes);
        let task = tokio::spawn(async move {
            if let Err(error) = follow(capture, &uid, watched).await {
                warn!(workload = %uid, %error, "its addresses are not followed any more");
            }
        });
        Self { changes, task }
    }

    /// Whether it follows by this socket.
    pub(super) fn follows(&self, changes: &Arc<OwnedFd>) -> bool {
        Arc::ptr_eq(&self.changes, changes)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(capture: Arc<Capture>, uid: &WorkloadUid, changes: Arc<OwnedFd>) -> std::io::Result<()> {
    let changes = async_readable(changes)?;
    loop {
        let mut ready = changes.readable().await?;
        drain(changes.get_ref().as_fd());
        ready.clear_ready();
        let (capture, pod) = (Arc::clone(&capture), uid.clone());
        let refreshed = tokio::task::spawn_blocking(move || capture.refresh_addresses(&pod)).await;
        match refreshed {
            Ok(Ok(())) => debug!(workload = %uid, "read its addresses anew"),
            Ok(Err(error)) => warn!(workload = %uid, %error, "its addresses cannot be read anew"),
            Err(_) => return Err(std::io::ErrorKind::Other.into()),
        }
    }
}

/// Empties the socket: what it says does not matter, nor does an overrun, since everything is read anew.
fn drain(socket: BorrowedFd<'_>) {
    let mut buffer = [0; 8192];
    loop {
        match nix::sys::socket::recv(
            socket.as_raw_fd(),
            &mut buffer,
            nix::sys::socket::MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(1..) | Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EINTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}
