//! A flow table in memory, for unit tests of the data path.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use super::{FlowError, FlowTable, Pod};

/// Flows that a test has put in, and deliveries that the code under test has announced.
#[derive(Debug, Default)]
pub(crate) struct MemoryFlows {
    handoff: Mutex<HashMap<(u64, SocketAddr, SocketAddr), SocketAddr>>,
    deliveries: Mutex<Vec<(RawFd, SocketAddr)>>,
}

#[allow(dead_code, reason = "a tool for the unit tests of other modules")]
impl MemoryFlows {
    /// As if a process in the namespace had connected `client` → `local`, asking for `destination`.
    pub(crate) fn captured(
        &self,
        netns: u64,
        client: SocketAddr,
        local: SocketAddr,
        destination: SocketAddr,
    ) {
        let mut handoff = self.handoff.lock().unwrap_or_else(PoisonError::into_inner);
        handoff.insert((netns, client, local), destination);
    }

    /// Hand-offs that nobody has taken.
    pub(crate) fn waiting(&self) -> usize {
        self.handoff.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The clients announced, by socket, in order.
    pub(crate) fn announced(&self) -> Vec<(RawFd, SocketAddr)> {
        self.deliveries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl FlowTable for MemoryFlows {
    fn take_destination(
        &self,
        pod: &Pod,
        client: SocketAddr,
        local: SocketAddr,
    ) -> Result<Option<SocketAddr>, FlowError> {
        let mut handoff = self.handoff.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(handoff.remove(&(pod.netns, client, local)))
    }

    fn announce_delivery(&self, socket: BorrowedFd<'_>, client: SocketAddr) -> Result<(), FlowError> {
        let mut deliveries = self.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
        deliveries.push((socket.as_raw_fd(), client));
        Ok(())
    }
}
