//! Any text as manifests to analyze: findings come out, sorted, each once, and each at a place within the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::analyze;
use mesh_core::snapshot::MeshSettings;

fuzz_target!(|yaml: &[u8]| {
    let settings = MeshSettings {
        node_name: "node".into(),
        ..MeshSettings::default()
    };
    let found = analyze::files(settings, true, &[("f", yaml)]);
    // A carriage return ends a line, too (YAML 1.2.2, section 5.4).
    let lines = 1 + yaml.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count() as u64;
    assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "{found:?}");
    for finding in &found {
        assert!(
            finding.origin.as_ref().is_none_or(|origin| origin.line <= lines),
            "{finding:?}"
        );
    }
});
