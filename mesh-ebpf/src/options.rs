//! `cgroup/setsockopt`: the one socket option that would let a connection begin without a handshake. Every other option passes as it is.

use aya_ebpf::programs::SockoptContext;
use mesh_common::{Addr, Counter};

use crate::ctx;
use crate::events::{self, Flow};
use crate::mutation::{self, Mechanism};

const IPPROTO_TCP: i32 = 6;
const TCP_FASTOPEN_NO_COOKIE: i32 = 34;

/// Whether the application may set the option.
///
/// A listener that takes data of TCP Fast Open without a cookie (RFC 7413, 4.1.2: the cookie proves the client's address) believes the
/// source address of a single packet. IPv6 delivers packets from outside that bear one of the pod's own addresses as their source;
/// `sk_lookup` takes them for the pod's own traffic, and only the handshake, whose second packet stays within the pod, stops them.
#[inline(always)]
pub fn is_allowed(ctx: &SockoptContext) -> bool {
    ctx::keep_long_sockopt(ctx);
    let asked = ctx::sockopt_name(ctx);
    if asked == (IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE)
        && ctx::sockopt_word(ctx) != Some(0)
        && !mutation::is_off(Mechanism::FastOpenCookie)
    {
        let flow = Flow {
            netns: ctx::sockopt_netns(ctx),
            local: (Addr::default(), 0),
            remote: (Addr::default(), ctx::sockopt_port(ctx)),
            protocol: events::TCP,
            pid: 0,
        };
        events::report(Counter::FastOpenRefused, &flow);
        return false;
    }
    true
}
