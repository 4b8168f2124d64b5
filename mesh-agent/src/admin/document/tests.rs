use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::telemetry::connections::tests::info;
use crate::telemetry::connections::{ConnectionInfo, ConnectionLog, Reporter, Security};

fn entry(reporter: Reporter) -> ConnectionEntry {
    let log = Arc::new(ConnectionLog::default());
    let connection = log.open(info(reporter));
    connection.counts().add_received(10);
    connection.counts().add_sent(2000);
    ConnectionEntry::of(&log.live()[0])
}

#[test]
fn a_connection_is_shown_with_both_parties() {
    let mut value = serde_json::to_value(entry(Reporter::Source)).unwrap();
    for changing in ["id", "opened_at", "age_seconds"] {
        assert!(value.as_object_mut().unwrap().remove(changing).is_some());
    }
    assert_eq!(
        value,
        json!({
            "direction": "outbound",
            "security": "mutual_tls",
            "source": {
                "address": "198.18.0.1:40000",
                "workload": "order-1",
                "namespace": "shop",
                "identity": "spiffe://cluster.local/ns/shop/sa/order"
            },
            "destination": {
                "address": "198.18.0.2:8080",
                "workload": "payment-1",
                "namespace": "shop",
                "identity": "spiffe://cluster.local/ns/shop/sa/payment"
            },
            "requested": "198.18.9.9:80",
            "service": "payment.shop.svc.cluster.local",
            "received_bytes": 10,
            "sent_bytes": 2000,
            "held_bytes": 0
        })
    );
}

#[test]
fn what_is_not_known_is_absent() {
    let log = Arc::new(ConnectionLog::default());
    let _connection = log.open(ConnectionInfo {
        source: None,
        source_identity: None,
        service: None,
        security: Security::None,
        ..info(Reporter::Destination)
    });
    let value = serde_json::to_value(ConnectionEntry::of(&log.live()[0])).unwrap();
    assert_eq!(value["source"], json!({"address": "198.18.0.1:40000"}));
    assert_eq!(
        (&value["security"], &value["direction"]),
        (&json!("none"), &json!("inbound"))
    );
    assert!(value.get("service").is_none());
}

#[test]
fn documents_survive_the_round_trip() {
    let connections = Connections {
        connections: vec![entry(Reporter::Source), entry(Reporter::Destination)],
    };
    let text = serde_json::to_string(&connections).unwrap();
    assert_eq!(serde_json::from_str::<Connections>(&text).unwrap(), connections);
}

#[test]
fn a_filter_matches_either_party_but_never_a_mixture_of_both() {
    let mut entry = entry(Reporter::Source);
    entry.destination.namespace = Some("bank".into());
    let filter = |workload: Option<&str>, namespace: Option<&str>| ConnectionFilter {
        workload: workload.map(str::to_owned),
        namespace: namespace.map(str::to_owned),
    };
    assert!(entry.matches(&filter(None, None)));
    assert!(entry.matches(&filter(Some("order-1"), None)));
    assert!(entry.matches(&filter(Some("payment-1"), Some("bank"))));
    assert!(!entry.matches(&filter(Some("order-1"), Some("bank"))));
    assert!(!entry.matches(&filter(Some("visitor"), None)));
    entry.source.workload = None;
    assert!(!entry.matches(&filter(Some("order-1"), None)));
}

#[test]
fn the_status_document_keeps_its_shape() {
    let value = serde_json::to_value(Status::default()).unwrap();
    assert_eq!(
        value,
        json!({
            "version": "", "node": "", "trust_domain": "", "pid": 0, "started_at": "", "uptime_seconds": 0,
            "ready": false, "not_ready": [],
            "snapshot": {"version": 0, "age_seconds": 0, "workloads": 0, "services": 0},
            "pods": {"enrolled": 0, "captured": 0, "failed": 0, "left": 0},
            "connections": {"live": 0, "opened": 0, "retried": 0},
            "sessions": {"live": 0, "capacity": 0, "evicted": 0},
            "certificates": {"valid": 0, "missing": 0, "next_expiry": null},
            "rejections": 0
        })
    );
}

#[test]
fn times_are_rfc_3339_in_utc() {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
    assert_eq!(timestamp(at), "2027-01-15T08:00:00Z");
}

#[test]
fn checks_fail_when_one_does() {
    let check = |level| Check {
        name: "x".into(),
        level,
        detail: String::new(),
        hint: None,
    };
    let checks = |levels: &[Level]| Checks {
        checks: levels.iter().map(|level| check(*level)).collect(),
        limits: vec![],
    };
    assert!(!checks(&[Level::Ok, Level::Warn]).failed());
    assert!(checks(&[Level::Ok, Level::Fail]).failed());
}
