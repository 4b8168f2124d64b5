//! Kernel events and the debug log.

use super::{duration, table, text};
use crate::admin::document::{BpfEvents, BpfLog};

/// `meshctl bpf events`.
pub(in crate::cli) fn bpf_events(events: &BpfEvents) -> String {
    if events.events.is_empty() && events.suppressed == 0 {
        return "nothing was refused, dropped or lost\n".to_owned();
    }
    let mut rows = table(&["TIME", "EVENT AND WORKLOAD", "FLOW", "PROCESS"]);
    let mut advice: Vec<(&str, &str)> = Vec::new();
    for event in &events.events {
        let process = match (&event.process, event.pid) {
            (Some(name), Some(pid)) => format!("{name} ({pid})"),
            (None, Some(pid)) => pid.to_string(),
            _ => "-".to_owned(),
        };
        let netns = || format!("netns {}", event.netns_cookie);
        let workload = event.workload.clone().unwrap_or_else(netns);
        let to = format!("to {} ({})", event.to, event.protocol);
        let from = event.from.map(|from| format!("\nfrom {from}"));
        rows.add_row([
            event.at.clone(),
            format!("{}\n{workload}", event.event),
            to + &from.unwrap_or_default(),
            process,
        ]);
        let what = (event.event.as_str(), event.advice.as_str());
        if !advice.contains(&what) {
            advice.push(what);
        }
    }
    let mut shown = text(rows);
    if events.suppressed > 0 {
        shown += &format!(
            "{} more were only counted: there were too many of their kind (`meshctl bpf`)\n",
            events.suppressed
        );
    }
    for (event, advice) in advice {
        shown += &format!("\n{event}: {advice}\n");
    }
    shown
}

/// `meshctl bpf log`.
pub(in crate::cli) fn bpf_log(log: &BpfLog) -> String {
    if !log.on {
        return "off".to_owned();
    }
    let pod = log
        .pod
        .as_ref()
        .map_or_else(|| "all pods".to_owned(), |pod| format!("pod {pod}"));
    format!(
        "on for {pod}, {} more: DEBUG lines of mesh_agent::bpf in the agent's log",
        duration(log.remaining_seconds)
    )
}
