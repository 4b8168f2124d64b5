//! Observers from outside: what the kernel holds by bpftool, what sockets there are by ss.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::netns::Netns;
use super::process::{JoinExt, run};

/// The ids of all BPF objects of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelObjects {
    /// By kind (`prog`, `map`, `link`): id and name.
    objects: BTreeMap<&'static str, BTreeSet<(u64, String)>>,
}

impl KernelObjects {
    /// What there is now.
    ///
    /// # Errors
    /// When bpftool is missing or fails.
    pub fn now() -> Result<Self> {
        let kinds = ["prog", "map", "link"];
        let objects = kinds
            .into_iter()
            .map(|kind| Ok((kind, list(kind)?)))
            .collect::<Result<_>>()?;
        Ok(Self { objects })
    }

    /// What is there now and was not `before`: kind, id and name.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let mut new = Vec::new();
        for (kind, now) in &self.objects {
            let old = before.objects.get(kind);
            for one in now {
                if !old.is_some_and(|old| old.contains(one)) {
                    new.push(format!("{kind} {} {}", one.0, one.1));
                }
            }
        }
        new
    }
}

fn bpftool(args: &[&str]) -> Result<Value> {
    let mut command = Command::new("bpftool");
    command.arg("-j").args(args);
    let text = run(&mut command, Duration::from_secs(10))
        .context("is bpftool installed?")?
        .success()?;
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

/// The number of entries of a pinned or named map, by bpftool. `like` is the map's name (the kernel keeps 15 characters of it).
///
/// # Errors
/// When there is no such map.
pub fn map_entries(like: &str, among: &[u64]) -> Result<usize> {
    let name: String = like.chars().take(15).collect();
    let mut count = None;
    for (id, _) in list("map")?
        .into_iter()
        .filter(|(id, found)| *found == name && among.contains(id))
    {
        let dump = bpftool(&["map", "dump", "id", &id.to_string()])?;
        count = Some(count.unwrap_or(0) + dump.as_array().map_or(0, Vec::len));
    }
    count.with_context(|| format!("no map called {name}"))
}

/// The ids of the maps that process `pid` holds, from `/proc/PID/fdinfo`.
///
/// # Errors
/// When the process is gone.
pub fn maps_of(pid: u32) -> Result<Vec<u64>> {
    let dir = format!("/proc/{pid}/fdinfo");
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(Path::new(&dir))
        .with_context(|| format!("cannot read {dir}"))?
        .flatten()
    {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        ids.extend(
            text.lines()
                .filter_map(|line| line.strip_prefix("map_id:")?.trim().parse::<u64>().ok()),
        );
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
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
