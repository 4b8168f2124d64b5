//! Finds the kubelet's cgroup and verifies that nothing but host processes are in it: only then may its connections pass as probes.
//! Reads cgroupfs and `/proc`; attaches nothing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mesh_common::mutation::{self, Mechanism};
use thiserror::Error;

use super::cgroup::Cgroup2;
use crate::settings::KubeletCgroup;

/// Where service managers put the kubelet, below the cgroup2 mount.
const USUAL: [&str; 5] = [
    "system.slice/kubelet.service",
    "kubelet.slice/kubelet.service",
    "runtime.slice/kubelet.service",
    "podruntime.slice/kubelet.service",
    "system.slice/snap.kubelet.daemon.service",
];
/// What the process that holds a kubelet is called: itself, k3s and RKE2, MicroK8s.
const NAMES: [&str; 6] = ["kubelet", "k3s", "k3s-server", "k3s-agent", "rke2", "kubelite"];
/// How often all processes are looked at while no kubelet is found.
const SEARCH: Duration = Duration::from_secs(10);
/// Begins of the names of cgroups that container runtimes and kubelets make for pods.
const CONTAINERS: [&str; 9] = [
    "kubepods",
    "kubelet-kubepods",
    "cri-containerd-",
    "crio-",
    "docker-",
    "libpod-",
    "containerd-",
    "nerdctl-",
    "pod",
];
/// Levels of cgroups that are followed; deeper ones are nothing that a kubelet has.
const DEPTH: usize = 8;

/// Why no connection passes as a probe.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KubeletError {
    /// The settings say so.
    #[error("kubelet-cgroup is off")]
    Off,
    /// There is none.
    #[error("no kubelet is found (looked for a process of root's that is called {}, in the host's network and pid namespaces and in no pod's cgroup)", NAMES.join(" or "))]
    NotFound,
    /// Several cgroups have one.
    #[error("it is ambiguous: kubelets are in {}", .0.join(" and in "))]
    Ambiguous(Vec<String>),
    /// The cgroup cannot be read.
    #[error("cgroup {path} cannot be read: {why}")]
    Unreadable {
        /// Which.
        path: String,
        /// What the kernel says.
        why: String,
    },
    /// The cgroup is something else than a kubelet's.
    #[error("cgroup {path} {why}")]
    Unfit {
        /// Which.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Where a kubelet was found apart from the usual places.
#[derive(Debug, Default)]
pub(super) struct Search {
    found: BTreeSet<PathBuf>,
    last: Option<Instant>,
}

/// A cgroup that is verified.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) path: PathBuf,
    pub(super) dir: File,
    /// Tells it from another one of the same name.
    pub(super) id: u64,
}

/// What the host is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Host {
    net: u64,
    pid: u64,
}

impl Host {
    /// The agent runs in the host's namespaces, or it could capture nothing.
    fn own() -> io::Result<Self> {
        Self::of("self")
    }

    fn of(process: &str) -> io::Result<Self> {
        let inode =
            |name: &str| Ok::<_, io::Error>(fs::metadata(format!("/proc/{process}/ns/{name}"))?.ino());
        Ok(Self {
            net: inode("net")?,
            pid: inode("pid")?,
        })
    }
}

/// Finds the cgroup that the setting means and verifies it. `foreign` are cgroups that must not be in it: the agent's and the pods'.
pub(super) fn find(
    setting: &KubeletCgroup,
    cgroup2: &Cgroup2,
    foreign: &[PathBuf],
    search: &mut Search,
) -> Result<Verified, KubeletError> {
    let mount = cgroup2.mount.as_path();
    let path = match setting {
        KubeletCgroup::Off => return Err(KubeletError::Off),
        KubeletCgroup::Auto => detect(cgroup2, search, Instant::now())?,
        KubeletCgroup::At(path) => mount.join(path),
    };
    let unreadable = |error: io::Error| KubeletError::Unreadable {
        path: path.display().to_string(),
        why: error.to_string(),
    };
    let path = fs::canonicalize(&path).map_err(unreadable)?;
    let root = fs::canonicalize(mount).map_err(unreadable)?;
    let unfit = |why: &str| KubeletError::Unfit {
        path: path.display().to_string(),
        why: why.to_owned(),
    };
    if !path.starts_with(&root) || path == root {
        return Err(unfit("is not below the cgroup2 mount"));
    }
    if let Some(inside) = foreign.iter().find(|cgroup| cgroup.starts_with(&path)) {
        return Err(unfit(&format!(
            "holds {}, which is a pod's or the agent's",
            inside.display()
        )));
    }
    let dir = File::open(&path).map_err(unreadable)?;
    let id = dir.metadata().map_err(unreadable)?.ino();
    let host = Host::own().map_err(unreadable)?;
    if mutation::is_off(Mechanism::ProbeCgroup) {
        return Ok(Verified { path, dir, id });
    }
    let processes = verify(&path, host, DEPTH)?;
    if processes == 0 {
        return Err(unfit("holds no process"));
    }
    Ok(Verified { path, dir, id })
}

/// The one cgroup with a kubelet: a usual one, or, where none of them has one, any.
fn detect(cgroup2: &Cgroup2, search: &mut Search, now: Instant) -> Result<PathBuf, KubeletError> {
    let usual = USUAL.map(|place| cgroup2.mount.join(place));
    let mut found: BTreeSet<PathBuf> = usual
        .into_iter()
        .chain(search.found.iter().cloned())
        .filter(|place| has_kubelet(place))
        .collect();
    if found.is_empty() {
        let is_due = search
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= SEARCH);
        if is_due {
            search.last = Some(now);
            search.found = among_all(cgroup2);
        }
        found.extend(search.found.iter().cloned());
    }
    match (found.pop_first(), found.is_empty()) {
        (None, _) => Err(KubeletError::NotFound),
        (Some(place), true) => Ok(place),
        (Some(place), false) => {
            found.insert(place);
            let shown = |place: PathBuf| place.display().to_string();
            Err(KubeletError::Ambiguous(found.into_iter().map(shown).collect()))
        }
    }
}

fn is_named(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| NAMES.contains(&name.trim()))
}

fn has_kubelet(cgroup: &Path) -> bool {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    procs.lines().any(is_named)
}

/// The cgroups of all processes that may be kubelets. Anybody may call a process so: only root's count, in the host's namespaces, and
/// outside of what runtimes make for containers.
fn among_all(cgroup2: &Cgroup2) -> BTreeSet<PathBuf> {
    let (Ok(host), Ok(processes)) = (Host::own(), fs::read_dir("/proc")) else {
        return BTreeSet::new();
    };
    let names = processes
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let pids = names.filter(|name| name.bytes().all(|digit| digit.is_ascii_digit()));
    let place = |pid: String| {
        let is_roots = || fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == 0);
        if !is_named(&pid) || !is_roots() || Host::of(&pid).ok()? != host {
            return None;
        }
        let cgroup = cgroup2.of_process(pid.parse().ok()?)?;
        let below = cgroup.strip_prefix(&cgroup2.mount).ok()?;
        let is_outside = !below.iter().any(|part| is_containers(&part.to_string_lossy()));
        is_outside.then_some(cgroup)
    };
    pids.filter_map(place).collect()
}

/// Looks at a cgroup and all below it; returns how many processes are there.
fn verify(cgroup: &Path, host: Host, depth: usize) -> Result<usize, KubeletError> {
    let shown = || cgroup.display().to_string();
    let unreadable = |error: io::Error| KubeletError::Unreadable {
        path: shown(),
        why: error.to_string(),
    };
    let unfit = |why: String| KubeletError::Unfit { path: shown(), why };
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).map_err(unreadable)?;
    let mut count = 0;
    for pid in procs.lines() {
        if pid == "0" {
            return Err(unfit(
                "holds processes that the agent cannot see: it must run in the host's pid namespace (hostPID)".to_owned(),
            ));
        }
        match Host::of(pid) {
            Ok(of) if of == host => count += 1,
            Ok(_) => {
                return Err(unfit(format!(
                    "holds process {pid}, which is in another network or pid namespace than the host's: a container's"
                )));
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                return Err(unfit(format!(
                    "holds process {pid}, which cannot be looked at: {error}"
                )));
            }
        }
    }
    for entry in fs::read_dir(cgroup).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_containers(&name) {
            return Err(unfit(format!("holds {name}, the cgroup of a pod or container")));
        }
        if depth == 0 {
            return Err(unfit("has cgroups nested too deeply below it".to_owned()));
        }
        count += match verify(&entry.path(), host, depth - 1) {
            // It went while we looked.
            Err(KubeletError::Unreadable { .. }) if !entry.path().exists() => 0,
            other => other?,
        };
    }
    Ok(count)
}

/// ENOENT from `/proc`, ESRCH from a process that is ending.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Whether a cgroup of this name is one that runtimes make: by its begin, or by the 64 hexadecimal digits of a container id.
fn is_containers(name: &str) -> bool {
    let long_hex = |part: &str| part.len() == 64 && part.bytes().all(|c| c.is_ascii_hexdigit());
    CONTAINERS.iter().any(|begin| name.starts_with(begin)) || name.split(['-', '.', ':']).any(long_hex)
}

#[cfg(test)]
mod tests {
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
}
