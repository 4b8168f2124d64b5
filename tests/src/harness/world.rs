//! A world: everything one test or demo makes, and the one function that removes it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

use super::cgroup::{self, Cgroup, cgroup2_mount};
use super::netns::{Netns, ip};
use super::node::Node;

/// Where worlds are recorded, so that the next run can remove what a killed one left.
const RECORDS: &str = "/run/mesh-tests";

/// What must be known to remove a world without having made it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    /// Begins the name of each namespace, and is the cgroup's name.
    prefix: String,
    /// Who made it: process id and start time in clock ticks since boot (a pid alone may be another process by now).
    pid: u32,
    start: u64,
    /// The directory of its files; its `bpf` is a bpffs mount.
    dir: PathBuf,
    /// Left standing on purpose, until [`World::remove_kept`].
    kept: bool,
}

/// A fabric to which nodes are joined, with a directory, a cgroup and a bpffs. Removed on drop, with all that is in it.
#[derive(Debug)]
pub struct World {
    record: Record,
    record_file: PathBuf,
    cgroup: Cgroup,
    fabric: Netns,
    next_node: AtomicU32,
}

impl World {
    /// A new world. `name` begins its prefix: a few lower-case letters.
    ///
    /// # Errors
    /// When this process may not make namespaces, cgroups or mounts; the message says what is missing.
    pub fn new(name: &str) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "these tests make network namespaces and cgroups and load BPF programs: run them as root \
                 (cargo xtask test --unprivileged runs those that need no privilege)"
            );
        }
        sweep_worlds(|record| !record.kept && !alive(record))?;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let prefix = format!("{name}{pid:x}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(format!("mesh-{prefix}"));
        let record = Record {
            start: start_time(pid).context("cannot read this process's start time")?,
            prefix,
            pid,
            dir,
            kept: false,
        };
        let record_file = Path::new(RECORDS).join(format!("{}.json", record.prefix));
        std::fs::write(&record_file, serde_json::to_vec(&record)?)
            .with_context(|| format!("cannot write {}", record_file.display()))?;
        match Self::build(&record) {
            Ok((cgroup, fabric)) => Ok(Self {
                record,
                record_file,
                cgroup,
                fabric,
                next_node: AtomicU32::new(1),
            }),
            Err(error) => {
                sweep(&record, &record_file);
                Err(error)
            }
        }
    }

    fn build(record: &Record) -> Result<(Cgroup, Netns)> {
        for dir in ["bpf", "log"] {
            std::fs::create_dir_all(record.dir.join(dir))
                .with_context(|| format!("cannot make {}", record.dir.display()))?;
        }
        let none: Option<&str> = None;
        mount(
            Some("bpf"),
            &record.dir.join("bpf"),
            Some("bpf"),
            MsFlags::empty(),
            none,
        )
        .context(
            "cannot mount a bpffs: is this root with CAP_SYS_ADMIN, on a kernel with CONFIG_BPF_SYSCALL?",
        )?;
        let cgroup = Cgroup::create(cgroup2_mount()?.join(&record.prefix))?;
        let fabric = Netns::create(&format!("{}-fabric", record.prefix))?;
        fabric.ip(&[
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "forward_delay",
            "0",
            "mcast_snooping",
            "0",
        ])?;
        fabric.ip(&["link", "set", "br0", "up"])?;
        Ok((cgroup, fabric))
    }

    /// A node `name`, joined to the fabric.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn node(&self, name: &str) -> Result<Node> {
        let number = self.next_node.fetch_add(1, Ordering::Relaxed);
        Node::create(self, name, u8::try_from(number).context("too many nodes")?)
    }

    /// Begins the names of all its namespaces.
    pub fn prefix(&self) -> &str {
        &self.record.prefix
    }

    /// The directory of its files.
    pub fn dir(&self) -> &Path {
        &self.record.dir
    }

    /// Where programs' output goes.
    pub fn log_dir(&self) -> PathBuf {
        self.record.dir.join("log")
    }

    /// A bpffs of its own.
    pub fn bpffs(&self) -> PathBuf {
        self.record.dir.join("bpf")
    }

    /// The cgroup above all of its cgroups.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The namespace that joins the nodes: its `br0` sees all traffic between them.
    pub fn fabric(&self) -> &Netns {
        &self.fabric
    }

    /// Marks the world to be left standing when this process ends without dropping anything (`std::process::exit`), until
    /// [`World::remove_kept`].
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn keep(&self) -> Result<()> {
        let record = Record {
            kept: true,
            ..self.record.clone()
        };
        std::fs::write(&self.record_file, serde_json::to_vec(&record)?)
            .with_context(|| format!("cannot write {}", self.record_file.display()))
    }

    /// Removes the worlds that were kept, and what killed runs left behind; returns how many.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn remove_kept() -> Result<usize> {
        sweep_worlds(|record| !alive(record))
    }

    /// The prefixes of the worlds that were kept and whose name begins with `name`.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn kept(name: &str) -> Result<Vec<String>> {
        let kept = |record: &Record| record.kept && record.prefix.starts_with(name);
        Ok(records()?
            .into_iter()
            .map(|(record, _)| record)
            .filter(kept)
            .map(|record| record.prefix)
            .collect())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(to) = std::env::var_os("MESH_TESTS_LOGS")
        {
            keep_logs(&self.log_dir(), &Path::new(&to).join(&self.record.prefix)).ok();
        }
        sweep(&self.record, &self.record_file);
    }
}

fn keep_logs(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)?.flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The worlds that are recorded, and where.
fn records() -> Result<Vec<(Record, PathBuf)>> {
    std::fs::create_dir_all(RECORDS).with_context(|| format!("cannot make {RECORDS}"))?;
    let entries = std::fs::read_dir(RECORDS).with_context(|| format!("cannot list {RECORDS}"))?;
    let read = |path: &Path| serde_json::from_slice::<Record>(&std::fs::read(path).ok()?).ok();
    Ok(entries
        .flatten()
        .filter_map(|entry| Some((read(&entry.path())?, entry.path())))
        .collect())
}

/// Removes the recorded worlds that `which` names; returns how many.
fn sweep_worlds(which: impl Fn(&Record) -> bool) -> Result<usize> {
    let named: Vec<_> = records()?
        .into_iter()
        .filter(|(record, _)| which(record))
        .collect();
    for (record, path) in &named {
        sweep(record, path);
    }
    Ok(named.len())
}

/// Whether the process that made a world still runs.
fn alive(record: &Record) -> bool {
    start_time(record.pid) == Some(record.start)
}

/// Ends the processes of a world and removes its cgroups, namespaces, mounts and files; all named by its prefix. Best effort, and
/// may be repeated.
fn sweep(record: &Record, record_file: &Path) {
    if record.prefix.len() < 4 {
        return;
    }
    if let Ok(mount) = cgroup2_mount() {
        cgroup::remove(&mount.join(&record.prefix));
    }
    cgroup::remove_version1(&record.prefix);
    let dash = format!("{}-", record.prefix);
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        if let Some(name) = entry.file_name().to_str().filter(|name| name.starts_with(&dash)) {
            ip(&["netns", "delete", name]).ok();
        }
    }
    let bpffs = record.dir.join("bpf");
    for _ in 0..3 {
        if umount2(&bpffs, MntFlags::MNT_DETACH).is_err() {
            break;
        }
    }
    std::fs::remove_dir_all(&record.dir).ok();
    std::fs::remove_file(record_file).ok();
}

/// When process `pid` began, in clock ticks since boot (proc(5), stat field 22); `None` when there is no such process.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(19)?.parse().ok()
}
