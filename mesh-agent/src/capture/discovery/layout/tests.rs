//! Paths as kubelets make them, and paths as somebody would make them to be taken for another.

use std::path::Path;

use proptest::prelude::*;

use super::*;

const UID: &str = "6d5e6f1c-0d2d-4e55-a5d4-0f3a8f2f0c11";
const UNDERSCORED: &str = "6d5e6f1c_0d2d_4e55_a5d4_0f3a8f2f0c11";
const STATIC: &str = "9f2b8f7b7a3d4c6f8e1a2b3c4d5e6f70";
const ID: &str = "8c7b3d6c1d7a4e58b1f0d5c2a49e8f6b8c7b3d6c1d7a4e58b1f0d5c2a49e8f6b";

/// The pod that the cgroup at `path` belongs to: the outermost that the path names.
fn pod_of(path: &Path) -> Option<PodKey> {
    let mut level = Level::Outside;
    for part in path.components() {
        level = match level.enter(part.as_os_str()) {
            Step::Pod(pod) => return Some(pod),
            Step::Level(level) => level,
        };
    }
    None
}

fn found(path: &str) -> Option<String> {
    pod_of(Path::new(path)).map(|pod| pod.to_string())
}

#[test]
fn pods_are_found_in_the_layouts_of_both_drivers_behind_any_prefix() {
    for path in [
        // cgroupfs: guaranteed, burstable, best effort; containerd, CRI-O, docker.
        format!("/kubepods/pod{UID}"),
        format!("/kubepods/pod{UID}/{ID}"),
        format!("/kubepods/burstable/pod{UID}/{ID}"),
        format!("/kubepods/besteffort/pod{UID}/{ID}"),
        format!("/kubepods/besteffort/pod{UID}/crio-{ID}"),
        format!("/kubepods/burstable/pod{UID}/crio-conmon-{ID}"),
        // systemd.
        format!("/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope"),
        format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope"
        ),
        format!(
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERSCORED}.slice/crio-{ID}.scope"
        ),
        format!(
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERSCORED}.slice/docker-{ID}.scope"
        ),
        // kind, inside its node and from the machine that runs the node.
        format!(
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope"
        ),
        format!(
            "/system.slice/docker-{ID}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNDERSCORED}.slice"
        ),
        format!("/docker/{ID}/kubelet/kubepods/burstable/pod{UID}/{ID}"),
        format!("/kubelet/kubepods/besteffort/pod{UID}/{ID}"),
        // minikube and k3s; a node nested below a cgroup of its own.
        format!("/minikube/kubepods/pod{UID}/{ID}"),
        format!("/node-a/kubepods/burstable/pod{UID}/{ID}"),
        format!("/k3s/node-a/kubepods/besteffort/pod{UID}"),
        // What the container makes below.
        format!("/kubepods/burstable/pod{UID}/{ID}/init/system.slice/app.service"),
    ] {
        assert_eq!(found(&path).as_deref(), Some(UID), "{path}");
    }
    assert_eq!(
        found(&format!("/kubepods/burstable/pod{STATIC}/{ID}")).as_deref(),
        Some(STATIC)
    );
    let slice = format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice");
    assert_eq!(found(&slice).as_deref(), Some(STATIC));
}

#[test]
fn what_is_no_pods_cgroup_is_none() {
    for path in [
        "/",
        "",
        "/kubepods",
        "/kubepods/burstable",
        "/kubepods/burstable/pod",
        "/kubepods.slice",
        "/kubepods.slice/kubepods-burstable.slice",
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod.slice",
        "/system.slice/containerd.service",
        "/user.slice/user-1000.slice/podman.scope",
        // Pods of other systems.
        &format!("/machine.slice/libpod-{ID}.scope"),
        &format!("/libpod_parent/pod{UID}"),
        &format!("/burstable/pod{UID}"),
        // Names of the one driver in the tree of the other.
        &format!("/kubepods/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice"),
        &format!("/kubepods.slice/burstable/pod{UID}"),
        &format!("/kubepods.slice/pod{UID}"),
        // A slice that is not the child of the one it is in.
        &format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-burstable-pod{UNDERSCORED}.slice"),
        &format!("/kubepods.slice/kubepods-pod{UID}.slice"),
        // A class within a class.
        &format!("/kubepods/burstable/besteffort/pod{UID}"),
        "/kubepods/burstable/pod../x",
        "/kubepods/burstable/podä",
        &format!("/kubepods/pod{}", "a".repeat(200)),
        "/notkubepods/pod1",
        "/xkubepods.slice/xkubepods-pod1.slice",
    ] {
        assert_eq!(found(path), None, "{path}");
    }
}

#[test]
fn a_container_that_imitates_another_pods_path_is_taken_for_its_own_pod() {
    let other = "11111111-2222-3333-4444-555555555555";
    for below in [
        format!("kubepods/pod{other}"),
        format!("kubepods/burstable/pod{other}/{ID}"),
        format!("kubepods.slice/kubepods-pod{}.slice", other.replace('-', "_")),
        format!("pod{other}"),
        format!("../pod{other}"),
    ] {
        for own in [
            format!("/kubepods/burstable/pod{UID}/{ID}"),
            format!("/node-a/kubepods/pod{UID}"),
            format!("/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope"),
        ] {
            assert_eq!(
                found(&format!("{own}/{below}")).as_deref(),
                Some(UID),
                "{own}/{below}"
            );
        }
    }
}

#[test]
fn a_uid_is_the_same_with_dashes_and_underscores_and_has_no_separators() {
    assert_eq!(PodKey::of(UID), PodKey::of(UNDERSCORED));
    assert!(PodKey::of(STATIC).is_some());
    for uid in ["", "a/b", "..", "a b", "a\0b", "ü"] {
        assert_eq!(PodKey::of(uid), None, "{uid:?}");
    }
}

#[test]
fn the_monitors_of_cri_o_are_not_the_pods() {
    assert!(is_runtimes_own(OsStr::new(&format!("crio-conmon-{ID}.scope"))));
    assert!(!is_runtimes_own(OsStr::new(&format!("crio-{ID}.scope"))));
    assert!(!is_runtimes_own(OsStr::new(ID)));
}

fn part() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("kubepods".to_owned()),
        Just("kubepods.slice".to_owned()),
        Just("burstable".to_owned()),
        Just("kubepods-burstable.slice".to_owned()),
        "pod[0-9a-f-]{0,40}",
        "kubepods(-burstable)?-pod[0-9a-f_-]{0,40}\\.slice",
        "[a-z-]{0,6}-kubepods\\.slice",
        ".{0,12}",
    ]
}

proptest! {
    #[test]
    fn any_path_is_read_without_a_panic_and_what_comes_behind_a_pod_changes_nothing(
        before in proptest::collection::vec(part(), 0..6),
        after in proptest::collection::vec(part(), 0..6),
    ) {
        let outer = format!("/{}", before.join("/"));
        let whole = format!("{outer}/{}", after.join("/"));
        let (of_outer, of_whole) = (found(&outer), found(&whole));
        if of_outer.is_some() {
            prop_assert_eq!(of_outer, of_whole);
        }
    }
}
