//! The kubelet's own process, for where its cgroup is shared with others: told by its name, its user and its namespaces, and known from
//! then on by its number and the moment it began. A process that the kubelet starts is another one.

use std::fs;
use std::path::Path;

use super::{Host, NAMES, may_be_kubelet};
use crate::capture::discovery::process_stat;

/// Inode of the machine's first pid namespace (`PROC_PID_INIT_INO` of `linux/proc_ns.h`), in whose numbering BPF programs see processes.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture) struct Process {
    /// Its number in the machine's first pid namespace.
    pub(in crate::capture) pid: u32,
    /// When it began, in clock ticks since the machine's start: numbers are used again.
    start: u64,
}

/// The one process directly in `cgroup` that is the kubelet.
///
/// # Errors
/// Says why there is none, or that it cannot be told which.
pub(super) fn find_in(cgroup: &Path, host: Host) -> Result<Process, String> {
    if host.pid != FIRST_PID_NAMESPACE {
        return Err(
            "the kubelet's process cannot be told from others, because this node has a pid namespace of its own".to_owned(),
        );
    }
    let procs = fs::read_to_string(cgroup.join("cgroup.procs"))
        .map_err(|error| format!("its processes cannot be listed: {error}"))?;
    let found: Vec<(Process, u32)> = procs.lines().filter_map(|pid| look_at(pid, host)).collect();
    // Between fork and exec a process that the kubelet starts is called as the kubelet is.
    let is_child = |parent: u32| found.iter().any(|(other, _)| other.pid == parent);
    let mut own = found.iter().filter(|(_, parent)| !is_child(*parent));
    match (own.next(), own.next()) {
        (Some((process, _)), None) => Ok(*process),
        (None, _) => Err(format!(
            "no process of root's directly in {} is called {}",
            cgroup.display(),
            NAMES.join(" or ")
        )),
        (Some((one, _)), Some((other, _))) => Err(format!(
            "it is ambiguous which process there is the kubelet: {} or {}",
            one.pid, other.pid
        )),
    }
}

/// A process that may be the kubelet, and its parent. What was read counts only if it is the same process before and after.
fn look_at(pid: &str, host: Host) -> Option<(Process, u32)> {
    let dir = Path::new("/proc").join(pid);
    let (start, parent) = process_stat(&dir).ok()?;
    let is_it = may_be_kubelet(pid, host);
    let (again, _) = process_stat(&dir).ok()?;
    let process = Process {
        pid: pid.parse().ok()?,
        start,
    };
    (is_it && again == start).then_some((process, parent))
}
