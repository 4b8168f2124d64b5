//! Observers from outside: what the kernel holds by bpftool, what sockets there are by ss.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::netns::Netns;
use super::process::{JoinExt, run, wait_for};

/// BPF objects of the kernel: kind (`prog`, `map`, `link`) and id. Ids are not used again soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelObjects {
    objects: BTreeSet<(&'static str, u64)>,
}

impl KernelObjects {
    /// What process `pid` holds descriptors of, from `/proc/PID/fdinfo`.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(pid: u32) -> Result<Self> {
        let dir = format!("/proc/{pid}/fdinfo");
        let mut objects = BTreeSet::new();
        for entry in std::fs::read_dir(Path::new(&dir))
            .with_context(|| format!("cannot read {dir}"))?
            .flatten()
        {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            for line in text.lines() {
                for (field, kind) in [("prog_id:", "prog"), ("map_id:", "map"), ("link_id:", "link")] {
                    if let Some(id) = line.strip_prefix(field).and_then(|id| id.trim().parse().ok()) {
                        objects.insert((kind, id));
                    }
                }
            }
        }
        Ok(Self { objects })
    }

    /// How many of a kind there are.
    pub fn count(&self, kind: &str) -> usize {
        self.objects.iter().filter(|(found, _)| *found == kind).count()
    }

    /// Those that the kernel still has, by bpftool, with their names.
    ///
    /// # Errors
    /// When bpftool is missing or fails.
    pub fn still_there(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for kind in ["prog", "map", "link"] {
            let there = list(kind)?;
            left.extend(
                there
                    .into_iter()
                    .filter(|(id, _)| self.objects.contains(&(kind, *id)))
                    .map(|(id, name)| format!("{kind} {id} {name}")),
            );
        }
        Ok(left)
    }

    /// Waits until the kernel has none of them any more: it frees maps and programs a while after their last user has gone.
    ///
    /// # Errors
    /// When some are still there after five seconds: names them. When bpftool is missing or fails.
    pub fn wait_until_gone(&self) -> Result<()> {
        wait_for("every BPF object is gone", Duration::from_secs(5), || {
            let left = self.still_there()?;
            ensure!(left.is_empty(), "still there: {}", left.join(", "));
            Ok(())
        })
    }
}

/// The programs attached to a cgroup, by bpftool: type and name.
///
/// # Errors
/// When bpftool is missing or fails.
pub fn attached_to(cgroup: &Path) -> Result<Vec<String>> {
    let answer = bpftool(&["cgroup", "show", &cgroup.to_string_lossy()])?;
    Ok(answer
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| format!("{} {}", one["attach_type"], one["name"]))
        .collect())
}

fn bpftool(args: &[&str]) -> Result<Value> {
    let mut command = Command::new("bpftool");
    command.arg("-j").args(args);
    let text = run(&mut command, Duration::from_secs(10))
        .context("is bpftool installed?")?
        .success()?;
    if text.trim().is_empty() {
        // `bpftool cgroup show` of a cgroup without programs.
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).with_context(|| format!("bpftool {}: {text}", args.join(" ")))
}

fn list(kind: &str) -> Result<BTreeSet<(u64, String)>> {
    let all = bpftool(&[kind, "list"])?;
    Ok(all
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| {
            let name = one["name"]
                .as_str()
                .or_else(|| one["type"].as_str())
                .unwrap_or_default();
            Some((one["id"].as_u64()?, name.to_owned()))
        })
        .collect())
}

/// The number of entries of the map called `name` (the kernel keeps 15 characters of it) among those that a process holds, by bpftool.
///
/// # Errors
/// When there is no such map.
pub fn map_entries(name: &str, among: &KernelObjects) -> Result<usize> {
    let name: String = name.chars().take(15).collect();
    let mut count = None;
    for (id, _) in list("map")?
        .into_iter()
        .filter(|(id, found)| *found == name && among.objects.contains(&("map", *id)))
    {
        let dump = bpftool(&["map", "dump", "id", &id.to_string()])?;
        count = Some(count.unwrap_or(0) + dump.as_array().map_or(0, Vec::len));
    }
    count.with_context(|| format!("no map called {name}"))
}

/// What `ss -Htan` says in a namespace, a line per socket.
///
/// # Errors
/// When ss is missing or fails.
pub fn sockets(netns: &Netns) -> Result<Vec<String>> {
    let mut command = Command::new("ss");
    command.args(["-Htan"]).in_netns(netns)?;
    let text = run(&mut command, Duration::from_secs(10))
        .context("is ss (iproute2) installed?")?
        .success()?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// What a process uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Resident memory, bytes.
    pub resident: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Processor time so far, seconds.
    pub cpu_seconds: f64,
}

impl Usage {
    /// Of process `pid`, from /proc.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let resident = read("status")?
            .lines()
            .find_map(|line| {
                line.strip_prefix("VmRSS:")?
                    .trim()
                    .strip_suffix(" kB")?
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .context("no VmRSS")?;
        // proc(5): utime and stime are the 14th and 15th fields, the 12th and 13th behind the name in parentheses.
        let stat = read("stat")?;
        let (_, after) = stat.rsplit_once(')').context("no name in stat")?;
        let ticks: u64 = after
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
        Ok(Self {
            resident: resident << 10,
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            cpu_seconds: ticks as f64 / per_second.max(1) as f64,
        })
    }
}

/// Resident memory of a process, bytes.
///
/// # Errors
/// When the process is gone.
pub fn resident(pid: u32) -> Result<u64> {
    Ok(Usage::of(pid)?.resident)
}
