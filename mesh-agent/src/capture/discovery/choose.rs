//! Which of a pod's processes tells the network namespace of its sandbox. Pure.
//!
//! A container may make namespaces of its own and fill them with processes, so numbers prove nothing. What it cannot do is to be older than
//! the sandbox, or to be made by the runtime: the runtime starts the sandbox's first process before any container, as number 1 of its
//! pid namespace, from outside the pod's cgroup.

use std::collections::{BTreeMap, BTreeSet};

/// A process of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Its number, as the agent sees it.
    pub(super) pid: u32,
    /// When it began, in clock ticks since boot: with the number, it is never another.
    pub(super) start: u64,
    /// Who made it, or has inherited it.
    pub(super) parent: u32,
    /// It is number 1 of a pid namespace.
    pub(super) is_init: bool,
    /// Inode of its network namespace.
    pub(super) netns: u64,
}

/// What the processes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This one is the sandbox's, or shares its namespace.
    Process(Process),
    /// There is none.
    Nobody,
    /// They do not agree, for this reason.
    Doubt(String),
}

/// Chooses; `said` is the sandbox's process by the container runtime, which decides where it is one of the pod's.
pub(super) fn choose(processes: &[Process], said: Option<u32>) -> Choice {
    if let Some(process) = said.and_then(|pid| processes.iter().find(|process| process.pid == pid)) {
        return Choice::Process(process.clone());
    }
    let pids: BTreeSet<u32> = processes.iter().map(|process| process.pid).collect();
    let brought_in = |process: &&Process| !pids.contains(&process.parent);
    let inits: Vec<&Process> = processes
        .iter()
        .filter(brought_in)
        .filter(|process| process.is_init)
        .collect();
    let Some(first) = inits.iter().min_by_key(|process| process.start) else {
        return unanimous(processes.iter().filter(brought_in));
    };
    let others = inits.iter().filter(|process| process.netns != first.netns);
    let mut elsewhere: BTreeMap<u64, usize> = BTreeMap::new();
    for other in others {
        if other.start == first.start {
            return Choice::Doubt(format!(
                "its processes {} and {} began at one moment in different network namespaces",
                first.pid, other.pid
            ));
        }
        *elsewhere.entry(other.netns).or_default() += 1;
    }
    let with_first = inits
        .iter()
        .filter(|process| process.netns == first.netns)
        .count();
    match elsewhere.values().max() {
        Some(many) if *many > with_first => Choice::Doubt(format!(
            "its first process {} is in another network namespace than most of its containers",
            first.pid
        )),
        _ => Choice::Process((*first).clone()),
    }
}

/// Without a pid namespace of its own (`hostPID`) nothing tells the first process of a container from others that the runtime has made.
fn unanimous<'a>(processes: impl Iterator<Item = &'a Process>) -> Choice {
    let all: Vec<&Process> = processes.collect();
    let Some(first) = all.iter().min_by_key(|process| process.start) else {
        return Choice::Nobody;
    };
    match all.iter().find(|process| process.netns != first.netns) {
        None => Choice::Process((*first).clone()),
        Some(other) => Choice::Doubt(format!(
            "its processes {} and {} are in different network namespaces, and none is the first of a pid namespace",
            first.pid, other.pid
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The runtime's shim, outside of the pod.
    const SHIM: u32 = 1;

    fn process(pid: u32, parent: u32, is_init: bool, netns: u64) -> Process {
        Process {
            pid,
            start: u64::from(pid),
            parent,
            is_init,
            netns,
        }
    }

    fn chosen(processes: &[Process]) -> Result<u32, String> {
        match choose(processes, None) {
            Choice::Process(process) => Ok(process.pid),
            Choice::Nobody => Err("nobody".into()),
            Choice::Doubt(why) => Err(why),
        }
    }

    #[test]
    fn the_first_process_that_the_runtime_made_is_the_sandboxes() {
        let pause = process(10, SHIM, true, 7);
        assert_eq!(chosen(&[]), Err("nobody".into()));
        assert_eq!(chosen(std::slice::from_ref(&pause)), Ok(10));
        let app = process(20, SHIM, true, 7);
        let worker = process(21, 20, false, 7);
        assert_eq!(chosen(&[worker, app, pause]), Ok(10));
    }

    #[test]
    fn namespaces_that_a_container_makes_do_not_count_however_many_live_there() {
        let mut all = vec![process(10, SHIM, true, 7), process(20, SHIM, true, 7)];
        // Children in a namespace of their own, some as the first of a pid namespace of theirs.
        all.extend((100..200).map(|pid| process(pid, 20, pid % 2 == 0, 8)));
        assert_eq!(chosen(&all), Ok(10));
        // The container's first process itself has moved.
        all[1].netns = 8;
        assert_eq!(chosen(&all), Ok(10));
        // Somebody came in by `kubectl exec` and made a namespace.
        all.push(process(300, SHIM, false, 9));
        assert_eq!(chosen(&all), Ok(10));
    }

    #[test]
    fn two_containers_against_the_first_process_are_a_doubt() {
        let all = [
            process(10, SHIM, true, 7),
            process(20, SHIM, true, 8),
            process(30, SHIM, true, 8),
        ];
        assert!(chosen(&all).unwrap_err().contains("most of its containers"));
        let mut tied = [process(10, SHIM, true, 7), process(20, SHIM, true, 8)];
        tied[1].start = tied[0].start;
        assert!(chosen(&tied).unwrap_err().contains("one moment"));
    }

    #[test]
    fn without_a_pid_namespace_all_must_agree() {
        let mut all = vec![process(10, SHIM, false, 7), process(20, SHIM, false, 7)];
        assert_eq!(chosen(&all), Ok(10));
        // A child's does not matter: it is its parent's affair.
        all.push(process(21, 20, false, 8));
        assert_eq!(chosen(&all), Ok(10));
        all.push(process(30, SHIM, false, 8));
        assert!(chosen(&all).unwrap_err().contains("different network namespaces"));
    }

    #[test]
    fn the_runtimes_word_counts_where_the_process_is_the_pods() {
        let all = [process(10, SHIM, false, 7), process(20, SHIM, false, 8)];
        assert_eq!(choose(&all, Some(20)), Choice::Process(all[1].clone()));
        assert!(matches!(choose(&all, Some(99)), Choice::Doubt(_)));
    }
}
