//! Which BPF programs that are not ours see the sockets of a captured pod: those on the way from its cgroup to the root, and those in its
//! network namespace. Reads only.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use aya::programs::loaded_programs;
use serde::Serialize;

use super::pod::CapturedPod;
use super::sys::attached_programs;

/// The hooks of cgroups that have to do with connections, by number (`enum bpf_attach_type` of `linux/bpf.h`).
const CGROUP_HOOKS: [(&str, u32); 11] = [
    ("sock_create", 2),
    ("sock_ops", 3),
    ("bind4", 8),
    ("bind6", 9),
    ("connect4", 10),
    ("connect6", 11),
    ("setsockopt", 22),
    ("getpeername4", 29),
    ("getpeername6", 30),
    ("getsockname4", 31),
    ("getsockname6", 32),
];
const BPF_SK_LOOKUP: u32 = 36;

/// A program of somebody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ForeignProgram {
    /// Where it is attached.
    pub hook: &'static str,
    /// The kernel's id.
    pub id: u32,
    /// Its name, where it has one.
    pub name: String,
}

/// The foreign programs that see the sockets of `pod`. `ours` are the ids of the node's programs. Hooks that the kernel does not know,
/// or does not answer for, are left out.
pub(super) fn of(pod: &CapturedPod, ours: &BTreeSet<u32>) -> Vec<ForeignProgram> {
    let links = pod.links.describe();
    let is_ours = |id: &u32| ours.contains(id) || links.iter().any(|(_, _, program)| program == id);
    let mut found: Vec<(&'static str, u32)> = Vec::new();
    for (hook, number) in CGROUP_HOOKS {
        let ids = attached_programs(pod.cgroup.file().as_fd(), number, true).unwrap_or_default();
        found.extend(ids.into_iter().filter(|id| !is_ours(id)).map(|id| (hook, id)));
    }
    let ids = attached_programs(pod.netns.file().as_fd(), BPF_SK_LOOKUP, false).unwrap_or_default();
    found.extend(
        ids.into_iter()
            .filter(|id| !is_ours(id))
            .map(|id| ("sk_lookup", id)),
    );
    found
        .into_iter()
        .map(|(hook, id)| ForeignProgram {
            hook,
            id,
            name: name(id),
        })
        .collect()
}

fn name(id: u32) -> String {
    let all = loaded_programs().filter_map(Result::ok);
    let program = all.into_iter().find(|program| program.id() == id);
    program
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_default()
}
