use super::*;

#[test]
fn cgroups_of_runtimes_are_known_by_name() {
    let id = "0123456789abcdef".repeat(4);
    for name in [
        "kubepods.slice",
        "kubepods",
        "kubelet-kubepods.slice",
        "pod6d5e6f1c-0d2d-4e55-a5d4-0f3a8f2f0c11",
        "crio-conmon.scope",
        &format!("cri-containerd-{id}.scope"),
        &id,
        &format!("mine-{id}.scope"),
    ] {
        assert!(is_containers(name), "{name}");
    }
    for name in ["init", "kubelet", "payload", "run-u12.scope"] {
        assert!(!is_containers(name), "{name}");
    }
}

/// A directory that looks like a cgroup2 mount, with this test itself playing the processes.
fn place(root: &Path, cgroup: &str, procs: &str) {
    let path = root.join(cgroup);
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("cgroup.procs"), procs).unwrap();
}

/// All processes have been looked at: those of this machine are not these tests' affair.
fn nowhere() -> Search {
    Search {
        last: Some(Instant::now()),
        ..Search::default()
    }
}

fn refused(setting: &KubeletCgroup, root: &Path) -> KubeletError {
    find(setting, &Cgroup2::at(root), &[], &mut nowhere()).unwrap_err()
}

#[test]
fn a_cgroup_with_host_processes_alone_is_verified_and_others_are_not() {
    let root = tempfile::tempdir().unwrap();
    let own = format!("{}\n", std::process::id());
    let at = |path: &str| KubeletCgroup::At(path.into());
    place(root.path(), "good", &own);
    place(root.path(), "good/child", &own);
    let found = find(&at("good"), &Cgroup2::at(root.path()), &[], &mut nowhere()).unwrap();
    assert!(found.path.ends_with("good"));
    place(root.path(), "empty", "");
    assert!(
        refused(&at("empty"), root.path())
            .to_string()
            .contains("holds no process")
    );
    place(root.path(), "unseen", "0\n");
    assert!(
        refused(&at("unseen"), root.path())
            .to_string()
            .contains("hostPID")
    );
    place(root.path(), "runtime", &own);
    place(root.path(), "runtime/kubepods.slice", "");
    assert!(
        refused(&at("runtime"), root.path())
            .to_string()
            .contains("kubepods.slice")
    );
    assert!(matches!(
        refused(&at("none"), root.path()),
        KubeletError::Unreadable { .. }
    ));
    assert!(refused(&at("/"), root.path()).to_string().contains("not below"));
    let pod = root.path().canonicalize().unwrap().join("good/child");
    assert!(find(&at("good"), &Cgroup2::at(root.path()), &[pod], &mut nowhere()).is_err());
    assert_eq!(refused(&KubeletCgroup::Off, root.path()), KubeletError::Off);
}

#[test]
fn the_usual_places_count_where_exactly_one_holds_a_kubelet() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(refused(&KubeletCgroup::Auto, root.path()), KubeletError::NotFound);
    // A process that is called otherwise is no kubelet, wherever it is.
    place(root.path(), USUAL[0], &format!("{}\n", std::process::id()));
    assert_eq!(refused(&KubeletCgroup::Auto, root.path()), KubeletError::NotFound);
    let bin = root.path().join("kubelet");
    fs::copy("/bin/sleep", &bin).unwrap();
    let mut kubelet = std::process::Command::new(&bin).arg("60").spawn().unwrap();
    let pid = format!("{}\n", kubelet.id());
    while fs::read_to_string(format!("/proc/{}/comm", kubelet.id()))
        .unwrap()
        .trim()
        != "kubelet"
    {
        std::thread::yield_now();
    }
    place(root.path(), USUAL[0], &pid);
    let auto = |search: &mut Search| find(&KubeletCgroup::Auto, &Cgroup2::at(root.path()), &[], search);
    let one = auto(&mut nowhere()).map(|found| found.path);
    // Where a search has found one, that place counts for as long as it has one.
    place(root.path(), USUAL[0], "");
    place(root.path(), "node/kubelet", &pid);
    let mut elsewhere = Search {
        found: [root.path().join("node/kubelet")].into(),
        ..nowhere()
    };
    let apart = auto(&mut elsewhere).map(|found| found.path);
    place(root.path(), "node/kubelet", "");
    elsewhere.found.clear();
    let gone = auto(&mut elsewhere).unwrap_err();
    place(root.path(), USUAL[0], &pid);
    place(root.path(), USUAL[1], &pid);
    let two = refused(&KubeletCgroup::Auto, root.path());
    kubelet.kill().unwrap();
    kubelet.wait().unwrap();
    assert!(one.unwrap().ends_with(USUAL[0]));
    assert!(apart.unwrap().ends_with("node/kubelet"));
    assert_eq!(gone, KubeletError::NotFound);
    assert!(matches!(two, KubeletError::Ambiguous(places) if places.len() == 2));
}

#[test]
fn in_a_cgroup_that_others_share_the_kubelets_own_process_counts_and_only_one() {
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join("kubelet");
    fs::copy("/bin/sleep", &bin).unwrap();
    let start = || {
        let child = std::process::Command::new(&bin).arg("60").spawn().unwrap();
        while !is_named(&child.id().to_string()) {
            std::thread::yield_now();
        }
        child
    };
    let at = |path: &str| KubeletCgroup::At(path.into());
    let look = |path: &str| find(&at(path), &Cgroup2::at(root.path()), &[], &mut nowhere());
    let own = std::process::id();
    let mut kubelet = start();
    place(root.path(), "node", &format!("{own}\n{}\n", kubelet.id()));
    let alone = look("node").map(|found| found.process);
    place(root.path(), "node/kubepods/pod1", "");
    let shared = look("node").map(|found| found.process);
    // A pod's cgroup that is known counts like one that is named so; so does the root of the hierarchy, which needs no look.
    place(root.path(), "", &format!("{own}\n{}\n", kubelet.id()));
    let top = look(&root.path().to_string_lossy()).map(|found| found.process);
    place(root.path(), "node", &format!("{own}\n"));
    let without = look("node").unwrap_err().to_string();
    let mut other = start();
    place(
        root.path(),
        "node",
        &format!("{}\n{}\n", kubelet.id(), other.id()),
    );
    let two = look("node").unwrap_err().to_string();
    for process in [&mut kubelet, &mut other] {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    assert_eq!(alone.unwrap(), None, "the cgroup is its own");
    assert_eq!(shared.unwrap().map(|process| process.pid), Some(kubelet.id()));
    assert_eq!(top.unwrap().map(|process| process.pid), Some(kubelet.id()));
    assert!(
        without.contains("kubepods") && without.contains("is called kubelet"),
        "{without}"
    );
    assert!(two.contains("ambiguous"), "{two}");
}
