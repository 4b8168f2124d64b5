//! Finds the kubelet's cgroup and verifies that nothing but host processes are in it: only then may its connections pass as probes. Where
//! others are in it or below it, such as the pods of a kubelet that was started by hand, only the kubelet's own process counts
//! ([`process`]). Reads cgroupfs and `/proc`; attaches nothing.

mod process;

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
pub(super) use process::Process;

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
    /// The kubelet itself, where it is not alone with host processes there: then nothing but this process may pass.
    pub(super) process: Option<Process>,
}

impl Verified {
    /// Whether `other` lets the same pass.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.id, &self.path, self.process) == (other.id, &other.path, other.process)
    }
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
    if !path.starts_with(&root) {
        return Err(KubeletError::Unfit {
            path: path.display().to_string(),
            why: "is not below the cgroup2 mount".to_owned(),
        });
    }
    let dir = File::open(&path).map_err(unreadable)?;
    let id = dir.metadata().map_err(unreadable)?.ino();
    let host = Host::own().map_err(unreadable)?;
    let process = if mutation::is_off(Mechanism::ProbeCgroup) {
        None
    } else {
        match verify_own(&path, &root, foreign, host) {
            Ok(()) => None,
            Err(KubeletError::Unfit { path: at, why }) => match process::find_in(&path, host) {
                Ok(process) => Some(process),
                Err(not_told) => {
                    let why = format!("{why}; and {not_told}");
                    return Err(KubeletError::Unfit { path: at, why });
                }
            },
            Err(error) => return Err(error),
        }
    };
    Ok(Verified {
        path,
        dir,
        id,
        process,
    })
}

/// Verifies that a cgroup is the kubelet's own.
fn verify_own(path: &Path, root: &Path, foreign: &[PathBuf], host: Host) -> Result<(), KubeletError> {
    let unfit = |why: String| KubeletError::Unfit {
        path: path.display().to_string(),
        why,
    };
    if path == root {
        return Err(unfit(
            "is the root of the cgroup2 hierarchy, which holds all".to_owned(),
        ));
    }
    if let Some(inside) = foreign.iter().find(|cgroup| cgroup.starts_with(path)) {
        return Err(unfit(format!(
            "holds {}, which is a pod's or the agent's",
            inside.display()
        )));
    }
    match verify(path, host, DEPTH)? {
        0 => Err(unfit("holds no process".to_owned())),
        _ => Ok(()),
    }
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

/// Whether a process is called as kubelets are, is root's and in the host's namespaces.
fn may_be_kubelet(pid: &str, host: Host) -> bool {
    let is_roots = || fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == 0);
    is_named(pid) && is_roots() && Host::of(pid).is_ok_and(|of| of == host)
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
        if !may_be_kubelet(&pid, host) {
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
mod tests;
