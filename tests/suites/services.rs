//! Services as clients know them: which pod answers, at which of a service's addresses, and whom a client meets when pods change.

#[path = "services/affinity.rs"]
mod affinity;
#[path = "services/fronts.rs"]
mod fronts;
#[path = "services/replaced.rs"]
mod replaced;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{Agent, Report, wait_for};

/// The lines about a client's connection in an access log, once there are any.
fn lines(agent: &Agent, report: &Report) -> Result<String> {
    let local = report.local.context("no local address")?.to_string();
    wait_for("the access log", Duration::from_secs(5), || {
        let log = agent.log();
        let found: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("connection ") && line.contains(&local))
            .collect();
        ensure!(!found.is_empty(), "nothing about {local}");
        Ok(found.join("\n"))
    })
}
