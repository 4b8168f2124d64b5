//! The cgroup2 hierarchy: where it is mounted, where pods and the agent are in it. Owns the agent's own cgroup where it had to make one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use tracing::{info, warn};

use super::error::{CaptureError, EnrolError};
use super::mounts::{self, Mount};

/// In a container a process may have a cgroup namespace of its own, in which no path says where other pods' cgroups are. Joins that of
/// its parent, the runtime's shim, which lives in the node's (where the container shares the node's pid namespace). To be called before any
/// thread that looks at cgroups is started: threads inherit it. What cannot be joined is told, and missed later.
pub fn join_parents_cgroup_namespace() {
    // Without a parent in this pid namespace there is nothing to join.
    let parent = nix::unistd::getppid().as_raw();
    let own = fs::metadata("/proc/self/ns/cgroup").map(|namespace| namespace.ino());
    let theirs =
        File::open(format!("/proc/{parent}/ns/cgroup")).and_then(|file| Ok((file.metadata()?.ino(), file)));
    let (Ok(own), Ok((inode, theirs))) = (own, theirs) else {
        return;
    };
    if own == inode {
        return;
    }
    match setns(theirs, CloneFlags::CLONE_NEWCGROUP) {
        Ok(()) => info!(
            parent,
            "joined the cgroup namespace of the parent process: cgroups are seen as the node sees them"
        ),
        Err(error) => warn!(
            parent, %error,
            "the cgroup namespace of the parent process cannot be joined: is CAP_SYS_ADMIN missing? Pods' cgroups may not be found"
        ),
    }
}

/// The cgroup2 mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroup2 {
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// Which cgroup of the hierarchy the mount shows as its root.
    root: PathBuf,
}

impl Cgroup2 {
    /// Finds the mount, or takes the one named.
    pub(super) fn find(named: Option<&Path>) -> Result<Self, CaptureError> {
        let table = mounts::read().map_err(CaptureError::io("reading /proc/self/mountinfo"))?;
        Self::among(table, named).ok_or(CaptureError::NoCgroup2)
    }

    /// A directory that stands for the mount of a whole hierarchy.
    #[cfg(test)]
    pub(super) fn at(mount: &Path) -> Self {
        Self {
            mount: mount.to_owned(),
            root: "/".into(),
        }
    }

    /// The one of these mounts that is meant: on a hybrid host the hierarchies of version 1 are mounted beside it.
    fn among(table: Vec<Mount>, named: Option<&Path>) -> Option<Self> {
        let mut candidates = table.into_iter().filter(|m| m.kind == "cgroup2");
        let mount = match named {
            Some(path) => candidates.find(|m| m.point == path),
            None => candidates.next(),
        }?;
        Some(Self {
            mount: mount.point,
            root: mount.root,
        })
    }

    /// The cgroup that a process is in, where it still runs and the mount shows that.
    pub(super) fn of_process(&self, pid: u32) -> Option<PathBuf> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        self.place_of(&text)
    }

    /// Where the cgroup that a `/proc/PID/cgroup` names is below the mount.
    pub(super) fn place_of(&self, text: &str) -> Option<PathBuf> {
        let own = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        below_mount(self, Path::new(own))
    }

    /// Opens the cgroup of a pod: `path` is absolute or relative to the mount.
    pub(super) fn open_pod(&self, path: &str, agent: &Path) -> Result<PodCgroup, EnrolError> {
        let missing = |source| EnrolError::Cgroup {
            path: path.to_owned(),
            source,
        };
        let unfit = |why| EnrolError::CgroupUnfit {
            path: path.to_owned(),
            why,
        };
        let full = fs::canonicalize(self.mount.join(path)).map_err(missing)?;
        let dir = File::open(&full).map_err(missing)?;
        let kind = fstatfs(&dir).map_err(|e| missing(e.into()))?.filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            return Err(unfit(
                "is not in the cgroup2 hierarchy: its sockets cannot be captured",
            ));
        }
        let mount = fs::canonicalize(&self.mount).map_err(missing)?;
        if !full.starts_with(&mount) || full == mount {
            return Err(unfit(
                "is not below the cgroup2 mount: capture would take in the whole host",
            ));
        }
        if agent.starts_with(&full) {
            return Err(unfit(
                "holds the agent itself: it would capture its own connections",
            ));
        }
        let id = dir.metadata().map_err(missing)?.ino();
        Ok(PodCgroup { dir, full, id })
    }
}

/// A pod's cgroup, open.
#[derive(Debug)]
pub(super) struct PodCgroup {
    dir: File,
    full: PathBuf,
    id: u64,
}

impl PodCgroup {
    /// For attaching programs.
    pub(super) fn file(&self) -> &File {
        &self.dir
    }

    /// Its id, as the kernel tells it of a link.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Where it is, without symbolic links.
    pub(super) fn path(&self) -> &Path {
        &self.full
    }

    /// Whether `cgroup` is this one or below it.
    pub(super) fn holds(&self, cgroup: &Path) -> bool {
        cgroup.starts_with(&self.full)
    }

    /// Whether its path still leads to it.
    pub(super) fn is_current(&self) -> bool {
        fs::metadata(&self.full).is_ok_and(|meta| meta.ino() == self.id)
    }
}

/// The agent's own cgroup, in which all its sockets are made. When it is one that we made, dropping it moves the process back and
/// removes it.
#[derive(Debug)]
pub(super) struct AgentCgroup {
    path: PathBuf,
    dir: File,
    /// Where the process came from, if it was moved.
    came_from: Option<PathBuf>,
}

impl AgentCgroup {
    /// The cgroup that the process is in; where that is the root of the hierarchy (whose programs would see every socket of the
    /// machine), a new one below it, into which the process moves. To be called before any socket of the data path is made.
    pub(super) fn settle(cgroup2: &Cgroup2, node: &str) -> Result<Self, CaptureError> {
        let own = own_path(cgroup2)?;
        let is_root = !own.join("cgroup.events").exists();
        if !is_root {
            // Started out of an agent that had moved (a test, an upgrade in place): the cgroup is ours to remove all the same.
            let made = own.ends_with(child_name(node)) && own.parent() == Some(&cgroup2.mount);
            return Self::open(own, made.then(|| cgroup2.mount.clone()));
        }
        let child = own.join(child_name(node));
        if let Err(e) = fs::create_dir(&child)
            && e.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(CaptureError::io(format!(
                "making the agent's cgroup {}",
                child.display()
            ))(e));
        }
        move_process(&child).map_err(CaptureError::io(format!(
            "moving the agent into its cgroup {}",
            child.display()
        )))?;
        info!(cgroup = %child.display(), "the agent was in the root cgroup and has moved into its own");
        Self::open(child, Some(own))
    }

    fn open(path: PathBuf, came_from: Option<PathBuf>) -> Result<Self, CaptureError> {
        let dir = File::open(&path).map_err(CaptureError::io(format!(
            "opening the agent's cgroup {}",
            path.display()
        )))?;
        Ok(Self { path, dir, came_from })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.dir
    }

    /// Undoes what [`settle`](Self::settle) did. Others may still be in the cgroup: then it stays.
    pub(super) fn leave(&self) {
        let Some(before) = &self.came_from else { return };
        let done = move_process(before).and_then(|()| fs::remove_dir(&self.path));
        if let Err(error) = done {
            warn!(cgroup = %self.path.display(), %error, "the agent's cgroup stays");
        }
    }
}

/// Removes the cgroup that a crashed agent of this node may have left; one that is in use stays.
pub(super) fn remove_leftover(cgroup2: &Cgroup2, node: &str) {
    let _ = fs::remove_dir(cgroup2.mount.join(child_name(node)));
}

fn child_name(node: &str) -> String {
    format!("mesh-agent-{node}")
}

fn move_process(to: &Path) -> io::Result<()> {
    fs::write(to.join("cgroup.procs"), std::process::id().to_string())
}

fn own_path(cgroup2: &Cgroup2) -> Result<PathBuf, CaptureError> {
    let text =
        fs::read_to_string("/proc/self/cgroup").map_err(CaptureError::io("reading /proc/self/cgroup"))?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::"));
    let own = Path::new(own.unwrap_or("/"));
    below_mount(cgroup2, own).ok_or_else(|| CaptureError::OwnCgroup {
        mount: cgroup2.mount.clone(),
        why: format!(
            "/proc/self/cgroup says {}, the mount shows {}",
            own.display(),
            cgroup2.root.display()
        ),
    })
}

/// Where cgroup `own` (as the process sees it) is below the mount. In a cgroup namespace of its own a process sees parents as `..`.
fn below_mount(cgroup2: &Cgroup2, own: &Path) -> Option<PathBuf> {
    let climbs = |path: &Path| path.components().any(|c| c == Component::ParentDir);
    if climbs(own) || climbs(&cgroup2.root) {
        return None;
    }
    let below = own.strip_prefix(&cgroup2.root).ok()?;
    Some(if below.as_os_str().is_empty() {
        cgroup2.mount.clone()
    } else {
        cgroup2.mount.join(below)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(mount: &str, root: &str) -> Cgroup2 {
        Cgroup2 {
            mount: mount.into(),
            root: root.into(),
        }
    }

    const PURE: &str = "\
        24 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
        29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n\
        31 23 0:28 / /sys/fs/bpf rw,nosuid,nodev,noexec,relatime shared:11 - bpf bpf rw,mode=700\n";
    const HYBRID: &str = "\
        29 23 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,size=4096k,mode=755\n\
        30 29 0:27 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate\n\
        31 29 0:28 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:11 - cgroup cgroup rw,xattr,name=systemd\n\
        34 29 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:15 - cgroup cgroup rw,cpu,cpuacct\n";
    const VERSION1: &str = "\
        29 23 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,size=4096k,mode=755\n\
        34 29 0:31 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:15 - cgroup cgroup rw,memory\n";

    fn found(text: &str, named: Option<&str>) -> Option<PathBuf> {
        Cgroup2::among(mounts::parse(text), named.map(Path::new)).map(|found| found.mount)
    }

    #[test]
    fn the_hierarchy_is_found_on_pure_and_on_hybrid_hosts_and_not_invented() {
        assert_eq!(found(PURE, None), Some("/sys/fs/cgroup".into()));
        assert_eq!(found(HYBRID, None), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(found(VERSION1, None), None);
    }

    #[test]
    fn a_named_directory_must_be_the_hierarchy_itself() {
        let unified = "/sys/fs/cgroup/unified";
        assert_eq!(found(HYBRID, Some(unified)), Some(unified.into()));
        assert_eq!(found(HYBRID, Some("/sys/fs/cgroup/systemd")), None);
        assert_eq!(found(HYBRID, Some("/sys/fs/cgroup")), None);
    }

    #[test]
    fn the_agents_cgroup_is_found_below_the_mount() {
        let whole = mounted("/sys/fs/cgroup/unified", "/");
        assert_eq!(
            below_mount(&whole, Path::new("/")),
            Some("/sys/fs/cgroup/unified".into())
        );
        assert_eq!(
            below_mount(&whole, Path::new("/a/b")),
            Some("/sys/fs/cgroup/unified/a/b".into())
        );
        let part = mounted("/cg", "/a");
        assert_eq!(below_mount(&part, Path::new("/a/b")), Some("/cg/b".into()));
    }

    #[test]
    fn a_cgroup_outside_the_mount_is_not_guessed() {
        assert_eq!(below_mount(&mounted("/cg", "/a"), Path::new("/b")), None);
        assert_eq!(below_mount(&mounted("/cg", "/../../.."), Path::new("/")), None);
        assert_eq!(below_mount(&mounted("/cg", "/"), Path::new("/../x")), None);
    }
}
