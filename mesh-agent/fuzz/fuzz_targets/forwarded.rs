//! Any bytes as a peer's `forwarded` header: it names a client or nobody, and the client's address stays the tunnel's.
#![no_main]

use std::net::SocketAddr;

use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use mesh_agent::tunnel::headers::{forwarded_client, real_client};

fuzz_target!(|value: &[u8]| {
    let _ = forwarded_client(value);
    let peer = SocketAddr::from(([198, 18, 0, 2], 40000));
    let header = HeaderValue::from_bytes(value).ok();
    assert_eq!(real_client(peer, header.as_ref()).ip(), peer.ip());
});
