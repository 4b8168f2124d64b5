//! Any text as what /proc shows of mounts and sockets: nothing panics, and what is read was there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_agent::capture::fuzzing::{listening_ports, mounts};

fuzz_target!(|text: &str| {
    assert!(mounts(text) <= text.lines().count());
    assert!(listening_ports(text) <= text.lines().count());
});
