//! What figures mean nothing without: the machine, its kernel, and what was built.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use mesh_tests::harness::agent_binary;
use serde::Serialize;

/// Load above which the machine is not quiet: processes that want to run, per core.
const QUIET: f64 = 0.25;

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
    quiet: bool,
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
            quiet: load < QUIET * cores as f64,
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
        if !self.quiet {
            write!(
                f,
                "\nthis machine was busy (load {:.1}) when the bench began: ratios suffer less than figures, both suffer",
                self.load
            )?;
        }
        Ok(())
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
