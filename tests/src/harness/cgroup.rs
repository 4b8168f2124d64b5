//! cgroups below the cgroup2 mount, which on hybrid hosts is not `/sys/fs/cgroup`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where cgroup2 is mounted, as `/proc/self/mountinfo` says.
///
/// # Errors
/// When there is no cgroup2 mount.
pub fn cgroup2_mount() -> Result<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    text.lines()
        .find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut fields = before.split(' ').skip(3);
            let (root, mount) = (fields.next()?, fields.next()?);
            (after.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(mount))
        })
        .context("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// A cgroup that we made; removed on drop, with whatever still runs in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup at `path` (below the cgroup2 mount), and its parents.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(path: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// A cgroup below this one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create(self.path.join(name))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes the cgroups called `name` at the tops of the hierarchies of version 1: on hybrid hosts a container runtime makes them beside
/// those of version 2. Best effort.
pub(super) fn remove_version1(name: &str) {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let version1 = text.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mount = before.split(' ').nth(4)?;
        after.starts_with("cgroup ").then(|| Path::new(mount).join(name))
    });
    for path in version1 {
        remove(&path);
    }
}

/// Ends what runs below `path` (by pid) and removes the cgroups, bottom up. Best effort.
pub(super) fn remove(path: &Path) {
    if !path.exists() {
        return;
    }
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let end = Instant::now() + Duration::from_secs(5);
    while std::fs::remove_dir(path).is_err() && path.exists() && Instant::now() < end {
        let procs = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines().filter_map(|line| line.parse::<i32>().ok()) {
            if pid > 1 && pid.cast_unsigned() != std::process::id() {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
