//! Which cgroup is a pod's, by its path: the layouts that kubelets make with their drivers `cgroupfs` and `systemd`, behind any prefix.
//! Pure. The outermost pod counts: whatever a container makes below its own cgroup is a part of its own pod, whatever it is called.

use std::ffi::OsStr;
use std::fmt;

/// Longest uid that is taken for one; API servers make 36 characters, kubelets 32 for static pods.
const LONGEST: usize = 128;
/// The classes of quality of service that have a cgroup of their own.
const CLASSES: [&str; 2] = ["burstable", "besteffort"];

/// A Pod's `metadata.uid` as both drivers write it into names of cgroups: `-` and `_` are the same (the driver `systemd` writes `_`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PodKey(String);

impl PodKey {
    /// The key of a uid; `None` for what no kubelet makes a cgroup of.
    pub(super) fn of(uid: &str) -> Option<Self> {
        let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
        let fits = (1..=LONGEST).contains(&uid.len()) && uid.bytes().all(good);
        fits.then(|| Self(uid.replace('_', "-")))
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where in the tree a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Not among pods.
    Outside,
    /// Its children are pods and classes of pods.
    Pods(Branch),
}

/// A cgroup that holds those of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Branch {
    /// With the driver `systemd`: what the names of all slices below begin with.
    stem: Option<String>,
    /// It is that of a class: there is none below.
    is_class: bool,
}

/// What one step down leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A directory above pods, or beside them.
    Level(Level),
    /// A pod. What is below is its own.
    Pod(PodKey),
}

impl Level {
    /// Whether pods may be right below.
    pub(super) fn holds_pods(&self) -> bool {
        matches!(self, Self::Pods(_))
    }

    /// The child called `name`.
    pub(super) fn enter(&self, name: &OsStr) -> Step {
        let Some(name) = name.to_str() else {
            return Step::Level(Self::Outside);
        };
        if let Self::Pods(branch) = self {
            if let Some(pod) = branch.pod(name) {
                return Step::Pod(pod);
            }
            if let Some(class) = branch.class(name) {
                return Step::Level(Self::Pods(class));
            }
        }
        Step::Level(root(name).map_or(Self::Outside, Self::Pods))
    }
}

impl Branch {
    fn pod(&self, name: &str) -> Option<PodKey> {
        match &self.stem {
            None => PodKey::of(name.strip_prefix("pod")?),
            Some(stem) => {
                let own = name.strip_suffix(".slice")?.strip_prefix(stem.as_str())?;
                // A `-` would be another slice in between: the driver writes those of the uid as `_`.
                let uid = own.strip_prefix("-pod").filter(|uid| !uid.contains('-'))?;
                PodKey::of(uid)
            }
        }
    }

    fn class(&self, name: &str) -> Option<Self> {
        if self.is_class {
            return None;
        }
        let stem = match &self.stem {
            None => {
                CLASSES.contains(&name).then_some(())?;
                None
            }
            Some(stem) => {
                let slice = name.strip_suffix(".slice")?;
                let class = slice.strip_prefix(stem.as_str())?.strip_prefix('-')?;
                CLASSES.contains(&class).then_some(())?;
                Some(slice.to_owned())
            }
        };
        Some(Self { stem, is_class: true })
    }
}

/// The branch that a cgroup called `name` begins: `kubepods`, `kubepods.slice`, or `….-kubepods.slice` where the kubelet has a root of
/// its own.
fn root(name: &str) -> Option<Branch> {
    let branch = |stem: Option<&str>| Branch {
        stem: stem.map(str::to_owned),
        is_class: false,
    };
    if name == "kubepods" {
        return Some(branch(None));
    }
    let stem = name.strip_suffix(".slice")?;
    (stem == "kubepods" || stem.ends_with("-kubepods")).then(|| branch(Some(stem)))
}

/// Whether a cgroup right below a pod's holds processes of the runtime instead of the pod's: CRI-O's monitors, which live in the
/// host's network namespace.
pub(super) fn is_runtimes_own(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("crio-conmon-"))
}

#[cfg(test)]
#[path = "layout/tests.rs"]
mod tests;
