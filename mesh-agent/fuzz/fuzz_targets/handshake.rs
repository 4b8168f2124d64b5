//! Any bytes to the tunnel's TLS, from a client that never had a certificate: nobody is believed, every refusal has a reason.
#![no_main]

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mesh_agent::identity::{EmbeddedCa, Identities, IdentityOptions, WorkloadTls, accept};
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;

struct Stage {
    runtime: Runtime,
    tls: WorkloadTls,
}

/// One identity with a certificate of a CA of its own, made once.
fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = std::env::temp_dir().join(format!("mesh-fuzz-ca-{}", std::process::id()));
        let trust_domain = "cluster.local".parse().unwrap();
        let ca = EmbeddedCa::open(&dir, &trust_domain).unwrap();
        let _ = std::fs::remove_dir_all(&dir);
        let options = IdentityOptions { lifetime: Duration::from_secs(86_400), trust_domain, aliases: Vec::new() };
        let identities = Identities::new(Arc::new(ca), options).unwrap();
        let id = "spiffe://cluster.local/ns/fuzz/sa/fuzz".parse().unwrap();
        let tls = runtime.block_on(identities.ensure(&id)).unwrap();
        Stage { runtime, tls }
    })
}

fuzz_target!(|bytes: &[u8]| {
    let stage = stage();
    stage.runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let Err(error) = accept(&stage.tls, server).await else { panic!("somebody was believed") };
        assert!(!error.reason.is_empty() && !error.message.is_empty());
    });
});
