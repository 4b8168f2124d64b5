//! Discovery over a cgroup tree and a procfs made of plain files: an inode of a file stands for a namespace.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::settings::CriSocket;

const UID: &str = "6d5e6f1c-0d2d-4e55-a5d4-0f3a8f2f0c11";
const POD: &str = "node-a/kubepods/burstable/pod6d5e6f1c-0d2d-4e55-a5d4-0f3a8f2f0c11";

struct Host {
    dir: tempfile::TempDir,
    discovery: Discovery,
    announced: Arc<Announcements>,
    now: Instant,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for below in ["cgroup/node-a", "proc", "netns"] {
            fs::create_dir_all(dir.path().join(below)).unwrap();
        }
        let options = Options {
            on: true,
            cri_socket: CriSocket::Off,
            cgroup: Some("/node-a".into()),
            proc_root: dir.path().join("proc"),
        };
        let cgroup2 = Cgroup2::at(&dir.path().join("cgroup"));
        let announced = Arc::<Announcements>::default();
        let discovery = Discovery::new(&options, cgroup2, Arc::default(), Arc::clone(&announced)).unwrap();
        Self {
            dir,
            discovery,
            announced,
            now: Instant::now(),
        }
    }

    /// A namespace, told by its inode.
    fn netns(&self, name: &str) -> u64 {
        let path = self.dir.path().join("netns").join(name);
        fs::write(&path, "").unwrap();
        fs::metadata(path).unwrap().ino()
    }

    fn cgroup(&self, path: &str, pids: &[u32]) {
        let root = self.dir.path().join("cgroup");
        let path = root.join(path);
        fs::create_dir_all(&path).unwrap();
        // Each cgroup has such a file, those above too.
        for above in path.ancestors().skip(1).take_while(|above| **above != root) {
            let procs = above.join("cgroup.procs");
            if !procs.exists() {
                fs::write(procs, "").unwrap();
            }
        }
        let text: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
        fs::write(path.join("cgroup.procs"), text).unwrap();
    }

    /// A process made by a runtime's shim, the first of its pid namespace, in this namespace (made before).
    fn process(&self, pid: u32, start: u64, netns: &str) {
        let dir = self.dir.path().join("proc").join(pid.to_string());
        fs::create_dir_all(dir.join("ns")).unwrap();
        let zeros = "0 ".repeat(17);
        fs::write(dir.join("stat"), format!("{pid} (pause) S 1 {zeros}{start} 0")).unwrap();
        fs::write(dir.join("status"), format!("NSpid:\t{pid}\t1\n")).unwrap();
        let _ = fs::remove_file(dir.join("ns/net"));
        fs::hard_link(self.dir.path().join("netns").join(netns), dir.join("ns/net")).unwrap();
    }

    fn ends(&self, pid: u32) {
        fs::remove_dir_all(self.dir.path().join("proc").join(pid.to_string())).unwrap();
    }

    /// One look, some time after the one before.
    fn look(&mut self) -> Outcome {
        self.now += BELIEVED * 2;
        let mut found = self.discovery.locate([UID], self.now);
        found.remove(UID).unwrap()
    }

    fn found(&mut self) -> Sandbox {
        match self.look() {
            Outcome::Found(sandbox) => sandbox,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_pod_is_found_once_it_has_a_process_and_lost_when_its_last_one_ends() {
    let mut host = Host::new();
    let netns = host.netns("a");
    assert!(matches!(host.look(), Outcome::Absent(why) if why.contains("nor any cgroup of a kubelet")));
    assert!(host.discovery.is_waiting());
    assert!(!host.discovery.has_news(host.now));
    host.cgroup(POD, &[]);
    assert!(matches!(host.look(), Outcome::Absent(why) if why.contains("no process")));
    host.process(10, 100, "a");
    host.cgroup(&format!("{POD}/sandbox"), &[10]);
    assert!(host.discovery.has_news(host.now));
    let sandbox = host.found();
    assert_eq!((sandbox.netns, sandbox.by), (netns, FoundBy::Proc));
    assert!(sandbox.cgroup.ends_with(POD));
    assert!(!host.discovery.is_waiting());
    assert!(host.discovery.open(&sandbox).is_ok());
    // Nobody has to look for long: what ends is seen with the next question.
    host.ends(10);
    host.cgroup(&format!("{POD}/sandbox"), &[]);
    let mut found = host.discovery.locate([UID], host.now);
    assert!(matches!(found.remove(UID), Some(Outcome::Absent(_))));
    assert!(host.discovery.open(&sandbox).is_err());
}

#[test]
fn a_number_that_is_another_process_by_now_opens_nothing() {
    let mut host = Host::new();
    host.netns("a");
    host.process(10, 100, "a");
    host.cgroup(&format!("{POD}/sandbox"), &[10]);
    let sandbox = host.found();
    // Another process in the same namespace with the same number; one in another namespace; one in another cgroup.
    host.process(10, 101, "a");
    assert!(host.discovery.open(&sandbox).is_err());
    host.netns("b");
    host.process(10, 100, "b");
    assert!(host.discovery.open(&sandbox).is_err());
    host.process(10, 100, "a");
    assert!(host.discovery.open(&sandbox).is_ok());
    host.cgroup(&format!("{POD}/sandbox"), &[]);
    assert!(host.discovery.open(&sandbox).is_err());
}

#[test]
fn a_sandbox_made_anew_is_found_when_nothing_is_left_of_the_old_one() {
    let mut host = Host::new();
    let (old, new) = (host.netns("old"), host.netns("new"));
    host.process(10, 100, "old");
    host.process(11, 110, "old");
    host.cgroup(&format!("{POD}/sandbox"), &[10]);
    host.cgroup(&format!("{POD}/app"), &[11]);
    assert_eq!(host.found().netns, old);
    host.ends(10);
    host.process(20, 200, "new");
    host.cgroup(&format!("{POD}/sandbox"), &[]);
    host.cgroup(&format!("{POD}/sandbox2"), &[20]);
    assert_eq!(host.found().netns, old);
    host.ends(11);
    host.cgroup(&format!("{POD}/app"), &[]);
    assert_eq!(host.found().netns, new);
}

#[test]
fn doubts_refuse_a_pod_that_was_not_found_before_and_leave_another_where_it_is() {
    let mut host = Host::new();
    let (own, _) = (host.netns("own"), host.netns("other"));
    host.process(10, 100, "own");
    host.process(11, 110, "other");
    host.process(12, 111, "other");
    host.cgroup(&format!("{POD}/sandbox"), &[10, 11, 12]);
    assert!(matches!(host.look(), Outcome::Refused(why) if why.contains("most of its containers")));
    host.cgroup(&format!("{POD}/sandbox"), &[10]);
    assert_eq!(host.found().netns, own);
    host.cgroup(&format!("{POD}/sandbox"), &[10, 11, 12]);
    assert_eq!(host.found().netns, own);
    // A tree that cannot be read takes nothing away either.
    fs::rename(host.dir.path().join("cgroup"), host.dir.path().join("away")).unwrap();
    assert!(matches!(host.look(), Outcome::Found(_) | Outcome::Pending(_)));
}

#[test]
fn the_nodes_namespace_is_never_a_pods() {
    let mut host = Host::new();
    host.discovery.host = host.netns("host");
    host.process(10, 100, "host");
    host.cgroup(&format!("{POD}/sandbox"), &[10]);
    assert!(matches!(host.look(), Outcome::Refused(why) if why.contains("host network")));
}

#[test]
fn a_uid_that_two_cgroups_bear_is_refused_and_one_that_no_kubelet_uses_too() {
    let mut host = Host::new();
    host.netns("a");
    host.process(10, 100, "a");
    host.cgroup(&format!("{POD}/sandbox"), &[10]);
    host.cgroup(&format!("node-a/docker/kubepods/pod{UID}/sandbox"), &[10]);
    assert!(matches!(host.look(), Outcome::Refused(why) if why.contains("several cgroups")));
    let odd = host.discovery.locate(["a/../b"], host.now);
    assert!(matches!(odd.get("a/../b"), Some(Outcome::Refused(why)) if why.contains("none that a kubelet")));
}

#[test]
fn cgroups_outside_the_nodes_own_are_not_looked_at() {
    let mut host = Host::new();
    host.netns("a");
    host.process(10, 100, "a");
    host.cgroup(&format!("node-b/kubepods/pod{UID}/sandbox"), &[10]);
    assert!(matches!(host.look(), Outcome::Absent(_)));
}

#[test]
fn an_announced_sandbox_is_the_pods_until_a_process_of_it_shows_the_same() {
    let mut host = Host::new();
    let (new, other) = (host.netns("new"), host.netns("other"));
    let file = || File::open(host.dir.path().join("netns/new")).unwrap();
    host.announced.insert(UID, new, file());
    // Without its cgroup there is nothing to hold it by.
    assert!(matches!(host.look(), Outcome::Absent(_)));
    host.cgroup(POD, &[]);
    let found = host.found();
    assert_eq!((found.by, found.netns), (FoundBy::Cni, new));
    assert_eq!(
        host.discovery.open(&found).unwrap().metadata().unwrap().ino(),
        new
    );
    // The runtime's own process is there first, in the node's namespace or another one.
    host.process(10, 100, "other");
    host.cgroup(&format!("{POD}/c"), &[10]);
    let found = host.found();
    assert_eq!((found.by, found.netns), (FoundBy::Cni, new), "not {other}");
    host.process(10, 100, "new");
    let found = host.found();
    assert_eq!((found.by, found.netns), (FoundBy::Proc, new));
    assert_eq!(host.announced.awaited(), 0);
    // From now on the processes decide: it ends.
    host.ends(10);
    host.cgroup(&format!("{POD}/c"), &[]);
    assert!(matches!(host.look(), Outcome::Absent(_)));
}

#[test]
fn a_new_sandbox_that_is_announced_takes_the_place_of_the_old_one() {
    let mut host = Host::new();
    let (old, new) = (host.netns("old"), host.netns("new"));
    host.process(10, 100, "old");
    host.cgroup(&format!("{POD}/c"), &[10]);
    assert_eq!(host.found().netns, old);
    let file = File::open(host.dir.path().join("netns/new")).unwrap();
    host.announced.insert(UID, new, file);
    // At once, although the old one is believed for a while.
    let found = host.discovery.locate([UID], host.now).remove(UID);
    assert!(matches!(found, Some(Outcome::Found(sandbox)) if sandbox.netns == new));
    host.announced.withdraw(UID);
    assert_eq!(host.found().netns, old);
}
