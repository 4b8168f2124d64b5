//! A pod's BPF object: `sk_lookup`, loaded once per pod because it can learn neither namespace nor mark from its context.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the program macros drop the docstrings")]

use aya_ebpf::Global;
use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::PodConst;
use mesh_ebpf::ctx;
use mesh_ebpf::lookup::{self, Steering};

/// Which pod this instance serves; the agent writes it before it loads the object.
#[unsafe(no_mangle)]
static POD: Global<PodConst> = Global::new(PodConst {
    netns: 0,
    host_netns: 0,
});

/// Steers packets that open a connection in the pod's namespace.
#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    let packet = ctx::sk_lookup(&ctx);
    let pod = POD.load();
    match lookup::steer(&ctx, &packet, pod.netns, pod.host_netns) {
        Steering::Pass(_) => SK_PASS,
        Steering::Drop(_) => SK_DROP,
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lends some helpers to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
