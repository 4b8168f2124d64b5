//! Events: what they hold, and the budget that they are told within.

use crate::{Addr, COUNTERS, Counter};

/// Something that was refused, dropped or lost: what the BPF programs write into the `EVENTS` ring buffer, besides counting it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// When, in nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// Cookie of the socket's, or the packet's, network namespace.
    pub netns: u64,
    /// Address of the side that opened the connection; unset where the socket had none yet.
    pub local: Addr,
    /// Address that it connects to, as the application asked for it where that is known.
    pub remote: Addr,
    /// Port of the side that opened the connection, host byte order; zero where the socket had none yet.
    pub local_port: u16,
    /// Port that it connects to, host byte order.
    pub remote_port: u16,
    /// What happened: the number of the [`Counter`] that counted it.
    pub kind: u32,
    /// IP protocol.
    pub protocol: u32,
    /// Process that asked for it, in the host's numbering; zero where there is none (packets) or the hook cannot tell.
    pub pid: u32,
}

/// Bytes of the `EVENTS` ring buffer: some 900 events.
pub const EVENTS_BYTES: u32 = 64 * 1024;

/// Events of one kind, on one CPU and in one lane, that may come at once.
pub const EVENT_BURST: u64 = 10;

/// After a burst, nanoseconds from one event to the next.
pub const EVENT_INTERVAL: u64 = 500_000_000;

/// Each kind of event has this many lanes, chosen by network namespace, so that a pod's flood seldom hides another pod's events.
pub const EVENT_LANES: u32 = 8;

/// Entries of the per-CPU budget of events.
pub const EVENT_BUDGETS: u32 = COUNTERS * EVENT_LANES;

/// Index of an event's budget.
#[inline(always)]
pub const fn event_budget(kind: Counter, netns: u64) -> u32 {
    kind as u32 * EVENT_LANES + (netns % EVENT_LANES as u64) as u32
}

/// Whether an event may be told now, and what its budget becomes then. A budget is the time up to which it is spent (the generic cell rate
/// algorithm, ITU-T I.371): zero is a full one.
#[inline(always)]
pub const fn spend_event(budget: u64, now: u64) -> Option<u64> {
    let spent = if budget > now { budget } else { now };
    if spent - now > (EVENT_BURST - 1) * EVENT_INTERVAL {
        return None;
    }
    Some(spent + EVENT_INTERVAL)
}
