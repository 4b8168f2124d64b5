//! The agent's side of a delivery: `sockops` on the agent's own cgroup. The agent stores the real client with its socket; here that
//! is keyed by the flow, for the application's side to take up.

use aya_ebpf::programs::SockOpsContext;
use mesh_common::{Counter, Outcome, PEER_DELIVERY, Peer};

use crate::debug::Line;
use crate::events::{self, Flow};
use crate::maps::DELIVERIES;
use crate::{ctx, flow};

const TCP_CLOSE: u32 = 7;

/// TCP_CONNECT_CB: announces the client under the flow that the application's socket is about to see.
#[inline(never)]
pub fn announce(ctx: &SockOpsContext) -> Option<Line> {
    let sock = ctx::sock_ops_sock(ctx)?;
    let stored = ctx::stored(sock)?;
    if stored.kind != PEER_DELIVERY {
        return None;
    }
    let key = flow::opened(ctx);
    let other = (key.remote, key.remote_port);
    let value = Peer { kind: 0, ..stored };
    if DELIVERIES.insert(&key, &value, 0).is_err() {
        events::report(Counter::DeliveryFull, &Flow::of(&key, other));
        return None;
    }
    ctx::watch_state(ctx);
    Some(Line {
        key,
        other,
        became: Outcome::DeliveryAnnounced as u32,
    })
}

/// STATE_CB: forgets an announcement that nobody took up (nobody listened, or the application's listener is not in the pod's
/// cgroup).
#[inline(always)]
pub fn state_changed(ctx: &SockOpsContext) {
    let (_, new) = ctx::sock_ops_states(ctx);
    if new == TCP_CLOSE {
        let _ = DELIVERIES.remove(&flow::opened(ctx));
    }
}
