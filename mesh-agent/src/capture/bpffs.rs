//! The node's directory on a bpffs: pins that keep pods captured when the agent dies. Owns every file and directory below it, and the
//! lock that keeps a second agent of the same node out.
//!
//! ```text
//! <dir>/run-<n>/maps/<MAP>                      the maps, shared by all programs of the run
//! <dir>/run-<n>/pods/<netns cookie>/<hook>      the links of one pod
//! <dir>/run-<n>/abi-<version>/                  says that the maps are all there, and what they mean
//! ```
//!
//! A run begins with an agent that finds none that it understands, and goes on with its successors: they adopt the maps and the links.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mesh_common::mutation::{self, Mechanism};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tracing::{info, warn};

use super::error::CaptureError;
use super::mounts;

/// Where systems mount their bpffs.
const SYSTEM: &str = "/sys/fs/bpf";
/// Parent of the default directories.
const PARENT: &str = "/sys/fs/bpf/mesh-agent";

/// A pod's hooks in the order in which they go: what sends traffic to us first, what receives it last. They come in reverse.
pub(super) const HOOKS: [&str; 7] = [
    "connect4",
    "connect6",
    "getpeername4",
    "getpeername6",
    "sock_ops",
    "setsockopt",
    "sk_lookup",
];

/// The directory where the agent of `node` keeps its pins, unless told otherwise.
pub fn default_dir(node: &str) -> PathBuf {
    // A bpffs keeps names with dots for itself.
    Path::new(PARENT).join(node.replace(['.', '/'], "_"))
}

/// Behind the name of a pin that is about to take the place of another.
const FRESH: &str = "_new";

/// Where the successor of a pin is pinned before it takes its place.
pub(super) fn fresh_pin(pin: &Path) -> PathBuf {
    let mut name = pin.as_os_str().to_owned();
    name.push(FRESH);
    PathBuf::from(name)
}

/// The node's directory, locked.
#[derive(Debug)]
pub(super) struct NodeDir {
    path: PathBuf,
    /// `None` after it was given up for a successor.
    lock: Mutex<Option<Flock<File>>>,
}

impl NodeDir {
    /// Makes the directory if need be (mounting a bpffs where there is none) and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, CaptureError> {
        prepare(path).map_err(|source| CaptureError::Bpffs {
            path: path.to_owned(),
            source,
        })?;
        Self::lock(path)
    }

    /// Locks a directory that is there; `None` where there is none.
    pub(super) fn open_existing(path: &Path) -> Result<Option<Self>, CaptureError> {
        if path.is_dir() {
            Self::lock(path).map(Some)
        } else {
            Ok(None)
        }
    }

    fn lock(path: &Path) -> Result<Self, CaptureError> {
        Ok(Self {
            path: path.to_owned(),
            lock: Mutex::new(Some(flock(path)?)),
        })
    }

    /// Lets another agent of this node have the directory. What is in it stays.
    pub(super) fn give_up(&self) {
        self.held().take();
    }

    /// Takes the directory back that was given up.
    pub(super) fn take_back(&self) -> Result<(), CaptureError> {
        let mut held = self.held();
        if held.is_none() {
            *held = Some(flock(&self.path)?);
        }
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Option<Flock<File>>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a new run beside whatever earlier runs have left.
    pub(super) fn start_run(&self) -> Result<Run, CaptureError> {
        let last = self.runs().iter().filter_map(number).max().unwrap_or(0);
        let run = Run {
            path: self.path.join(format!("run-{}", last + 1)),
        };
        for dir in [run.path.clone(), run.maps(), run.path.join("pods")] {
            make_dir(&dir).map_err(CaptureError::io(format!("making {}", dir.display())))?;
        }
        Ok(run)
    }

    /// The latest run that was begun whole under this ABI.
    pub(super) fn adoptable(&self, abi: u32) -> Option<Run> {
        let mut runs = self.runs();
        runs.retain(|run| run.is_sealed(abi));
        runs.into_iter().max_by_key(number)
    }

    /// The pins of earlier runs.
    pub(super) fn leftovers(&self, ours: &Run) -> Vec<Run> {
        let mut runs = self.runs();
        runs.retain(|run| run.path != ours.path);
        runs
    }

    /// Removes everything, and the directory itself.
    pub(super) fn remove(&self) -> io::Result<usize> {
        let mut removed = 0;
        for run in self.runs() {
            removed += run.remove()?;
        }
        let is_mount = mounts::read()?.iter().any(|m| m.point == self.path);
        if is_mount {
            // Our own lock is an open directory on it.
            umount2(&self.path, MntFlags::MNT_DETACH)?;
        }
        fs::remove_dir(&self.path)?;
        if self.path.parent() == Some(Path::new(PARENT)) {
            // Other nodes' directories keep it.
            let _ = fs::remove_dir(PARENT);
        }
        Ok(removed)
    }

    fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = entries(&self.path).into_iter().map(|path| Run { path }).collect();
        runs.retain(|run| number(run).is_some());
        runs
    }
}

fn flock(path: &Path) -> Result<Flock<File>, CaptureError> {
    let dir = File::open(path).map_err(CaptureError::io(format!("opening {}", path.display())))?;
    Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => CaptureError::Locked {
            path: path.to_owned(),
        },
        other => CaptureError::io(format!("locking {}", path.display()))(other.into()),
    })
}

fn number(run: &Run) -> Option<u64> {
    run.path.file_name()?.to_str()?.strip_prefix("run-")?.parse().ok()
}

/// The pins of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    path: PathBuf,
}

impl Run {
    /// Directory of the maps.
    pub(super) fn maps(&self) -> PathBuf {
        self.path.join("maps")
    }

    /// Its name, for people.
    pub(super) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Says that all maps of the run are there, as `abi` has them. Without that nobody adopts it.
    pub(super) fn seal(&self, abi: u32) -> io::Result<()> {
        make_dir(&self.path.join(format!("abi-{abi}")))
    }

    fn is_sealed(&self, abi: u32) -> bool {
        if mutation::is_off(Mechanism::AbiVersion) {
            return self.maps().is_dir();
        }
        self.path.join(format!("abi-{abi}")).is_dir()
    }

    /// Directory of a pod's links.
    pub(super) fn pod(&self, netns: u64) -> PathBuf {
        self.path.join("pods").join(format!("{netns:x}"))
    }

    /// Makes the directory of a pod's links.
    pub(super) fn make_pod(&self, netns: u64) -> io::Result<PathBuf> {
        let dir = self.pod(netns);
        make_dir(&dir)?;
        Ok(dir)
    }

    /// The pods that have links pinned here, by netns cookie.
    pub(super) fn pods(&self) -> Vec<u64> {
        let cookie = |path: &PathBuf| u64::from_str_radix(path.file_name()?.to_str()?, 16).ok();
        entries(&self.path.join("pods"))
            .iter()
            .filter_map(cookie)
            .collect()
    }

    /// Removes a pod's links, in the order of [`HOOKS`]. How many there were.
    pub(super) fn remove_pod(&self, netns: u64) -> io::Result<usize> {
        remove_links(&self.pod(netns))
    }

    /// Removes everything of this run. How many pins there were.
    pub(super) fn remove(&self) -> io::Result<usize> {
        let mut removed = 0;
        for netns in self.pods() {
            removed += self.remove_pod(netns)?;
        }
        for map in entries(&self.maps()) {
            fs::remove_file(map)?;
            removed += 1;
        }
        // Its seal with it, and whatever a crash has left half made.
        for dir in entries(&self.path) {
            remove_dir(&dir)?;
        }
        remove_dir(&self.path)?;
        Ok(removed)
    }
}

/// Removes the links pinned in a pod's directory, and the directory.
pub(super) fn remove_links(dir: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for hook in HOOKS {
        match fs::remove_file(dir.join(hook)) {
            Ok(()) => removed += 1,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    // A crash may have left a pin that had not taken its place yet.
    for other in entries(dir) {
        fs::remove_file(other)?;
        removed += 1;
    }
    remove_dir(dir)?;
    Ok(removed)
}

/// Whether `path`, or its nearest ancestor that is there, is on a bpffs.
pub(super) fn is_on_bpffs(path: &Path) -> bool {
    let mut ancestors = path.ancestors();
    let present = ancestors.find(|ancestor| ancestor.exists());
    present.is_some_and(|dir| statfs(dir).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC))
}

/// What became of a wish for a bpffs on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeBpffs {
    /// There was one.
    Present,
    /// It was mounted.
    Mounted,
}

/// Sees to it that there is a bpffs at `path` on the node, from a container that shares the node's pid namespace and has the node's `path`
/// as its own. What a container mounts goes with it, so this is done in the mount namespace of its parent process: the runtime's shim,
/// which lives where volumes come from.
///
/// # Errors
/// When the parent is not to be seen (no `hostPID`), or the kernel refuses (CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE are needed).
pub fn mount_on_node(path: &Path) -> Result<NodeBpffs, CaptureError> {
    let failed = |source| CaptureError::NodeBpffs {
        path: path.to_owned(),
        source,
    };
    if is_on_bpffs(path) {
        return Ok(NodeBpffs::Present);
    }
    let parent = nix::unistd::getppid().as_raw();
    if parent == 0 {
        let outside = "the parent process is in another pid namespace: set hostPID";
        return Err(failed(io::Error::new(io::ErrorKind::Unsupported, outside)));
    }
    // A thread of its own: it does not come back.
    let to = path.to_owned();
    match std::thread::spawn(move || in_node(&to, parent)).join() {
        Ok(done) => done.map_err(failed),
        Err(_) => Err(failed(io::Error::other("the thread for it has panicked"))),
    }
}

fn in_node(path: &Path, parent: i32) -> io::Result<NodeBpffs> {
    let namespace = File::open(format!("/proc/{parent}/ns/mnt"))?;
    // The kernel lets only such threads go that share their root and directory with no other.
    unshare(CloneFlags::CLONE_FS)?;
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    if is_on_bpffs(path) {
        return Ok(NodeBpffs::Present);
    }
    fs::create_dir_all(path)?;
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )?;
    Ok(NodeBpffs::Mounted)
}

fn prepare(path: &Path) -> io::Result<()> {
    if !is_on_bpffs(path) {
        let point = if path.starts_with(SYSTEM) {
            Path::new(SYSTEM)
        } else {
            fs::create_dir_all(path)?;
            path
        };
        mount(
            Some("bpf"),
            point,
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )?;
        info!(path = %point.display(), "mounted a bpffs");
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).recursive(true).create(dir)
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            warn!(dir = %dir.display(), error = %e, "a directory of ours stays");
            Err(e)
        }
        _ => Ok(()),
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(listing) = fs::read_dir(dir) else {
        return Vec::new();
    };
    listing.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_directory_has_no_dots() {
        assert_eq!(
            default_dir("node-1.example.com"),
            Path::new("/sys/fs/bpf/mesh-agent/node-1_example_com")
        );
    }

    #[test]
    fn runs_are_numbered_and_removed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node");
        fs::create_dir(&path).unwrap();
        let node = NodeDir::open_existing(&path).unwrap().unwrap();
        let first = node.start_run().unwrap();
        let second = node.start_run().unwrap();
        assert_ne!(first, second);
        assert_eq!(node.leftovers(&second), std::slice::from_ref(&first));
        for hook in HOOKS {
            fs::write(first.make_pod(0xbeef).unwrap().join(hook), "").unwrap();
        }
        fs::write(first.maps().join("PODS"), "").unwrap();
        assert_eq!(first.pods(), [0xbeef]);
        assert_eq!(node.remove().unwrap(), HOOKS.len() + 1);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_run_that_was_begun_whole_under_the_same_abi_is_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeDir::open_existing(dir.path()).unwrap().unwrap();
        assert_eq!(node.adoptable(7), None);
        let whole = node.start_run().unwrap();
        let half_made = node.start_run().unwrap();
        assert_eq!(
            node.adoptable(7),
            None,
            "nobody has said that its maps are all there"
        );
        whole.seal(7).unwrap();
        assert_eq!(node.adoptable(7), Some(whole.clone()));
        assert_eq!(node.adoptable(8), None);
        assert_eq!(node.leftovers(&whole), std::slice::from_ref(&half_made));
        fs::write(fresh_pin(&whole.make_pod(1).unwrap().join("connect4")), "").unwrap();
        assert_eq!(
            whole.remove().unwrap(),
            1,
            "what a crash left half made goes, too"
        );
    }

    #[test]
    fn a_directory_that_was_given_up_can_be_taken_back_once_it_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let first = NodeDir::open_existing(dir.path()).unwrap().unwrap();
        first.give_up();
        let second = NodeDir::open_existing(dir.path()).unwrap().unwrap();
        assert!(matches!(first.take_back(), Err(CaptureError::Locked { .. })));
        drop(second);
        first.take_back().unwrap();
        assert!(NodeDir::open_existing(dir.path()).is_err());
    }

    #[test]
    fn a_second_agent_of_the_same_node_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let first = NodeDir::open_existing(dir.path()).unwrap();
        assert!(matches!(
            NodeDir::open_existing(dir.path()),
            Err(CaptureError::Locked { .. })
        ));
        drop(first);
        assert!(NodeDir::open_existing(dir.path()).unwrap().is_some());
    }
}
