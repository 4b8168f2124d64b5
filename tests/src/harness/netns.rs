//! Network namespaces, named in `/run/netns` as ip(8) does.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::process::run;

/// A named network namespace. One that we made loses its name on drop; the namespace goes with its last process and socket.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    ours: bool,
}

impl Netns {
    /// Makes the namespace `name`, with its loopback up and IPv6 usable at once (no duplicate address detection).
    ///
    /// # Errors
    /// When ip(8) refuses.
    pub fn create(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let this = Self {
            name: name.to_owned(),
            path: Path::new("/run/netns").join(name),
            ours: true,
        };
        this.sysctl("ipv6/conf/all/accept_dad", "0")?;
        this.sysctl("ipv6/conf/default/accept_dad", "0")?;
        this.sysctl("ipv6/conf/default/accept_ra", "0")?;
        this.ip(&["link", "set", "lo", "up"])?;
        Ok(this)
    }

    /// The namespace at `path`, which somebody else removes.
    pub fn at(path: &Path) -> Self {
        Self {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            path: path.to_owned(),
            ours: false,
        }
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that is the namespace.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn open(&self) -> Result<File> {
        File::open(&self.path).with_context(|| format!("cannot open the namespace {}", self.path.display()))
    }

    /// Runs `work` on a thread of its own in this namespace (and in the cgroup of this process).
    ///
    /// # Errors
    /// When the namespace cannot be entered, or what `work` fails with.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = self.open()?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
                work()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Sets `/proc/sys/net/KEY`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.enter(|| std::fs::write(&path, value).with_context(|| format!("cannot set {path} to {value}")))
    }

    /// `ip -n NAME ARGS…`
    ///
    /// # Errors
    /// When it fails.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        let mut all = vec!["-n", &self.name];
        all.extend(args);
        ip(&all)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.ours {
            ip(&["netns", "delete", &self.name]).ok();
        }
    }
}

/// ip(8).
pub(super) fn ip(args: &[&str]) -> Result<()> {
    run(Command::new("ip").args(args), Duration::from_secs(10))
        .and_then(|output| output.success())
        .with_context(|| format!("ip {}", args.join(" ")))
        .map(drop)
}
