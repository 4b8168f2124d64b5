use std::time::Duration;

use mesh_core::snapshot::MeshSettings;

use super::*;
use crate::identity::{CertificateState, EmbeddedCa, IdentityOptions};

fn settings() -> MeshSettings {
    MeshSettings {
        node_name: "n1".into(),
        ..MeshSettings::default()
    }
}

fn pod(name: &str, node: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{mesh-agent.io/dataplane: enabled}}, \
         annotations: {{mesh-agent.io/netns: /run/netns/{name}, mesh-agent.io/cgroup: {name}}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {name}}}\n"
    )
}

async fn until(what: impl Fn() -> bool) {
    let waited = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waited)
        .await
        .unwrap();
}

#[tokio::test]
async fn certificates_come_and_go_with_the_enrolled_pods_of_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let ca = EmbeddedCa::open(&dir.path().join("ca"), &settings().trust_domain).unwrap();
    let options = IdentityOptions {
        lifetime: Duration::from_secs(3600),
        trust_domain: settings().trust_domain,
        aliases: vec![],
    };
    let identities = Arc::new(Identities::new(Arc::new(ca), options).unwrap());
    let yaml = pod("order", "n1") + &pod("payment", "n2");
    let cell = Arc::new(SnapshotCell::new(Snapshot::from_yaml(settings(), &yaml)));
    let stopping = CancellationToken::new();
    let task = tokio::spawn(keep(identities.clone(), cell.clone(), stopping.clone()));
    let valid = || {
        let status = identities.status();
        let valid = status.iter().filter(|s| s.state == CertificateState::Valid);
        valid
            .map(|s| s.identity.service_account().to_owned())
            .collect::<Vec<_>>()
    };
    until(|| valid() == ["order"]).await;
    cell.publish(Arc::new(Snapshot::from_yaml(settings(), &pod("report", "n1"))));
    until(|| valid() == ["report"]).await;
    stopping.cancel();
    task.await.unwrap();
}
