//! What figures mean nothing without: the machine, its kernel, and what was built.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use mesh_tests::harness::agent_binary;
use serde::Serialize;

/// Part of the processors that others may use while a machine still counts as quiet.
pub(crate) const QUIET: f64 = 0.10;

/// What part of the processors is used within the next second, in which the caller does nothing; 0 where that cannot be told.
pub(crate) fn use_by_others() -> f64 {
    let before = ticks();
    std::thread::sleep(Duration::from_secs(1));
    let (Some((busy, all)), Some((busy_then, all_then))) = (ticks(), before) else {
        return 0.0;
    };
    busy.saturating_sub(busy_then) as f64 / all.saturating_sub(all_then).max(1) as f64
}

/// Ticks of all processors, those in use and all of them: proc(5), the first line of /proc/stat; idle and iowait are its fourth and fifth.
fn ticks() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let values: Vec<u64> = text
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|value| value.parse().ok())
        .collect();
    let all: u64 = values.iter().sum();
    let idle: u64 = values.iter().skip(3).take(2).sum();
    Some((all.checked_sub(idle)?, all))
}

/// The facts.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Facts {
    kernel: String,
    processor: String,
    cores: usize,
    memory_bytes: u64,
    /// Which the namespaces inherit, and the agents with them.
    congestion_control: String,
    agent: String,
    profile: String,
    agent_version: String,
    /// Load average of the minute before.
    load: f64,
}

impl Facts {
    pub(crate) fn collect() -> Result<Self> {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let agent = agent_binary()?;
        let version = std::process::Command::new(&agent).arg("--version").output()?;
        let cores = std::thread::available_parallelism()?.get();
        let load = read("/proc/loadavg")
            .split(' ')
            .next()
            .and_then(|load| load.parse().ok())
            .unwrap_or_default();
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease"),
            processor: field(&read("/proc/cpuinfo"), "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores,
            memory_bytes: field(&read("/proc/meminfo"), "MemTotal")
                .and_then(|text| text.strip_suffix(" kB")?.trim().parse::<u64>().ok())
                .map_or(0, |kib| kib << 10),
            congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control"),
            profile: profile(&agent),
            agent: agent.display().to_string(),
            agent_version: String::from_utf8_lossy(&version.stdout).trim().to_owned(),
            load,
        })
    }
}

/// The profile, by the directory that cargo builds it into.
fn profile(agent: &Path) -> String {
    agent.parent().and_then(Path::file_name).map_or_else(
        || "unknown".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// The value of the first `NAME : VALUE` line.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "kernel {}, {} × {}, {} MiB, congestion control {}",
            self.kernel,
            self.cores,
            self.processor,
            self.memory_bytes >> 20,
            self.congestion_control
        )?;
        write!(
            f,
            "{} ({} build), 2 workers per agent, both agents and all programs on this machine",
            self.agent_version, self.profile
        )?;
        if self.profile != "release" {
            write!(f, "\nnot a release build: its figures mean nothing")?;
        }
        write!(f, "\nload of the minute before: {:.2}", self.load)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn fields_are_found_with_and_without_padding() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nMemTotal:       1024 kB";
        assert_eq!(super::field(text, "model name").unwrap(), "Some CPU @ 2 GHz");
        assert_eq!(super::field(text, "MemTotal").unwrap(), "1024 kB");
        assert_eq!(super::field(text, "none"), None);
    }
}
