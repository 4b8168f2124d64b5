//! Any text as an AuthorizationPolicy's spec: a judgement comes out, it is the one that is explained, and a snapshot of the same documents
//! gives no reason to judge again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::plan::{self, Inbound};
use mesh_core::snapshot::{MeshSettings, Snapshot};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: n, labels: {app: a, mesh-agent.io/dataplane: enabled}}
spec: {nodeName: node, serviceAccountName: a}
status: {podIPs: [{ip: 198.18.0.1}, {ip: '2001:db8::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: n, labels: {app: b, mesh-agent.io/dataplane: enabled}}
spec: {nodeName: node, serviceAccountName: b}
status: {podIPs: [{ip: 198.18.0.2}, {ip: '2001:db8::2'}]}
---
";

fuzz_target!(|input: (bool, bool, u16, &str)| {
    let (root, dry_run, port, spec) = input;
    let settings = MeshSettings {
        node_name: "node".into(),
        ..MeshSettings::default()
    };
    let namespace = if root { "istio-system" } else { "n" };
    let indented = spec.replace('\n', "\n  ");
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: p, namespace: {namespace}, annotations: {{istio.io/dry-run: '{dry_run}'}}}}\nspec:\n  {indented}\n"
    );
    let snapshot = Snapshot::from_yaml(settings.clone(), &format!("{PODS}{policy}"));
    let again = Snapshot::from_yaml(settings, &format!("{PODS}{policy}"));
    let all: Vec<_> = snapshot.workloads().cloned().collect();
    for destination in &all {
        assert!(!plan::inbound_differs(&snapshot, &again, &destination.uid));
        for source in &all {
            for (ip, client) in destination.addresses.iter().zip(&source.addresses) {
                for identity in [Some(&source.identity), None] {
                    let question = Inbound {
                        client: *client,
                        identity,
                        address: (*ip, port).into(),
                    };
                    let decided = plan::inbound(&snapshot, &destination.uid, &question);
                    assert_eq!(
                        decided.as_ref().err(),
                        plan::inbound(&again, &destination.uid, &question).as_ref().err()
                    );
                    let (Some(identity), Err(refusal)) = (identity, &decided) else {
                        continue;
                    };
                    let Ok(told) =
                        plan::explain(&snapshot, &identity.to_string(), &question.address.to_string())
                    else {
                        continue;
                    };
                    let same = |way: &plan::Explained| {
                        way.mode != plan::Mode::MutualTls || way.refusal.as_ref() == Some(refusal)
                    };
                    assert!(told.ways.iter().all(same), "{told:?}");
                }
            }
        }
    }
});
