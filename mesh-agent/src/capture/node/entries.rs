//! What the kernel's maps hold of a pod: its entry, its own addresses, its listeners. Enters and removes them; decides neither when nor
//! in which order, which is the enrolment's part.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_common::{Addr, BANKS, MAX_WORKERS, OwnKey, PodEntry, Role, listener_index};

use super::Capture;
use crate::capture::Listener;
use crate::capture::error::EnrolError;
use crate::capture::pod::PodSpec;

impl Capture {
    /// Makes a pod known to the programs, with its addresses and the slot of its listeners.
    pub(super) fn put_entry(
        &self,
        spec: &PodSpec,
        cookie: u64,
        slot: u32,
        workers: usize,
    ) -> Result<(), EnrolError> {
        let (ip4, ip6) = spec.by_family();
        let workers = u32::try_from(workers).unwrap_or(MAX_WORKERS);
        let entry = PodEntry {
            ip4,
            ip6,
            slot,
            bank: 0,
            workers: workers.clamp(1, MAX_WORKERS),
            flags: 0,
        };
        self.pods
            .insert(&cookie, &entry)
            .map_err(EnrolError::kernel("entering it into the map of pods"))
    }

    /// New addresses first: a moment with too many is harmless, one with too few is a loop. Each leads to its device.
    pub(super) fn put_own(
        &self,
        cookie: u64,
        before: &BTreeMap<IpAddr, u32>,
        now: &BTreeMap<IpAddr, u32>,
    ) -> Result<(), EnrolError> {
        let key = |ip: &IpAddr| OwnKey {
            netns: cookie,
            addr: Addr::from_ip(*ip),
        };
        for (ip, device) in now.iter().filter(|(ip, device)| before.get(*ip) != Some(*device)) {
            self.own
                .insert(&key(ip), device)
                .map_err(EnrolError::kernel(format!("entering its address {ip}")))?;
        }
        for ip in before.keys().filter(|ip| !now.contains_key(*ip)) {
            self.own
                .remove(&key(ip))
                .map_err(EnrolError::kernel(format!("forgetting its address {ip}")))?;
        }
        Ok(())
    }

    /// Enters a pod's listeners, for `sk_lookup` to choose from.
    pub(super) fn list(&self, slot: u32, listeners: &[Listener]) -> Result<(), EnrolError> {
        for listener in listeners {
            let worker = u32::try_from(listener.worker).unwrap_or(0);
            let index = listener_index(slot, 0, listener.role, worker);
            let socket = std::os::fd::AsRawFd::as_raw_fd(&listener.socket);
            self.listeners
                .insert(&index, &(socket as u32))
                .map_err(EnrolError::kernel("entering its listeners"))?;
        }
        Ok(())
    }

    /// Takes all listeners of a slot out.
    pub(super) fn unlist(&self, slot: u32) {
        for bank in 0..BANKS {
            for role in [Role::Outbound, Role::Inbound, Role::Tunnel] {
                for worker in 0..MAX_WORKERS {
                    // Most are gone already: a listener leaves the map when it is closed.
                    let _ = self.listeners.remove(&listener_index(slot, bank, role, worker));
                }
            }
        }
    }

    /// Removes all that the maps hold of a pod.
    pub(super) fn forget(&self, cookie: u64) {
        let _ = self.pods.remove(&cookie);
        for key in self.own.keys().unwrap_or_default() {
            if key.netns == cookie {
                let _ = self.own.remove(&key);
            }
        }
        self.flows.sweep(cookie);
        self.passes.sweep(cookie);
    }
}

/// Takes back what a failed capture has entered.
pub(super) struct Undo<'a> {
    pub(super) capture: &'a Capture,
    pub(super) cookie: u64,
    pub(super) slot: u32,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        self.capture.unlist(self.slot);
        self.capture.forget(self.cookie);
        let _ = self.capture.run.remove_pod(self.cookie);
    }
}
