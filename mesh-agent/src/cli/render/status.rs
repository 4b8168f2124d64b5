//! `meshctl status`.

use super::{duration, table, text};
use crate::admin::document::{CniStatus, Status};
use crate::sources::WriterStatus;

/// `meshctl status`.
pub(in crate::cli) fn status(status: &Status) -> String {
    let Status {
        snapshot,
        pods,
        connections,
        sessions,
        certificates,
        ..
    } = status;
    let mut table = table(&[]);
    let mut row = |name: &str, value: String| {
        table.add_row([name, &value]);
    };
    let ready = if status.ready { "ready" } else { "NOT READY" };
    row(
        "Agent",
        format!("mesh-agent {} (process {}), {ready}", status.version, status.pid),
    );
    for reason in &status.not_ready {
        row("", format!("- {reason}"));
    }
    if let Some(predecessor) = &status.predecessor {
        row(
            "Predecessor",
            format!(
                "mesh-agent {} (process {}) drains: {} connections left",
                predecessor.version, predecessor.pid, predecessor.connections
            ),
        );
        row("", format!("relieved at {}", predecessor.relieved_at));
    }
    row("Node", status.node.clone());
    row("Trust domain", status.trust_domain.clone());
    row(
        "Up",
        format!(
            "{} (since {})",
            duration(status.uptime_seconds),
            status.started_at
        ),
    );
    row(
        "Configuration",
        format!(
            "snapshot {}, {} old: {} workloads, {} services",
            snapshot.version,
            duration(snapshot.age_seconds),
            snapshot.workloads,
            snapshot.services
        ),
    );
    if let Some(age) = snapshot.view_age_seconds {
        row("View", format!("the API server was heard {} ago", duration(age)));
    }
    row(
        "Rejected",
        match status.rejections {
            0 => "none".to_owned(),
            n => format!("{n} documents (see `meshctl config`)"),
        },
    );
    row(
        "Pods",
        format!(
            "{} of {} enrolled are captured, {} failed",
            pods.captured, pods.enrolled, pods.failed
        ),
    );
    for other in &status.other_meshes {
        row(
            "Other mesh",
            format!("{} runs on this node (Pod {})", other.part, other.pod),
        );
    }
    if pods.left > 0 {
        row(
            "",
            format!("{} pods are left to it: their label is Istio's", pods.left),
        );
    }
    if let Some(runtime) = &status.container_runtime {
        row("Runtime", runtime.detail.clone());
    }
    if let Some(cni) = &status.cni {
        row("CNI", cni_line(cni));
    }
    if let Some(writer) = &status.status_writer {
        row("Conditions", writer_line(writer));
    }
    row(
        "Connections",
        format!(
            "{} live, {} since the start, {} tried again",
            connections.live, connections.opened, connections.retried
        ),
    );
    row(
        "Sessions",
        format!(
            "{} clients keep to an endpoint (sessionAffinity), {} forgotten early",
            sessions.live, sessions.evicted
        ),
    );
    row(
        "Certificates",
        format!(
            "{} valid, {} missing{}",
            certificates.valid,
            certificates.missing,
            certificates
                .next_expiry
                .as_ref()
                .map(|at| format!(", the first ends {at}"))
                .unwrap_or_default()
        ),
    );
    text(table)
}

fn writer_line(writer: &WriterStatus) -> String {
    let leader = writer.leader.as_deref().unwrap_or("nobody yet");
    let mut line = match writer.leads {
        true => format!("this agent writes them ({leader}, Lease {})", writer.lease),
        false => format!("{leader} writes them (Lease {})", writer.lease),
    };
    if let Some(written) = writer.writes.get("written") {
        line += &format!(", {written} written");
    }
    if let Some(problem) = &writer.problem {
        line += &format!("; {problem}");
    }
    line
}

fn cni_line(cni: &CniStatus) -> String {
    if !cni.installed {
        return format!("NOT INSTALLED: {}", cni.detail);
    }
    let mut line = cni.detail.clone();
    for call in cni.calls.iter().filter(|call| call.calls > 0) {
        line += &format!(", {} {}", call.calls, call.result);
    }
    if cni.awaited > 0 {
        line += &format!(", {} awaited", cni.awaited);
    }
    line
}
