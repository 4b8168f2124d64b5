//! Any bytes as an event of the BPF programs: decoded or refused, and what is decoded does not depend on what follows it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_agent::capture::events::{advice, decode};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(event) = decode(bytes) {
        let mut longer = bytes.to_vec();
        longer.extend_from_slice(b"more");
        assert_eq!(decode(&longer), Ok(event.clone()));
        assert!(advice(event.kind).is_none_or(|text| !text.is_empty()));
    }
});
