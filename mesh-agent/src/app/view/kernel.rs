//! What is shown of the kernel's side: programs, links, maps, events.

use std::collections::BTreeMap;

use mesh_core::model::WorkloadUid;

use crate::admin::document::{
    Bpf, BpfEvent, BpfEventEntry, BpfForeign, BpfLink, BpfLog, BpfMap, BpfPod, BpfProgram, timestamp,
};
use crate::capture::{self, CaptureStatus};
use crate::telemetry::metrics::{EventReport, MapFill};

/// By namespace and name: incarnations of a pod are one.
pub(super) fn event_reports(tallies: &[capture::events::Tallied]) -> Vec<EventReport> {
    let mut reports: BTreeMap<(&'static str, &str, &str), u64> = BTreeMap::new();
    for tally in tallies {
        let uid = tally.workload.as_ref().map_or("", WorkloadUid::as_str);
        let mut parts = uid.split('/');
        let mut part = || parts.next().unwrap_or_default();
        *reports.entry((tally.kind.name(), part(), part())).or_default() += tally.count;
    }
    let report = |((event, namespace, workload), count): ((&'static str, &str, &str), u64)| EventReport {
        event,
        namespace: namespace.to_owned(),
        workload: workload.to_owned(),
        count,
    };
    reports.into_iter().map(report).collect()
}

pub(super) fn bpf_event(event: capture::events::Record) -> BpfEventEntry {
    BpfEventEntry {
        at: timestamp(event.at),
        event: event.kind.name().to_owned(),
        workload: event.workload.map(|uid| uid.to_string()),
        netns_cookie: event.netns,
        from: event.local,
        to: event.remote,
        protocol: capture::events::protocol(event.protocol).into_owned(),
        pid: event.pid,
        process: event.process,
        advice: capture::events::advice(event.kind).unwrap_or_default().to_owned(),
    }
}

pub(super) fn bpf_log(status: Option<capture::DebugLogStatus>) -> BpfLog {
    status.map_or_else(BpfLog::default, |status| BpfLog {
        on: true,
        // A second that has begun counts.
        remaining_seconds: status.remaining.as_secs_f64().ceil() as u64,
        pod: status.pod.map(|uid| uid.to_string()),
    })
}

pub(super) fn map_fill(map: capture::MapStatus) -> MapFill {
    MapFill {
        entries: entries(&map),
        name: map.name.to_owned(),
        capacity: map.max_entries as u64,
    }
}

/// The listeners' map is an array of sockets: the kernel lists every place of it, taken or not.
fn entries(map: &capture::MapStatus) -> Option<u64> {
    (map.name != mesh_common::maps::LISTENERS).then_some(map.entries as u64)
}

pub(super) fn foreign(program: capture::ForeignProgram) -> BpfForeign {
    BpfForeign {
        hook: program.hook.to_owned(),
        id: program.id,
        name: program.name,
    }
}

pub(super) fn bpf(status: CaptureStatus) -> Bpf {
    let pod = |pod: capture::PodStatus| BpfPod {
        workload: pod.workload.to_string(),
        netns_cookie: pod.netns,
        slot: pod.slot,
        bank: pod.bank,
        addresses: pod.own.into_iter().collect(),
        links: pod
            .links
            .iter()
            .map(|link| BpfLink {
                hook: link.hook.to_owned(),
                id: link.id,
                program: link.program,
            })
            .collect(),
        shadowed_ports: pod.shadowed_ports.into_iter().collect(),
        believes_first_packets: pod.believes_first_packets,
        foreign: pod.foreign.into_iter().map(foreign).collect(),
    };
    let map = |map: capture::MapStatus| BpfMap {
        entries: entries(&map),
        name: map.name.to_owned(),
        capacity: map.max_entries as u64,
    };
    let program = |program: capture::ProgramStatus| BpfProgram {
        name: program.name,
        id: program.id,
    };
    let event = |(event, count): (&'static str, u64)| BpfEvent {
        event: event.to_owned(),
        count,
    };
    Bpf {
        abi_version: mesh_common::ABI_VERSION,
        bpffs: status.bpffs.display().to_string(),
        run: status.run,
        adopted: status.adopted,
        cgroup2: status.cgroup2.display().to_string(),
        agent_cgroup: status.agent_cgroup.display().to_string(),
        programs: status.programs.into_iter().map(program).collect(),
        pods: status.pods.into_iter().map(pod).collect(),
        maps: status.maps.into_iter().map(map).collect(),
        events: status.counters.into_iter().map(event).collect(),
        log: BpfLog::default(),
    }
}
