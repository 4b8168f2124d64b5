use mesh_core::snapshot::MeshSettings;

use super::*;
use crate::identity;

const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {mesh-agent.io/dataplane: enabled}}
---
apiVersion: v1
kind: Pod
metadata:
  name: order
  namespace: shop
  annotations: {mesh-agent.io/netns: /run/netns/order, mesh-agent.io/cgroup: order}
spec: {nodeName: n1, serviceAccountName: order}
status: {podIPs: [{ip: 198.18.0.1}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: payment
  namespace: shop
  annotations: {mesh-agent.io/netns: /run/netns/payment, mesh-agent.io/cgroup: payment}
spec: {nodeName: n2, serviceAccountName: payment}
status: {podIPs: [{ip: 198.18.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: visitor, namespace: shop, labels: {mesh-agent.io/dataplane: disabled}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 198.18.0.3}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

fn snapshot() -> Snapshot {
    let settings = MeshSettings {
        node_name: "n1".into(),
        ..MeshSettings::default()
    };
    Snapshot::from_yaml(settings, MESH)
}

fn order() -> WorkloadUid {
    WorkloadUid::new("shop", "order", "")
}

fn states(state: capture::CaptureState) -> CaptureStates {
    [(order(), state)].into()
}

fn certificate_status(state: identity::CertificateState, error: Option<&str>) -> CertificateStatus {
    CertificateStatus {
        identity: "spiffe://cluster.local/ns/shop/sa/order".parse().unwrap(),
        serial: Some("0a".into()),
        not_before: Some(Timestamp::from_second(1_800_000_000).unwrap()),
        not_after: Some(Timestamp::from_second(1_800_086_400).unwrap()),
        state,
        next_rotation: Timestamp::from_second(1_800_043_200).unwrap(),
        last_error: error.map(str::to_owned),
        issuer: "embedded CA".into(),
    }
}

#[test]
fn workloads_show_enrolment_capture_and_mode_by_name() {
    let shown = workloads(
        &snapshot(),
        &states(capture::CaptureState::Captured),
        &BTreeMap::new(),
    )
    .workloads;
    let brief: Vec<_> = shown
        .iter()
        .map(|w| (w.name.as_str(), w.local, w.enrolment, w.capture))
        .collect();
    assert_eq!(
        brief,
        [
            ("order", true, EnrolmentState::Enrolled, CaptureState::Captured),
            ("payment", false, EnrolmentState::Enrolled, CaptureState::Remote),
            ("visitor", true, EnrolmentState::NotEnrolled, CaptureState::None),
        ]
    );
    assert_eq!(shown[0].mtls, "STRICT");
    assert_eq!(
        shown[0].mtls_policy.as_deref(),
        Some("PeerAuthentication shop/default")
    );
    assert_eq!(shown[0].identity, "spiffe://cluster.local/ns/shop/sa/order");
}

#[test]
fn a_pod_that_is_refused_counts_as_failed_and_says_why() {
    let states = states(capture::CaptureState::Refused("it forwards packets".into()));
    let shown = workloads(&snapshot(), &states, &BTreeMap::new()).workloads;
    assert_eq!(shown[0].capture, CaptureState::Failed);
    assert_eq!(shown[0].capture_reason.as_deref(), Some("it forwards packets"));
    let counts = pod_counts(&snapshot(), &states);
    assert_eq!((counts.enrolled, counts.captured, counts.failed), (1, 0, 1));
}

#[test]
fn readiness_waits_for_local_enrolled_pods_that_can_be_captured() {
    let valid = [certificate_status(identity::CertificateState::Valid, None)];
    let wait = |state: Option<capture::CaptureState>, certificates: &[CertificateStatus]| {
        let states = state.map(states).unwrap_or_default();
        pods_to_wait_for(&snapshot(), &states, certificates)
    };
    let captured = wait(Some(capture::CaptureState::Captured), &valid);
    assert_eq!(captured.len(), 1);
    assert_eq!(
        (&captured[0].captured, &captured[0].certificate),
        (&Ok(()), &Ok(()))
    );
    let pending = wait(Some(capture::CaptureState::Pending("no netns".into())), &valid);
    assert_eq!(pending[0].captured, Err("no netns".into()));
    assert_eq!(wait(None, &valid)[0].captured, Err("not tried yet".into()));
    assert!(wait(Some(capture::CaptureState::Refused("x".into())), &valid).is_empty());
    // A pod that has no sandbox yet may not get one for hours: its image, say, cannot be had.
    assert!(wait(Some(capture::CaptureState::Absent("no sandbox".into())), &valid).is_empty());
}

#[test]
fn readiness_waits_for_certificates_and_repeats_what_the_issuer_said() {
    let readiness = |state, error| certificates::readiness(Some(&certificate_status(state, error)));
    use identity::CertificateState::{Expired, Pending, RenewalFailing};
    assert!(readiness(RenewalFailing, Some("away")).is_ok());
    assert_eq!(readiness(Pending, Some("away")), Err("away".into()));
    assert_eq!(readiness(Pending, None), Err("it is being issued".into()));
    assert!(readiness(Expired, None).is_err());
    assert!(certificates::readiness(None).is_err());
}

#[test]
fn certificates_show_their_times() {
    let now = Timestamp::from_second(1_800_086_410).unwrap();
    let shown = certificates::entry(
        certificate_status(identity::CertificateState::Expired, Some("away")),
        now,
    );
    assert_eq!(shown.not_after.as_deref(), Some("2027-01-16T08:00:00Z"));
    assert_eq!(shown.expires_in_seconds, Some(-10));
    assert_eq!(shown.error.as_deref(), Some("away"));
    let all = [
        certificate_status(identity::CertificateState::Valid, None),
        certificate_status(identity::CertificateState::Expired, None),
    ];
    let counts = certificates::counts(&all);
    assert_eq!((counts.valid, counts.missing), (1, 1));
    assert_eq!(counts.next_expiry.as_deref(), Some("2027-01-16T08:00:00Z"));
}
