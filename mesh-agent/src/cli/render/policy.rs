//! Policies, refusals, explanations, services, and readiness for STRICT.

use super::{short_identity, table, text};
use crate::admin::document::{
    Explanation, MtlsReadiness, MtlsReadinessEntry, PartyEntry, Policies, PolicyEntry, Refusals, Services,
    WayEntry,
};

/// `meshctl explain`.
pub(in crate::cli) fn explanation(explanation: &Explanation) -> String {
    let mut from = Vec::new();
    from.extend(explanation.source.clone());
    from.extend(
        explanation
            .identity
            .as_deref()
            .map(|id| short_identity(id).to_owned()),
    );
    from.extend(explanation.address.map(|address| address.to_string()));
    let mut to: Vec<String> = explanation.service.clone().into_iter().collect();
    to.extend(explanation.requested.map(|requested| requested.to_string()));
    let mut out = format!("{} -> {}\n", from.join(", "), to.join(", "));
    for note in &explanation.notes {
        out += &format!("note: {note}\n");
    }
    for way in &explanation.ways {
        out += "\n";
        out += &one_way(way);
    }
    if explanation.ways.is_empty() {
        out += "\nNothing serves there.\n";
    }
    out
}

fn one_way(way: &WayEntry) -> String {
    let mut rows = table(&[]);
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            rows.add_row([name.to_owned(), value]);
        }
    };
    let verdict = match &way.reason {
        Some(reason) => format!("REFUSED ({reason})"),
        None => way.verdict.clone(),
    };
    row("Verdict", Some(verdict));
    let workload = way.workload.as_ref().map(|workload| format!(" of {workload}"));
    row(
        "Application",
        Some(format!("{}{}", way.address, workload.unwrap_or_default())),
    );
    row("Mode", Some(way.mode.clone()));
    let action = way.action.clone().unwrap_or_default();
    row(
        "Policy",
        way.policy.as_ref().map(|policy| format!("{policy} ({action})")),
    );
    row("Rule", way.rule.map(|rule| rule.to_string()));
    row("Field", way.field.clone());
    row("Why", way.why.clone().or_else(|| Some(way.message.clone())));
    let by = way.mtls_policy.as_deref().unwrap_or("the default");
    row("mTLS", way.mtls.as_ref().map(|mtls| format!("{mtls}, by {by}")));
    row("Dry run", way.dry_run.clone());
    row(
        "Audited by",
        (!way.audited.is_empty()).then(|| way.audited.join("\n")),
    );
    text(rows)
}

/// `meshctl policies`.
pub(in crate::cli) fn policies(policies: &Policies) -> String {
    if policies.policies.is_empty() {
        return "There is no AuthorizationPolicy: everybody may connect.".to_owned();
    }
    let mut rows = table(&["POLICY", "ACTION", "SCOPE", "SELECTS HERE", "DECIDED"]);
    for policy in &policies.policies {
        rows.add_row([
            format!("{}/{}", policy.namespace, policy.name),
            action(policy),
            policy.scope.clone(),
            some(&policy.selects),
            counts(policy),
        ]);
    }
    let mut out = text(rows);
    for policy in &policies.policies {
        for problem in &policy.problems {
            out += &format!("\n{}/{}: {problem}", policy.namespace, policy.name);
        }
    }
    out
}

fn action(policy: &PolicyEntry) -> String {
    match (policy.in_force, policy.dry_run) {
        (false, _) => "NOT IN FORCE".to_owned(),
        (true, true) => format!("{} (dry run)", policy.action),
        (true, false) => policy.action.clone(),
    }
}

fn counts(policy: &PolicyEntry) -> String {
    if policy.counts.is_empty() {
        return "-".to_owned();
    }
    let counts: Vec<String> = policy
        .counts
        .iter()
        .map(|(word, n)| format!("{n} {}", word.replace('_', " ")))
        .collect();
    counts.join("\n")
}

/// The first few names, one to a line.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 4;
    if names.is_empty() {
        return "-".to_owned();
    }
    let mut shown: Vec<String> = names.iter().take(SHOWN).cloned().collect();
    if let Some(more) = names.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        shown.push(format!("and {more} more"));
    }
    shown.join("\n")
}

/// `meshctl refusals`.
pub(in crate::cli) fn refusals(refusals: &Refusals) -> String {
    if refusals.refusals.is_empty() {
        return "Nothing was refused.".to_owned();
    }
    let mut rows = table(&["ID", "TIME", "SOURCE", "DESTINATION", "REASON"]);
    for one in &refusals.refusals {
        let mut reason = vec![one.reason.clone()];
        reason.extend(one.policy.clone());
        reason.extend(one.rule.map(|rule| format!("rule {rule}")));
        reason.extend(one.field.clone());
        reason.extend(one.stood_seconds.map(|s| format!("closed after {s:.1} s")));
        rows.add_row([
            one.id.clone(),
            one.at.clone(),
            end(&one.source),
            end(&one.destination),
            reason.join("\n"),
        ]);
    }
    text(rows)
}

/// The workload, or else the identity, and the address, a line each.
fn end(party: &PartyEntry) -> String {
    let identity = party.identity.as_deref().map(short_identity);
    let name = match (&party.namespace, &party.workload) {
        (Some(namespace), Some(workload)) => Some(format!("{namespace}/{workload}")),
        _ => identity.map(str::to_owned),
    };
    let lines: Vec<String> = name.into_iter().chain([party.address.to_string()]).collect();
    lines.join("\n")
}

/// `meshctl services`.
pub(in crate::cli) fn services(services: &Services) -> String {
    if services.services.is_empty() {
        return "The agent knows no services.".to_owned();
    }
    let mut rows = table(&["SERVICE", "ADDRESSES", "PORT", "ENDPOINT", "CLIENTS HERE"]);
    for service in &services.services {
        let addresses: Vec<String> = service
            .addresses
            .iter()
            .chain(&service.external)
            .map(ToString::to_string)
            .collect();
        let addresses = if addresses.is_empty() {
            "headless".to_owned()
        } else {
            addresses.join("\n")
        };
        let mut heading = [format!("{}/{}", service.namespace, service.name), addresses];
        if let Some(seconds) = service.affinity_seconds {
            heading[0] += &format!("\nsticky for {seconds} s");
        }
        let mut row = |port: String, endpoint: String, use_: String| {
            let [name, addresses] = std::mem::take(&mut heading);
            rows.add_row([name, addresses, port, endpoint, use_]);
        };
        if service.ports.is_empty() {
            row("-".to_owned(), "-".to_owned(), "it has no TCP port".to_owned());
        }
        for port in &service.ports {
            let name = if port.name.is_empty() {
                String::new()
            } else {
                format!(" {}", port.name)
            };
            let mut label = format!("{}{name}", port.port);
            if port.endpoints.is_empty() {
                row(
                    std::mem::take(&mut label),
                    "none".to_owned(),
                    "refused".to_owned(),
                );
            }
            for endpoint in &port.endpoints {
                let workload = endpoint.workload.as_ref().map(|name| format!("\n{name}"));
                let what = format!("{}{}", endpoint.address, workload.unwrap_or_default());
                let why = endpoint.why_not.clone().unwrap_or_else(|| "yes".to_owned());
                row(std::mem::take(&mut label), what, why);
            }
        }
    }
    text(rows) + &format!("\nas clients on {} see them\n", services.node)
}

/// `meshctl mtls readiness`.
pub(in crate::cli) fn readiness(readiness: &MtlsReadiness) -> String {
    if readiness.workloads.is_empty() {
        return "No workload of this node is captured.".to_owned();
    }
    let mut rows = table(&[
        "WORKLOAD",
        "ACCEPTS",
        "MAY GO STRICT",
        "PLAINTEXT FROM",
        "COUNT",
        "LAST SEEN",
        "PORTS",
    ]);
    for one in &readiness.workloads {
        let mut heading = [
            format!("{}/{}", one.namespace, one.name),
            one.mtls.clone(),
            may(one).to_owned(),
        ];
        let mut row = |cells: [String; 4]| {
            let heading = std::mem::take(&mut heading);
            rows.add_row(heading.into_iter().chain(cells));
        };
        if one.sources.is_empty() {
            row(["nobody".to_owned(), String::new(), String::new(), String::new()]);
        }
        for source in &one.sources {
            let ports: Vec<String> = source.ports.iter().map(ToString::to_string).collect();
            row([
                source.source.clone(),
                source.count.to_string(),
                source.last_seen.clone(),
                ports.join(","),
            ]);
        }
    }
    let mut out = text(rows);
    for one in readiness.workloads.iter().filter(|one| !one.ready) {
        for obstacle in &one.obstacles {
            out += &format!("\n{}/{}: {obstacle}", one.namespace, one.name);
        }
    }
    out + &format!("\n\nseen since {}\n", readiness.since)
}

fn may(one: &MtlsReadinessEntry) -> &'static str {
    match (one.ready, one.mtls.as_str()) {
        (true, "STRICT") => "is",
        (true, _) => "yes",
        (false, _) => "NO",
    }
}

#[cfg(test)]
mod tests;
