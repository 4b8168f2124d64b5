//! For the agent's side: what crosses to the kernel is plain bytes, as aya wants to be told.

use super::{
    Addr, CidrData, Event, FlowKey, KubeletProcess, LogSwitch, NodeConst, OwnKey, Peer, PodConst, PodEntry,
    PortKey,
};

// SAFETY: `repr(C)`, plain integers, no padding (asserted below), every bit pattern valid.
unsafe impl aya::Pod for Addr {}
// SAFETY: as above.
unsafe impl aya::Pod for PodEntry {}
// SAFETY: as above.
unsafe impl aya::Pod for PodConst {}
// SAFETY: as above.
unsafe impl aya::Pod for OwnKey {}
// SAFETY: as above.
unsafe impl aya::Pod for FlowKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Peer {}
// SAFETY: as above.
unsafe impl aya::Pod for Event {}
// SAFETY: as above.
unsafe impl aya::Pod for NodeConst {}
// SAFETY: as above.
unsafe impl aya::Pod for PortKey {}
// SAFETY: as above.
unsafe impl aya::Pod for CidrData {}
// SAFETY: as above.
unsafe impl aya::Pod for LogSwitch {}
// SAFETY: as above.
unsafe impl aya::Pod for KubeletProcess {}
