use super::*;
use crate::admin::document::{CaptureState, OtherMeshEntry, PodCounts};

fn kind(name: &str, state: KindState, reason: Option<&str>, age: Option<u64>) -> KindStatus {
    KindStatus {
        kind: name.into(),
        api_version: (state == KindState::Watching).then(|| "v1".to_owned()),
        state,
        objects: 0,
        age_seconds: age,
        lists: 0,
        watch_restarts: 0,
        errors: Default::default(),
        problem: reason.map(|_| "the server says no".to_owned()),
        reason: reason.map(str::to_owned),
    }
}

fn server(version: Option<&str>) -> ServerStatus {
    ServerStatus {
        address: "https://10.0.0.1".into(),
        version: version.map(str::to_owned),
        problem: version.is_none().then(|| "no answer".to_owned()),
    }
}

#[test]
fn a_server_is_as_good_as_its_version() {
    for (text, level, part) in [
        (Some("v1.33.1"), Level::Ok, "which is tested"),
        (Some("v1.33.0+k3s1"), Level::Ok, "which is tested"),
        (Some("v1.34.0-gke.100"), Level::Ok, "tested is 1.33"),
        (Some("v1.21.0"), Level::Ok, "tested is 1.33"),
        (Some("v1.20.15"), Level::Fail, "no discovery.k8s.io/v1"),
        (Some("v2.0.0"), Level::Warn, "no version of Kubernetes 1"),
        (Some(""), Level::Warn, "no version of Kubernetes 1"),
        (None, Level::Warn, "no answer"),
    ] {
        let check = version(&server(text));
        assert_eq!(check.level, level, "{text:?}: {check:?}");
        assert!(check.detail.contains(part), "{text:?}: {check:?}");
        assert_eq!(check.hint.is_some(), level != Level::Ok);
    }
}

#[test]
fn kinds_are_named_with_their_versions_and_absent_ones_too() {
    let check = definitions(&[
        kind("Pod", KindState::Watching, None, Some(1)),
        kind("Node", KindState::Watching, None, Some(1)),
        kind("PeerAuthentication", KindState::Absent, None, Some(1)),
    ]);
    assert_eq!(check.level, Level::Ok);
    assert!(
        check
            .detail
            .starts_with("v1: Pod, Node\nnot installed: PeerAuthentication;"),
        "{}",
        check.detail
    );
}

#[test]
fn what_is_refused_is_told_apart_by_what_helps() {
    let well = kind("Pod", KindState::Watching, None, Some(1));
    assert_eq!(access(std::slice::from_ref(&well)).level, Level::Ok);
    let forbidden = access(&[
        well.clone(),
        kind("Service", KindState::Lost, Some("forbidden"), Some(5)),
    ]);
    assert_eq!(forbidden.level, Level::Warn);
    assert_eq!(forbidden.detail, "refused for want of permission (403): Service");
    assert!(forbidden.hint.unwrap().contains("rbac.yaml"));
    let never = access(&[kind("Service", KindState::Waiting, Some("forbidden"), None)]);
    assert_eq!(never.level, Level::Fail);
    let token = access(&[kind("Pod", KindState::Lost, Some("unauthorized"), Some(5))]);
    assert_eq!(token.level, Level::Warn);
    assert!(token.detail.contains("(401): Pod") && token.hint.unwrap().contains("token"));
    // Another trouble is no question of permission.
    assert_eq!(
        access(&[kind("Pod", KindState::Lost, Some("unreachable"), Some(5))]).level,
        Level::Ok
    );
}

#[test]
fn an_old_view_is_warned_about_and_the_kind_named() {
    let fresh = kind("Pod", KindState::Watching, None, Some(60));
    let absent = kind("PeerAuthentication", KindState::Absent, None, Some(9000));
    assert_eq!(view(&[fresh.clone(), absent]).level, Level::Ok);
    let old = view(&[fresh.clone(), kind("Service", KindState::Lost, None, Some(601))]);
    assert_eq!(old.level, Level::Warn);
    assert!(
        old.detail.starts_with("Service was heard 601 s ago"),
        "{}",
        old.detail
    );
    let stored = view(&[fresh, kind("Node", KindState::Stored, None, Some(60))]);
    assert_eq!(stored.level, Level::Warn);
    assert!(
        stored.detail.ends_with("kept from an earlier run: Node"),
        "{}",
        stored.detail
    );
    assert_eq!(
        view(&[kind("Node", KindState::Waiting, None, None)]).level,
        Level::Warn
    );
}

#[test]
fn agents_of_several_revisions_are_named_by_node() {
    let agent = |node: &str, revision: &str| AgentPod {
        node: node.into(),
        revision: revision.into(),
        ready: node != "n2",
    };
    assert_eq!(agents(&[]), None);
    let alike = agents(&[agent("n1", "a"), agent("n2", "a")]).unwrap();
    assert_eq!(alike.level, Level::Ok);
    assert!(alike.detail.starts_with("2 agents of 1 revision(s)") && alike.detail.ends_with("1 not ready"));
    let mixed = agents(&[agent("n1", "a"), agent("n2", "b")]).unwrap();
    assert_eq!(mixed.level, Level::Warn);
    assert!(mixed.detail.ends_with("\na: n1\nb: n2"), "{}", mixed.detail);
}

#[test]
fn other_meshes_are_named_with_what_is_left_to_them() {
    let status = |parts: &[(&str, bool)]| Status {
        other_meshes: parts
            .iter()
            .map(|(part, istio)| OtherMeshEntry {
                part: (*part).into(),
                pod: format!("istio-system/{part}"),
                istio: *istio,
            })
            .collect(),
        pods: PodCounts::default(),
        ..Status::default()
    };
    let mut entry = super::super::tests::workload(CaptureState::None, EnrolmentState::NotEnrolled);
    let none = Workloads {
        workloads: vec![entry.clone()],
    };
    entry.enrolment_reason = Some("label istio.io/dataplane-mode is left to Istio".into());
    let left = Workloads {
        workloads: vec![entry],
    };
    assert_eq!(
        other_meshes(&status(&[]), &none, IstioLabel::Auto).level,
        Level::Ok
    );
    let seen = other_meshes(&status(&[("ztunnel", true)]), &left, IstioLabel::Auto);
    assert_eq!(seen.level, Level::Warn);
    assert_eq!(
        seen.detail,
        "ztunnel runs on this node (Pod istio-system/ztunnel)\nlabel istio.io/dataplane-mode is left to Istio, and with it 1 pods of \
         this node\nshop/order"
    );
    let overridden = other_meshes(&status(&[("ztunnel", true)]), &none, IstioLabel::Enrol);
    assert!(
        overridden.detail.contains("enrols here all the same"),
        "{overridden:?}"
    );
    let linkerd = other_meshes(&status(&[("linkerd-cni", false)]), &none, IstioLabel::Auto);
    assert!(linkerd.hint.unwrap().contains("refused one by one"));
}
