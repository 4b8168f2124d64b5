//! Any text as a CONNECT authority: only an address of the pod comes out.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|authority: &str| {
    let pod: [IpAddr; 2] = [[198, 18, 0, 2].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 2].into()];
    if let Ok(address) = mesh_core::plan::hbone_authority(authority, &pod) {
        assert!(pod.contains(&address.ip()) && address.port() != 0);
    }
});
