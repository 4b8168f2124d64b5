//! What the kernel's maps hold of a pod: its entry, its own addresses, its listeners. Enters and removes them; decides neither when nor
//! in which order, which is the enrolment's part.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mesh_common::{Addr, BANKS, MAX_PODS, MAX_WORKERS, OwnKey, PodEntry, Role, listener_index};
use mesh_core::model::WorkloadUid;

use super::{Capture, State};
use crate::capture::Listener;
use crate::capture::error::EnrolError;
use crate::capture::pod::{CapturedPod, PodSpec};

/// Where a pod's listeners are in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) slot: u32,
    pub(super) bank: u32,
    /// An earlier agent's listeners are, or were, in the other bank of the slot, and the pod's entry leads to them.
    pub(super) inherited: bool,
}

impl Seat {
    /// That of a captured pod.
    pub(super) fn of(pod: &CapturedPod) -> Self {
        Self {
            slot: pod.pod.slot,
            bank: pod.bank,
            inherited: false,
        }
    }
}

impl Capture {
    /// Reads the addresses of a captured pod anew and brings the kernel's set in line.
    ///
    /// # Errors
    /// When the namespace cannot be read or the set is full.
    pub fn refresh_addresses(&self, uid: &WorkloadUid) -> Result<(), EnrolError> {
        let mut state = self.state();
        let Some(pod) = state.pods.get_mut(uid) else {
            return Ok(());
        };
        let now = pod
            .netns
            .interfaces()
            .map_err(EnrolError::kernel("reading its addresses"))?;
        self.put_own(pod.netns.cookie(), &pod.own, &now.addresses)?;
        pod.own = now.addresses;
        Ok(())
    }

    /// A descriptor that is readable when addresses of a captured pod change.
    pub(in crate::capture) fn address_changes(&self, uid: &WorkloadUid) -> Option<Arc<OwnedFd>> {
        self.state().pods.get(uid).map(|pod| Arc::clone(&pod.changes))
    }

    /// The seat of a pod that is about to be captured: beside what an earlier agent has left, or a free one.
    pub(super) fn seat(&self, state: &State, cookie: u64) -> Result<Seat, EnrolError> {
        let entry = self.pods.get(&cookie);
        let entry = entry.map_err(EnrolError::kernel("reading its entry in the map of pods"))?;
        let taken = |slot| state.pods.values().any(|pod| pod.pod.slot == slot);
        match entry {
            Some(entry) if entry.slot < MAX_PODS && !taken(entry.slot) => Ok(Seat {
                slot: entry.slot,
                bank: (entry.bank + 1) % BANKS,
                inherited: true,
            }),
            Some(_) => Ok(Seat {
                inherited: true,
                ..self.free_seat(state)?
            }),
            None => self.free_seat(state),
        }
    }

    /// A slot that neither a captured pod has nor one that an earlier agent had captured.
    pub(super) fn free_seat(&self, state: &State) -> Result<Seat, EnrolError> {
        let mut used: BTreeSet<u32> = state.pods.values().map(|pod| pod.pod.slot).collect();
        let inherited = self.pods.keys().unwrap_or_default();
        used.extend(
            inherited
                .iter()
                .filter_map(|cookie| Some(self.pods.get(cookie).ok()??.slot)),
        );
        let slot = (0..MAX_PODS).find(|slot| !used.contains(slot));
        Ok(Seat {
            slot: slot.ok_or(EnrolError::Full)?,
            bank: 0,
            inherited: false,
        })
    }

    /// The own addresses of a pod, as they are in the kernel's map.
    pub(super) fn own_of(&self, cookie: u64) -> BTreeMap<IpAddr, u32> {
        let keys = self.own.keys().unwrap_or_default();
        let of_pod = keys.into_iter().filter(|key| key.netns == cookie);
        of_pod
            .filter_map(|key| Some((key.addr.to_ip(), self.own.get(&key).ok()??)))
            .collect()
    }

    /// Makes a pod known to the programs, with its addresses and the slot of its listeners.
    pub(super) fn put_entry(
        &self,
        spec: &PodSpec,
        cookie: u64,
        seat: Seat,
        workers: usize,
    ) -> Result<(), EnrolError> {
        let (ip4, ip6) = spec.by_family();
        let workers = u32::try_from(workers).unwrap_or(MAX_WORKERS);
        let entry = PodEntry {
            ip4,
            ip6,
            slot: seat.slot,
            bank: seat.bank,
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
    pub(super) fn list(&self, seat: Seat, listeners: &[Listener]) -> Result<(), EnrolError> {
        for listener in listeners {
            let worker = u32::try_from(listener.worker).unwrap_or(0);
            let index = listener_index(seat.slot, seat.bank, listener.role, worker);
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
            self.unlist_bank(slot, bank);
        }
    }

    fn unlist_bank(&self, slot: u32, bank: u32) {
        for role in [Role::Outbound, Role::Inbound, Role::Tunnel] {
            for worker in 0..MAX_WORKERS {
                // Most are gone already: a listener leaves the map when it is closed.
                let _ = self.listeners.remove(&listener_index(slot, bank, role, worker));
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

/// Takes back what a failed capture has entered. What an earlier agent had in force stays in force.
pub(super) struct Undo<'a> {
    pub(super) capture: &'a Capture,
    pub(super) cookie: u64,
    pub(super) seat: Seat,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.seat.inherited {
            self.capture.unlist_bank(self.seat.slot, self.seat.bank);
            return;
        }
        self.capture.unlist(self.seat.slot);
        self.capture.forget(self.cookie);
        let _ = self.capture.run.remove_pod(self.cookie);
    }
}
