//! AuthorizationPolicy: tables of policies against connections, and an independent slow reading of the documents as an oracle.

mod oracle;
mod table;

use std::net::{IpAddr, SocketAddr};

use crate::authz::{Facts, Judgement};
use crate::model::{SpiffeId, WorkloadUid};
use crate::plan::{self, Inbound, Reason};
use crate::snapshot::{MeshSettings, Snapshot};

/// The local trust domain has a name of its own, an alias, and `cluster.local` as everybody's.
fn settings() -> MeshSettings {
    MeshSettings {
        node_name: "node-1".into(),
        trust_domain: "mesh.example".parse().unwrap(),
        trust_domain_aliases: vec!["old.example".parse().unwrap()],
        ..MeshSettings::default()
    }
}

/// The workload that connections go to: `payment` in `shop`, with Services `payment` (which selects it) and `other` (which does not).
const PAYMENT: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {mesh-agent.io/dataplane: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: payment, namespace: shop, labels: {app: payment, version: v1}}
spec: {nodeName: node-1, serviceAccountName: payment}
status: {podIPs: [{ip: 198.18.0.2}, {ip: '2001:db8::2'}]}
---
apiVersion: v1
kind: Service
metadata: {name: payment, namespace: shop}
spec: {clusterIP: 198.19.0.1, selector: {app: payment}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {clusterIP: 198.19.0.2, selector: {app: other}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: by-hand, namespace: shop}
spec: {clusterIP: 198.19.0.3, ports: [{port: 80}]}
";

/// A connection to `payment`.
#[derive(Clone, Debug)]
struct Connection {
    identity: Option<SpiffeId>,
    source: IpAddr,
    destination: SocketAddr,
}

impl Connection {
    /// `identity` is `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, or empty for plaintext.
    fn new(identity: &str, source: &str, destination: &str) -> Self {
        Self {
            identity: (!identity.is_empty()).then(|| format!("spiffe://{identity}").parse().unwrap()),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            source: self.source,
            identity: self.identity.as_ref(),
            destination: self.destination,
        }
    }

    fn inbound(&self) -> Inbound<'_> {
        Inbound {
            client: self.source,
            identity: self.identity.as_ref(),
            address: self.destination,
        }
    }
}

fn payment() -> WorkloadUid {
    WorkloadUid::new("shop", "payment", "")
}

fn snapshot(policies: &str) -> Snapshot {
    let snapshot = Snapshot::from_yaml(settings(), &format!("{PAYMENT}---\n{policies}"));
    let rejections = &snapshot.diagnostics().rejections;
    assert!(rejections.is_empty(), "{rejections:?}\n{policies}");
    snapshot
}

/// What the policies say of the connection, by the way that the data path asks.
fn judge(snapshot: &Snapshot, connection: &Connection) -> Judgement {
    let applicable = snapshot.authorization(&payment()).unwrap();
    let judgement = applicable.judge(snapshot.local_domain(), &connection.facts());
    match plan::inbound(snapshot, &payment(), &connection.inbound()) {
        Ok(permit) => assert_eq!(*permit.judgement(), judgement),
        Err(refusal) => {
            assert_eq!(refusal.reason, Reason::PolicyDenied, "{refusal}");
            assert_eq!(refusal.judgement.as_deref(), Some(&judgement));
            assert!(!judgement.verdict.is_allowed());
        }
    }
    judgement
}
