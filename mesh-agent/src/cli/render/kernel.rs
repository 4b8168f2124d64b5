//! Kernel events and the debug log.

use super::{duration, table, text};
use crate::admin::document::{Bpf, BpfEvents, BpfLink, BpfLog};

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

/// `meshctl bpf`.
pub(in crate::cli) fn bpf(bpf: &Bpf) -> String {
    let mut pods = table(&["POD", "SLOT", "NETNS COOKIE", "ADDRESSES", "LINKS"]);
    let mut shadowed = String::new();
    for pod in &bpf.pods {
        let link = |link: &BpfLink| format!("{}={}", link.hook, link.id);
        pods.add_row([
            pod.workload.clone(),
            pod.slot.to_string(),
            pod.netns_cookie.to_string(),
            pod.addresses
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n"),
            pod.links.iter().map(link).collect::<Vec<_>>().join("\n"),
        ]);
        for port in &pod.shadowed_ports {
            shadowed += &format!(
                "{} listens on {port}, which is the agent's: not reached from off the pod\n",
                pod.workload
            );
        }
    }
    for pod in &bpf.pods {
        for program in &pod.foreign {
            shadowed += &format!(
                "{} is also seen by {} {} (id {}), which is not ours\n",
                pod.workload, program.hook, program.name, program.id
            );
        }
    }
    let mut programs = table(&["PROGRAM", "ID"]);
    for program in &bpf.programs {
        programs.add_row([program.name.clone(), program.id.to_string()]);
    }
    let mut maps = table(&["MAP", "ENTRIES", "CAPACITY", "FILL"]);
    for map in &bpf.maps {
        let fill = |entries: u64| match map.capacity {
            0 => "-".to_owned(),
            capacity => format!("{:.1} %", entries as f64 * 100.0 / capacity as f64),
        };
        maps.add_row([
            map.name.clone(),
            map.entries.map_or_else(|| "-".to_owned(), |n| n.to_string()),
            map.capacity.to_string(),
            map.entries.map_or_else(|| "-".to_owned(), fill),
        ]);
    }
    let mut events = table(&["EVENT", "COUNT"]);
    for event in &bpf.events {
        events.add_row([event.event.clone(), event.count.to_string()]);
    }
    format!(
        "ABI version    {}\nPins in        {}{}\ncgroup2 at     {}\nAgent's cgroup {}\nDebug log      {}\n\n{}{shadowed}\n{}\n{}\n{}",
        bpf.abi_version,
        bpf.bpffs,
        pins_of(bpf),
        bpf.cgroup2,
        bpf.agent_cgroup,
        bpf_log(&bpf.log),
        text(pods),
        text(maps),
        text(events),
        text(programs),
    )
}

/// Which run's pins are in use, and whose they were.
fn pins_of(bpf: &Bpf) -> String {
    match (bpf.run.as_str(), bpf.adopted) {
        ("", _) => String::new(),
        (run, true) => format!("/{run}, adopted from an earlier agent"),
        (run, false) => format!("/{run}"),
    }
}
