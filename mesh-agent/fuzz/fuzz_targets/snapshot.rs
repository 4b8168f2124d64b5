//! Any text as a whole mesh: a snapshot comes out, and no enrolled destination is ever dialled in plaintext.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::plan::{self, Transport};
use mesh_core::snapshot::{MeshSettings, Snapshot};

fuzz_target!(|input: (u64, &str)| {
    let (random, yaml) = input;
    let settings = MeshSettings {
        node_name: "node".into(),
        ..MeshSettings::default()
    };
    let snapshot = Snapshot::from_yaml(settings, yaml);
    let pods = snapshot.workloads().flat_map(|workload| workload.addresses.clone());
    let vips = snapshot.services().flat_map(|service| service.vips.clone());
    let external = snapshot.services().flat_map(|service| service.external.iter().map(|one| one.address));
    let addresses = pods.chain(vips).chain(external);
    let destinations: Vec<_> = addresses.flat_map(|ip| [(ip, 80).into(), (ip, 8080).into()]).collect();
    for source in snapshot.workloads() {
        for destination in &destinations {
            let Ok(out) = plan::outbound(&snapshot, source, *destination, None, random) else { continue };
            let enrolled = snapshot
                .workloads()
                .any(|w| w.enrolment.is_enrolled() && w.addresses.contains(&out.address.ip()));
            assert!(out.transport != Transport::Passthrough || !enrolled, "{out:?}");
        }
    }
});
