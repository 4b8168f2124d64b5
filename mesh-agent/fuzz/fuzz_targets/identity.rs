//! Any bytes as a peer's certificate: never a panic, and an identity only from what parses as exactly one.
#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use mesh_agent::identity::{Leaf, peer_identity};

fuzz_target!(|certificate: &[u8]| {
    let chain = [certificate.into()];
    let proven = peer_identity(Some(&chain), SystemTime::now());
    match (Leaf::parse(certificate), proven) {
        (Ok(leaf), Ok(id)) => assert_eq!(leaf.identity, id),
        (Err(_), Ok(id)) => panic!("{id} comes from no certificate"),
        (_, Err(_)) => {}
    }
});
