use super::*;
use crate::admin::document::{BpfMap, BpfPod};

pub(super) fn workload(capture: CaptureState, enrolment: EnrolmentState) -> WorkloadEntry {
    WorkloadEntry {
        uid: "shop/order/u1".into(),
        namespace: "shop".into(),
        name: "order".into(),
        node: "n1".into(),
        local: true,
        addresses: vec![],
        identity: "spiffe://cluster.local/ns/shop/sa/order".into(),
        enrolment,
        enrolment_reason: (enrolment == EnrolmentState::Refused).then(|| "host network".into()),
        capture,
        capture_reason: (capture == CaptureState::Failed).then(|| "no netns".into()),
        mtls: "STRICT".into(),
        mtls_policy: None,
        sandbox: None,
        uncaptured: Default::default(),
        usage: None,
    }
}

fn pods_of(workloads: Vec<WorkloadEntry>) -> Check {
    pods(&Workloads { workloads })
}

#[test]
fn a_pod_that_is_not_captured_fails_the_check_and_is_named() {
    let enrolled = EnrolmentState::Enrolled;
    assert_eq!(
        pods_of(vec![workload(CaptureState::Captured, enrolled)]).level,
        Level::Ok
    );
    let check = pods_of(vec![
        workload(CaptureState::Captured, enrolled),
        workload(CaptureState::Failed, enrolled),
    ]);
    assert_eq!(check.level, Level::Fail);
    assert!(check.detail.starts_with("1 of 2 pods"), "{}", check.detail);
    assert!(check.detail.contains("shop/order: no netns"), "{}", check.detail);
    let pending = pods_of(vec![workload(CaptureState::Pending, enrolled)]);
    assert_eq!(pending.level, Level::Warn);
    let refused = pods_of(vec![workload(CaptureState::None, EnrolmentState::Refused)]);
    assert_eq!(refused.level, Level::Fail);
    assert!(refused.detail.contains("host network"));
}

#[test]
fn workloads_of_other_nodes_do_not_count() {
    let remote = WorkloadEntry {
        local: false,
        ..workload(CaptureState::Remote, EnrolmentState::Enrolled)
    };
    let check = pods_of(vec![remote]);
    assert_eq!(
        (check.level, check.detail.as_str()),
        (Level::Ok, "0 of 0 pods that ask for the mesh are captured")
    );
}

#[test]
fn a_map_that_runs_full_is_named() {
    let map = |entries| Bpf {
        maps: vec![BpfMap {
            name: "HANDOFF".into(),
            entries: Some(entries),
            capacity: 100,
        }],
        ..Bpf::default()
    };
    assert_eq!(maps(&map(80)).level, Level::Ok);
    let check = maps(&map(81));
    assert_eq!(
        (check.level, check.detail.as_str()),
        (Level::Warn, "HANDOFF holds 81 of 100")
    );
}

#[test]
fn a_debug_log_that_is_on_is_warned_about() {
    let mut bpf = Bpf::default();
    assert_eq!(debug_log(&bpf).level, Level::Ok);
    bpf.log.on = true;
    assert_eq!(debug_log(&bpf).level, Level::Warn);
}

#[test]
fn an_application_on_an_agent_port_is_warned_about() {
    let bpf = Bpf {
        pods: vec![BpfPod {
            workload: "shop/order".into(),
            netns_cookie: 1,
            slot: 0,
            bank: 0,
            addresses: vec![],
            links: vec![],
            shadowed_ports: vec![15008],
            believes_first_packets: true,
            foreign: vec![],
        }],
        ..Bpf::default()
    };
    assert_eq!(shadowed_ports(&bpf).level, Level::Warn);
    assert_eq!(shadowed_ports(&Bpf::default()).level, Level::Ok);
    assert_eq!(first_packets(&bpf).level, Level::Fail);
    assert_eq!(first_packets(&Bpf::default()).level, Level::Ok);
}

#[test]
fn programs_of_others_are_named_once_with_what_they_may_do() {
    let pod = |n: u64| BpfPod {
        workload: format!("shop/order-{n}"),
        netns_cookie: n,
        slot: 0,
        bank: 0,
        addresses: vec![],
        links: vec![],
        shadowed_ports: vec![],
        believes_first_packets: false,
        foreign: vec![BpfForeign {
            hook: "connect4".into(),
            id: 12,
            name: "balance".into(),
        }],
    };
    let bpf = Bpf {
        pods: vec![pod(1), pod(2)],
        ..Bpf::default()
    };
    let check = foreign_programs(&bpf);
    assert_eq!(check.level, Level::Warn);
    assert!(
        check
            .detail
            .starts_with("connect4 balance (id 12), 2 pods: runs after ours"),
        "{}",
        check.detail
    );
    assert_eq!(check.detail.lines().count(), 1);
    assert_eq!(foreign_programs(&Bpf::default()).level, Level::Ok);
}

#[test]
fn a_kubelet_that_is_not_trusted_is_warned_about_where_it_matters() {
    let none = Workloads::default();
    let mut declaring = workload(CaptureState::Captured, EnrolmentState::Enrolled);
    declaring.uncaptured.probe_ports = vec![8080];
    let some = Workloads {
        workloads: vec![declaring],
    };
    let not_found = ProbePassage::None(KubeletError::NotFound);
    assert_eq!(probes(Some(&not_found), &none).level, Level::Ok);
    let check = probes(Some(&not_found), &some);
    assert_eq!(check.level, Level::Warn);
    assert!(
        check.detail.contains("declared by shop/order"),
        "{}",
        check.detail
    );
    let unfit = ProbePassage::None(KubeletError::Unfit {
        path: "/x".into(),
        why: "holds process 7, which is a container's".into(),
    });
    assert_eq!(probes(Some(&unfit), &none).level, Level::Warn);
    assert_eq!(
        probes(Some(&ProbePassage::Of("/x".into())), &some).level,
        Level::Ok
    );
    let shared = ProbePassage::OfProcess {
        cgroup: "/x".into(),
        pid: 7,
    };
    let check = probes(Some(&shared), &some);
    assert_eq!(check.level, Level::Ok);
    assert!(check.detail.contains("process 7,"), "{}", check.detail);
}

#[test]
fn connections_that_cannot_be_closed_are_warned_about() {
    let mut facts = OlderConnections::default();
    assert_eq!(older(&facts).level, Level::Ok);
    facts.problems.push("shop/order: this kernel cannot close".into());
    assert_eq!(older(&facts).level, Level::Warn);
}

#[test]
fn metrics_that_run_out_of_room_are_warned_about() {
    let room = |used| Room {
        used,
        capacity: 100,
        overflows: 0,
    };
    assert_eq!(metrics(room(80)).level, Level::Ok);
    assert_eq!(metrics(room(81)).level, Level::Warn);
    assert!(metrics(room(100)).detail.contains("other"));
}

#[test]
fn an_agent_that_is_not_ready_fails_with_the_reasons() {
    let status = Status {
        not_ready: vec!["pod shop/order is not captured: x".into()],
        ..Status::default()
    };
    let check = readiness(&status);
    assert_eq!(check.level, Level::Fail);
    assert!(check.detail.contains("shop/order"));
}

#[test]
fn kinds_that_the_api_server_does_not_tell_of_are_named_with_the_reason() {
    assert!(api_server(&[]).is_none());
    let board = |state: KindState, problem: Option<&str>| KindStatus {
        kind: "Pod".into(),
        api_version: Some("v1".into()),
        state,
        objects: 1,
        age_seconds: Some(1),
        lists: 1,
        watch_restarts: 0,
        errors: Default::default(),
        problem: problem.map(str::to_owned),
        reason: None,
    };
    let good = board(KindState::Watching, None);
    let absent = board(KindState::Absent, None);
    assert_eq!(api_server(&[good.clone(), absent]).unwrap().level, Level::Ok);
    let lost = board(KindState::Lost, Some("it cannot be reached"));
    let check = api_server(&[good.clone(), lost]).unwrap();
    assert_eq!(check.level, Level::Warn);
    assert!(
        check.detail.contains("1 of 2 kinds") && check.detail.contains("Pod: lost: it cannot be reached")
    );
    assert_eq!(
        api_server(&[good, board(KindState::Waiting, None)])
            .unwrap()
            .level,
        Level::Fail
    );
}
