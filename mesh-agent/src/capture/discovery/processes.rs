//! The processes of a pod, from its cgroup and `/proc`. Numbers of processes are used again: a process is told by its number and the moment
//! it began, and what was read of it counts only if that is the same before and after.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::choose::Process;
use super::layout::is_runtimes_own;
use super::tree::list;
use crate::capture::cgroup::Cgroup2;

/// Cgroups below a pod's that are looked at. Containers are right below it, and so are looked at first.
const MOST_CGROUPS: usize = 1024;
/// Processes of a pod that are looked at.
const MOST_PROCESSES: usize = 4096;

/// A procfs, seen from where the agent is.
#[derive(Clone, Debug)]
pub(super) struct Procfs {
    root: PathBuf,
}

impl Procfs {
    /// The one at `root`.
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The processes in the cgroup at `pod` and below, apart from the runtime's own. Those that end meanwhile are left out.
    ///
    /// # Errors
    /// When the cgroup or the processes cannot be looked at; `NotFound` when the cgroup is not there.
    pub(super) fn of_pod(&self, pod: &Path, cgroup2: &Cgroup2) -> io::Result<Vec<Process>> {
        let pids = match pids_below(pod)? {
            Pids::Seen(pids) => pids,
            Pids::Hidden => self.search(pod, cgroup2)?,
        };
        let mut processes = Vec::new();
        let mut refused = None;
        for pid in pids {
            match self.process(pid) {
                Ok(process) => processes.push(process),
                Err(error) if is_gone(&error) => {}
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) if processes.is_empty() => Err(error),
            _ => Ok(processes),
        }
    }

    /// Process `pid` as it is now.
    pub(super) fn process(&self, pid: u32) -> io::Result<Process> {
        let dir = self.root.join(pid.to_string());
        let (start, parent) = stat(&dir)?;
        let netns = fs::metadata(dir.join("ns/net"))?.ino();
        let status = fs::read_to_string(dir.join("status"))?;
        if stat(&dir)?.0 != start {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Process {
            pid,
            start,
            parent,
            is_init: is_init(&status),
            netns,
        })
    }

    /// Whether this very process still runs in its network namespace.
    pub(super) fn still(&self, process: &Process) -> bool {
        let dir = self.root.join(process.pid.to_string());
        let same_netns = || fs::metadata(dir.join("ns/net")).is_ok_and(|meta| meta.ino() == process.netns);
        same_netns() && stat(&dir).is_ok_and(|(start, _)| start == process.start)
    }

    /// Opens the network namespace of `process`, a process of the pod with the cgroup at `pod`. What is opened is looked at again: the
    /// number may be somebody else's by then.
    pub(super) fn open_netns(&self, process: &Process, pod: &Path, cgroup2: &Cgroup2) -> io::Result<File> {
        let changed = |what: &str| io::Error::new(io::ErrorKind::NotFound, what.to_owned());
        let dir = self.root.join(process.pid.to_string());
        let file = File::open(dir.join("ns/net"))?;
        if file.metadata()?.ino() != process.netns {
            return Err(changed("its process has gone to another network namespace"));
        }
        let pids = match pids_below(pod)? {
            Pids::Seen(pids) => pids,
            Pids::Hidden => self.search(pod, cgroup2)?,
        };
        if !pids.contains(&process.pid) {
            return Err(changed("its process is not in its cgroup any more"));
        }
        if stat(&dir)?.0 != process.start {
            return Err(changed("its process has ended"));
        }
        Ok(file)
    }

    /// The processes in the cgroup at `pod` or below, by what all processes say: slow, and the only way where the agent does not live in
    /// the host's pid namespace but has the host's procfs.
    fn search(&self, pod: &Path, cgroup2: &Cgroup2) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let Ok(text) = fs::read_to_string(self.root.join(&name).join("cgroup")) else {
                continue;
            };
            let place = cgroup2.place_of(&text);
            let below = place.as_deref().and_then(|place| place.strip_prefix(pod).ok());
            let is_pods = |below: &Path| !below.iter().next().is_some_and(is_runtimes_own);
            if below.is_some_and(is_pods) {
                pids.push(pid);
            }
        }
        Ok(pids)
    }
}

/// What a cgroup says of its processes.
#[derive(Debug, PartialEq, Eq)]
enum Pids {
    /// These.
    Seen(Vec<u32>),
    /// There are some outside the agent's pid namespace.
    Hidden,
}

fn pids_below(pod: &Path) -> io::Result<Pids> {
    let mut pids = Vec::new();
    let mut waiting = VecDeque::from([(pod.to_owned(), true)]);
    let mut seen = 0;
    while let Some((path, is_top)) = waiting.pop_front() {
        seen += 1;
        if seen > MOST_CGROUPS || pids.len() > MOST_PROCESSES {
            break;
        }
        match fs::read_to_string(path.join("cgroup.procs")) {
            Ok(text) => {
                for line in text.lines() {
                    match line.parse() {
                        Ok(0) => return Ok(Pids::Hidden),
                        Ok(pid) => pids.push(pid),
                        Err(_) => {}
                    }
                }
            }
            // A threaded cgroup: its processes are those of the domain above it.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(error) if is_top => return Err(error),
            Err(_) => continue,
        }
        for name in list(&path).unwrap_or_default() {
            if !(is_top && is_runtimes_own(&name)) {
                waiting.push_back((path.join(name), false));
            }
        }
    }
    Ok(Pids::Seen(pids))
}

/// When a process began, and its parent (`proc(5)`, fields 22 and 4). The name before may hold anything, blanks and brackets too.
pub(in crate::capture) fn stat(dir: &Path) -> io::Result<(u64, u32)> {
    let text = fs::read(dir.join("stat"))?;
    parse_stat(&String::from_utf8_lossy(&text)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_stat(text: &str) -> Option<(u64, u32)> {
    let (_, after) = text.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    Some((start, parent))
}

/// Whether a `/proc/PID/status` is that of number 1 of a pid namespace below the one that it is read in.
fn is_init(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let numbers: Vec<&str> = numbers.map_or_else(Vec::new, |list| list.split_ascii_whitespace().collect());
    numbers.len() > 1 && numbers.last() == Some(&"1")
}

/// ENOENT from `/proc`, ESRCH from a process that is ending.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
        || error.kind() == io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_does_not_move_the_fields_behind_it() {
        let fields = "S 4242 100 100 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1";
        for name in ["pause", "a) S 1 1 (b", "a b c", ") R 1"] {
            assert_eq!(
                parse_stat(&format!("7 ({name}) {fields}")),
                Some((987_654, 4242)),
                "{name}"
            );
        }
        for text in ["", "7 (x)", "7 (x) S", "7 (x) S one"] {
            assert_eq!(parse_stat(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_first_of_a_pid_namespace_is_known_by_its_innermost_number() {
        assert!(is_init("Name:\tpause\nNSpid:\t4242\t1\n"));
        assert!(is_init("NSpid:\t4242\t17\t1\n"));
        assert!(!is_init("NSpid:\t4242\t2\n"));
        // The first process of the agent's own pid namespace is no sandbox's.
        assert!(!is_init("NSpid:\t1\n"));
        assert!(!is_init("Name:\tNSpid:\n"));
    }

    #[test]
    fn a_process_is_told_from_another_with_its_number() {
        let proc = Procfs::at("/proc".into());
        let me = proc.process(std::process::id()).unwrap();
        assert!(proc.still(&me));
        assert!(!proc.still(&Process {
            start: me.start + 1,
            ..me.clone()
        }));
        assert!(!proc.still(&Process {
            netns: me.netns + 1,
            ..me
        }));
    }

    #[test]
    fn processes_are_listed_below_a_pod_without_the_monitors_of_the_runtime() {
        let root = tempfile::tempdir().unwrap();
        let place = |cgroup: &str, procs: &str| {
            let path = root.path().join(cgroup);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cgroup.procs"), procs).unwrap();
        };
        place("", "");
        place("crio-conmon-1.scope", "7\n");
        place("crio-1.scope", "8\n");
        place("crio-1.scope/crio-conmon-2.scope", "9\n");
        let Pids::Seen(mut pids) = pids_below(root.path()).unwrap() else {
            panic!("hidden")
        };
        pids.sort_unstable();
        assert_eq!(pids, [8, 9]);
        place("crio-1.scope", "0\n");
        assert_eq!(pids_below(root.path()).unwrap(), Pids::Hidden);
        assert!(pids_below(&root.path().join("none")).is_err());
    }
}
