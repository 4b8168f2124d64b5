//! Tells the agent what was refused, dropped or lost, one by one. Counters have all of it; events have as much as their budget allows.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use mesh_common::{Addr, Counter, Event, FlowKey, event_budget, spend_event};

use crate::maps::{EVENT_BUDGET, EVENTS, count};
use crate::mutation::{self, Mechanism};

/// `IPPROTO_TCP`.
pub const TCP: u32 = 6;

/// What an event is about.
#[derive(Clone, Copy)]
pub struct Flow {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// The side that opens the connection; unset where it has no address yet.
    pub local: (Addr, u16),
    /// Where it wants to go.
    pub remote: (Addr, u16),
    /// IP protocol.
    pub protocol: u32,
    /// The process, where the hook can tell.
    pub pid: u32,
}

impl Flow {
    /// A TCP flow towards `remote`, with what its key tells.
    #[inline(always)]
    pub fn of(key: &FlowKey, remote: (Addr, u16)) -> Self {
        Self {
            netns: key.netns,
            local: (key.local, key.local_port),
            remote,
            protocol: TCP,
            pid: 0,
        }
    }
}

/// Counts something that was refused, dropped or lost, and tells the agent of it where the budget of its kind allows.
#[inline(always)]
pub fn report(counter: Counter, flow: &Flow) {
    count(counter);
    if mutation::is_off(Mechanism::EventsTold) {
        return;
    }
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_ktime_get_ns() };
    let event = Event {
        time: now,
        netns: flow.netns,
        local: flow.local.0,
        remote: flow.remote.0,
        local_port: flow.local.1,
        remote_port: flow.remote.1,
        kind: counter as u32,
        protocol: flow.protocol,
        pid: flow.pid,
    };
    if !spend(counter, flow.netns, now) || EVENTS.output_untyped::<Event>(event, 0).is_err() {
        count(Counter::EventsSuppressed);
    }
}

/// Two programs that interrupt each other here may both go through: the budget is a limit to within a few.
#[inline(always)]
fn spend(counter: Counter, netns: u64, now: u64) -> bool {
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(event_budget(counter, netns)) else {
        return false;
    };
    // SAFETY: the kernel returned this CPU's slot, valid while the program runs.
    match spend_event(unsafe { *budget }, now) {
        Some(next) => {
            // SAFETY: as above.
            unsafe { *budget = next };
            true
        }
        None => false,
    }
}
