//! Any bytes as a file of documents: they are accepted or rejected, in time, at a line of the file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let contents = mesh_core::manifest::parse("fuzz.yaml", bytes);
    let lines = bytes.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count() as u64 + 2;
    for rejection in &contents.rejections {
        assert!((1..=lines).contains(&rejection.origin.line), "{rejection}");
        assert!(!rejection.message.is_empty());
    }
});
