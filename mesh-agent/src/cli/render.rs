//! The documents of the admin API as tables for people, at most [`WIDTH`] columns wide. Pure.

mod analysis;
mod config;
mod kernel;
mod policy;
mod status;

use comfy_table::{ContentArrangement, Table, presets};

use crate::admin::document::{
    CaptureState, CertificateState, Certificates, Checks, ConnectionEntry, Connections, Direction,
    EnrolmentState, Level, OlderConnections, PartyEntry, SecurityState, UsageEntry, WorkloadEntry, Workloads,
};

pub(super) use analysis::analysis;
pub(super) use config::config;
pub(super) use kernel::{bpf, bpf_events, bpf_log};
pub(super) use policy::{explanation, policies, readiness, refusals, services};
pub(super) use status::status;

/// Columns of a table at most.
const WIDTH: u16 = 100;

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH);
    if !header.is_empty() {
        table.set_header(header);
    }
    table
}

/// Columns two blanks apart, without blanks at the ends of lines.
fn text(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

/// `meshctl ready`.
pub(super) fn ready(ready: bool, reasons: &[String]) -> String {
    let word = if ready { "ready" } else { "not ready" };
    let lines = reasons.iter().map(|reason| format!("- {reason}\n"));
    format!("{word}\n") + &lines.collect::<String>()
}

/// `meshctl workloads`.
pub(super) fn workloads(workloads: &Workloads) -> String {
    if workloads.workloads.is_empty() {
        return "The agent knows no workloads.".to_owned();
    }
    let mut table = table(&[
        "WORKLOAD",
        "NODE",
        "ADDRESSES",
        "IDENTITY",
        "MESH",
        "CAPTURE",
        "MTLS",
    ]);
    for w in &workloads.workloads {
        table.add_row([
            format!("{}/{}", w.namespace, w.name),
            w.node.clone(),
            w.addresses
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n"),
            short_identity(&w.identity).to_owned(),
            match w.enrolment {
                EnrolmentState::Enrolled => "yes",
                EnrolmentState::NotEnrolled => "no",
                EnrolmentState::Refused => "refused",
            }
            .to_owned(),
            capture(w),
            w.mtls.clone(),
        ]);
    }
    text(table) + &reasons(&workloads.workloads) + &usage(&workloads.workloads)
}

/// How it is captured; and where it was found, if that was told by something else than its document.
fn capture(w: &WorkloadEntry) -> String {
    let state = match w.capture {
        CaptureState::Captured => "yes",
        CaptureState::Pending => "pending",
        CaptureState::Failed => "FAILED",
        CaptureState::Remote => "remote",
        CaptureState::None => "-",
    };
    match &w.sandbox {
        Some(sandbox) if sandbox.found_by != "annotation" => format!("{state} ({})", sandbox.found_by),
        _ => state.to_owned(),
    }
}

/// Why workloads are refused or not captured, below the table: sentences do not fit into columns.
fn reasons(workloads: &[WorkloadEntry]) -> String {
    let lines = workloads.iter().flat_map(|w| {
        let say = |what: &str, why: &Option<String>| {
            let why = why.as_ref()?;
            Some(format!("{}/{} {what}: {why}\n", w.namespace, w.name))
        };
        [
            match w.enrolment {
                EnrolmentState::NotEnrolled => say("is not enrolled", &w.enrolment_reason),
                _ => say("is refused", &w.enrolment_reason),
            },
            say("is not captured", &w.capture_reason),
        ]
    });
    let mut lines: String = lines.flatten().collect();
    lines.extend(workloads.iter().map(uncaptured));
    if lines.is_empty() {
        lines
    } else {
        format!("\n{lines}")
    }
}

/// What of a pod the agent does not carry.
fn uncaptured(w: &WorkloadEntry) -> String {
    fn list<T: ToString>(what: &str, all: &[T]) -> Option<String> {
        let all: Vec<String> = all.iter().map(ToString::to_string).collect();
        (!all.is_empty()).then(|| format!("{what} {}", all.join(", ")))
    }
    let name = format!("{}/{}", w.namespace, w.name);
    let of = &w.uncaptured;
    let mut out = String::new();
    let excluded = [
        list("outbound ports", &of.outbound_ports),
        list("outbound networks", &of.outbound_cidrs),
        list("inbound ports", &of.inbound_ports),
    ];
    let excluded: Vec<String> = excluded.into_iter().flatten().collect();
    if !excluded.is_empty() {
        out += &format!("{name} is not captured on {}\n", excluded.join("; "));
    }
    if of.inbound_when_down {
        out += &format!("{name} is reached in plaintext, by anybody, while no agent is there\n");
    }
    for refused in &of.refused {
        out += &format!("{name} stays captured on {}: {}\n", refused.what, refused.why);
    }
    if of.older_connections > 0 {
        out += &format!(
            "{name} has {} connections that are older than its capture (`meshctl connections --older`)\n",
            of.older_connections
        );
    }
    out
}

/// `meshctl connections --older`.
pub(super) fn older(older: &OlderConnections) -> String {
    let mut out = if older.connections.is_empty() {
        "No connection goes around the agent.\n".to_owned()
    } else {
        let mut table = table(&["DIR", "WORKLOAD", "ITS END", "OTHER END", "GOES ON"]);
        for c in &older.connections {
            table.add_row([
                match c.direction {
                    Direction::Outbound => "out".to_owned(),
                    Direction::Inbound => "in".to_owned(),
                },
                format!("{}/{}", c.namespace, c.workload),
                c.local.to_string(),
                c.remote.to_string(),
                if c.to_close.is_none() { "yes" } else { "NO" }.to_owned(),
            ]);
        }
        text(table)
    };
    let reasons = older.connections.iter().filter_map(|c| c.to_close.as_ref());
    for line in reasons.chain(&older.problems) {
        out += &format!("\n{line}");
    }
    out + &format!("\n{} were closed since the agent started.", older.closed)
}

/// What captured workloads take of the agent, those that take something.
fn usage(workloads: &[WorkloadEntry]) -> String {
    let lines = workloads.iter().filter_map(|w| {
        let UsageEntry {
            connections,
            streams,
            held_bytes,
            refused,
            ..
        } = w
            .usage
            .as_ref()
            .filter(|usage| **usage != UsageEntry::default())?;
        let mut line = format!(
            "{}/{} has {connections} connections, {streams} streams, {} held",
            w.namespace,
            w.name,
            bytes(*held_bytes as u64)
        );
        for (budget, n) in refused {
            line += &format!("; its {budget} budget has refused {n}");
        }
        Some(line + "\n")
    });
    let lines: String = lines.collect();
    if lines.is_empty() {
        lines
    } else {
        format!("\n{lines}")
    }
}

/// `meshctl connections`.
pub(super) fn connections(connections: &Connections) -> String {
    if connections.connections.is_empty() {
        return "No live connections.".to_owned();
    }
    let mut table = table(&["DIR", "SOURCE", "DESTINATION", "SEC", "AGE", "BYTES"]);
    for c in &connections.connections {
        let mut destination = party(&c.destination);
        if let Some(service) = &c.service {
            destination = format!("{destination}\n{service}");
        }
        table.add_row([
            match c.direction {
                Direction::Outbound => "out".to_owned(),
                Direction::Inbound => "in".to_owned(),
            },
            party(&c.source),
            destination,
            match c.security {
                SecurityState::MutualTls => "mTLS".to_owned(),
                SecurityState::None => "none".to_owned(),
            },
            duration(c.age_seconds as u64),
            carried(c),
        ]);
    }
    text(table)
}

/// Bytes each way, and those in between.
fn carried(c: &ConnectionEntry) -> String {
    let mut text = format!("{} req\n{} resp", bytes(c.received_bytes), bytes(c.sent_bytes));
    if c.held_bytes > 0 {
        text += &format!("\n{} held", bytes(c.held_bytes));
    }
    text
}

/// Workload, address and identity, a line each.
fn party(party: &PartyEntry) -> String {
    let mut lines = Vec::new();
    if let (Some(namespace), Some(workload)) = (&party.namespace, &party.workload) {
        lines.push(format!("{namespace}/{workload}"));
    }
    lines.push(party.address.to_string());
    if let Some(identity) = &party.identity {
        lines.push(short_identity(identity).to_owned());
    }
    lines.join("\n")
}

/// `meshctl certs`.
pub(super) fn certificates(certificates: &Certificates) -> String {
    if certificates.certificates.is_empty() {
        return "No local identities: no enrolled pod is on this node.".to_owned();
    }
    let mut table = table(&["IDENTITY", "STATE", "NOT AFTER", "ENDS IN", "ROTATES"]);
    let mut errors = String::new();
    for c in &certificates.certificates {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        table.add_row([
            short_identity(&c.identity).to_owned(),
            match c.state {
                CertificateState::Valid => "valid".to_owned(),
                CertificateState::RenewalFailing => "valid, NOT RENEWED".to_owned(),
                CertificateState::Pending => "PENDING".to_owned(),
                CertificateState::Expired => "EXPIRED".to_owned(),
            },
            or_dash(&c.not_after),
            match c.expires_in_seconds {
                None => "-".to_owned(),
                Some(seconds) if seconds < 0 => format!("{} ago", duration(seconds.unsigned_abs())),
                Some(seconds) => duration(seconds.unsigned_abs()),
            },
            c.next_rotation.clone(),
        ]);
        if let Some(error) = &c.error {
            errors += &format!("\n{}: {error}", c.identity);
        }
    }
    text(table) + &errors
}

/// `meshctl check` and `mesh-agent check`.
pub(super) fn checks(checks: &Checks) -> String {
    let mut table = table(&["", "CHECK", "FOUND"]);
    for check in &checks.checks {
        let found = match &check.hint {
            Some(hint) => format!("{}\n-> {hint}", check.detail),
            None => check.detail.clone(),
        };
        let level = match check.level {
            Level::Ok => "ok",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        table.add_row([level, &check.name, &found]);
    }
    let count = |level| checks.checks.iter().filter(|check| check.level == level).count();
    let mut out = text(table);
    out += &format!(
        "\n{} ok, {} to look at, {} failed\n",
        count(Level::Ok),
        count(Level::Warn),
        count(Level::Fail)
    );
    if !checks.limits.is_empty() {
        let mut limits = self::table(&[]);
        for limit in &checks.limits {
            limits.add_row(["-", limit]);
        }
        out += "\nWhat capture does not see:\n";
        out += &text(limits);
    }
    out
}

/// Without the scheme, which every identity has.
fn short_identity(identity: &str) -> &str {
    identity.strip_prefix("spiffe://").unwrap_or(identity)
}

/// The two largest units that matter.
fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s}s"),
        (0, h, m, _) => format!("{h}h{m}m"),
        (d, h, _, _) => format!("{d}d{h}h"),
    }
}

/// In binary units.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while value >= 1000.0
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = Some(next);
    }
    format!("{value:.1} {}", unit.unwrap_or(&""))
}

#[cfg(test)]
mod tests;
