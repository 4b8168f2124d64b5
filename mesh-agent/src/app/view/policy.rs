//! What policies decide and have decided, services, and readiness for STRICT: puts words to it. Decides nothing: `plan` is asked.

use std::collections::BTreeMap;

use mesh_core::model::{AuthorizationPolicy, MtlsMode, ObjectRef, Service, Workload, WorkloadUid};
use mesh_core::plan::{self, Explained, Mode};
use mesh_core::snapshot::Snapshot;

use crate::admin::document::{
    CaptureState, ConnectionEntry, Direction, EndpointEntry, ExplainQuery, Explanation, MtlsReadiness,
    MtlsReadinessEntry, OlderConnections, PlaintextEntry, Policies, PolicyEntry, RefusalEntry, Refusals,
    ServiceEntry, ServicePortEntry, Services, WayEntry, Workloads, timestamp,
};
use crate::telemetry::plaintext::{PlaintextBook, PlaintextSource};
use crate::telemetry::policy::{PolicyLog, Refused};

/// The kind of the objects that `meshctl policies` is about.
const KIND: &str = "AuthorizationPolicy";

/// `GET /policies`.
pub(super) fn policies(snapshot: &Snapshot, log: &PolicyLog) -> Policies {
    let mut counts: BTreeMap<ObjectRef, BTreeMap<String, u64>> = BTreeMap::new();
    for (tally, n) in log.counts() {
        let of = counts.entry(tally.policy).or_default();
        *of.entry(tally.word.as_str().to_owned()).or_default() += n;
    }
    let mut selects: BTreeMap<ObjectRef, Vec<String>> = BTreeMap::new();
    for workload in snapshot.local_workloads() {
        let applicable = snapshot.authorization(&workload.uid);
        for policy in applicable.into_iter().flat_map(|all| all.policies()) {
            selects
                .entry(policy.object())
                .or_default()
                .push(name_of(workload));
        }
    }
    let mut entries: BTreeMap<ObjectRef, PolicyEntry> = BTreeMap::new();
    for policy in snapshot.authorization_policies() {
        let object = policy.object();
        let mut selects = selects.remove(&object).unwrap_or_default();
        selects.sort();
        entries.insert(
            object,
            PolicyEntry {
                namespace: policy.namespace.clone(),
                name: policy.name.clone(),
                action: policy.action.as_str().to_owned(),
                dry_run: policy.dry_run,
                in_force: true,
                scope: scope(snapshot, policy),
                selects,
                ..PolicyEntry::default()
            },
        );
    }
    for (object, problem) in problems(snapshot) {
        let entry = entries.entry(object.clone()).or_insert_with(|| PolicyEntry {
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            ..PolicyEntry::default()
        });
        entry.problems.push(problem);
    }
    for (object, entry) in &mut entries {
        entry.counts = counts.remove(object).unwrap_or_default();
    }
    Policies {
        policies: entries.into_values().collect(),
    }
}

/// What is said about policies: rejections and notices.
fn problems(snapshot: &Snapshot) -> Vec<(ObjectRef, String)> {
    let diagnostics = snapshot.diagnostics();
    let rejected = diagnostics.rejections.iter().map(|rejection| {
        let text = format!("{}: rejected: {}", rejection.origin, rejection.message);
        (rejection.object.as_ref(), text)
    });
    let noted = diagnostics.notices.iter().map(|notice| {
        let place = notice.origin.as_ref().map(|origin| format!("{origin}: "));
        (
            notice.object.as_ref(),
            place.unwrap_or_default() + &notice.message,
        )
    });
    let ours = |(object, text): (Option<&ObjectRef>, String)| {
        let object = object.filter(|object| object.kind == KIND)?;
        Some((object.clone(), text))
    };
    rejected.chain(noted).filter_map(ours).collect()
}

fn scope(snapshot: &Snapshot, policy: &AuthorizationPolicy) -> String {
    let whole = if policy.namespace == snapshot.settings().root_namespace && policy.services.is_none() {
        "mesh"
    } else {
        "namespace"
    };
    let labels: Vec<String> = policy.selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
    match (&policy.services, labels.as_slice()) {
        (Some(services), _) => format!("{whole}, Services {}", services.join(", ")),
        (None, []) => whole.to_owned(),
        (None, labels) => format!("{whole}, {}", labels.join(",")),
    }
}

/// `GET /refusals`.
pub(super) fn refusals(log: &PolicyLog) -> Refusals {
    Refusals {
        refusals: log.recent().into_iter().map(refusal).collect(),
    }
}

fn refusal(refused: Refused) -> RefusalEntry {
    let (direction, security, source, destination) = ConnectionEntry::ends(&refused.info);
    let ground = refused.refusal.verdict().and_then(|verdict| verdict.ground());
    RefusalEntry {
        id: refused.id.to_string(),
        at: timestamp(refused.at),
        direction,
        security,
        source,
        destination,
        reason: refused.refusal.reason.as_str().to_owned(),
        policy: ground.map(|ground| ground.policy.to_string()),
        rule: ground.and_then(|ground| ground.rule),
        field: ground.and_then(|ground| ground.field.map(str::to_owned)),
        message: refused.refusal.message.clone(),
        stood_seconds: refused.stood.map(|stood| stood.as_secs_f64()),
    }
}

/// `GET /explain`.
pub(super) fn explain(snapshot: &Snapshot, query: &ExplainQuery) -> Result<Explanation, String> {
    let explanation =
        plan::explain(snapshot, &query.source, &query.destination).map_err(|e| e.to_string())?;
    let ways: Vec<WayEntry> = explanation.ways.iter().map(way).collect();
    Ok(Explanation {
        source: explanation.source.as_deref().map(name_of),
        identity: explanation.identity.as_ref().map(ToString::to_string),
        address: explanation.address,
        service: explanation
            .service
            .as_ref()
            .map(|service| service.hostname.clone()),
        requested: Some(explanation.requested),
        allowed: !ways.is_empty() && explanation.ways.iter().all(|way| way.refusal.is_none()),
        ways,
        notes: explanation.notes,
    })
}

fn way(way: &Explained) -> WayEntry {
    let verdict = way.judgement.as_ref().map(|judgement| &judgement.verdict);
    let ground = verdict.and_then(|verdict| verdict.ground());
    let dry_run = way
        .judgement
        .as_ref()
        .and_then(|judgement| judgement.dry_run.as_ref());
    let audited = way.judgement.iter().flat_map(|judgement| &judgement.audited);
    WayEntry {
        address: way.address,
        workload: way.workload.as_deref().map(name_of),
        mode: match way.mode {
            Mode::MutualTls => "mtls",
            Mode::Plaintext => "plaintext",
            Mode::Local => "local",
        }
        .to_owned(),
        verdict: if way.refusal.is_none() {
            "allowed"
        } else {
            "refused"
        }
        .to_owned(),
        reason: way
            .refusal
            .as_ref()
            .map(|refusal| refusal.reason.as_str().to_owned()),
        policy: ground.map(|ground| ground.policy.to_string()),
        action: ground.map(|ground| ground.action.as_str().to_owned()),
        rule: ground.and_then(|ground| ground.rule),
        field: ground.and_then(|ground| ground.field.map(str::to_owned)),
        why: ground.and_then(|ground| ground.why.map(str::to_owned)),
        mtls: way
            .mtls
            .as_ref()
            .map(|decision| mode_name(decision.mode).to_owned()),
        mtls_policy: way
            .mtls
            .as_ref()
            .and_then(|decision| decision.decided_by.as_ref())
            .map(ToString::to_string),
        dry_run: dry_run.map(|verdict| {
            let word = if verdict.is_allowed() {
                "allowed"
            } else {
                "refused"
            };
            format!("{word}: {verdict}")
        }),
        audited: audited.map(ToString::to_string).collect(),
        message: way.message.clone(),
    }
}

/// `GET /services`.
pub(super) fn services(snapshot: &Snapshot) -> Services {
    let node = snapshot.settings().node_name.clone();
    let mut all: Vec<_> = snapshot.services().collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Services {
        services: all.into_iter().map(|one| service(snapshot, one, &node)).collect(),
        node,
    }
}

fn service(snapshot: &Snapshot, service: &Service, node: &str) -> ServiceEntry {
    let endpoint = |choice: plan::Choice<'_>| {
        let workload = choice.endpoint.workload.as_ref();
        EndpointEntry {
            address: choice.endpoint.address,
            workload: workload
                .and_then(|uid| snapshot.workload(uid))
                .map(|w| name_of(w)),
            node: choice.endpoint.node.as_ref().map(ToString::to_string),
            chosen: choice.why_not.is_none(),
            why_not: choice.why_not.map(str::to_owned),
        }
    };
    let ports = service.ports.iter().map(|port| ServicePortEntry {
        port: port.port,
        name: port.name.clone(),
        endpoints: plan::choices(snapshot, service, port.port, node)
            .into_iter()
            .map(endpoint)
            .collect(),
    });
    ServiceEntry {
        namespace: service.name.namespace.to_string(),
        name: service.name.name.to_string(),
        hostname: service.hostname.clone(),
        addresses: service.vips.clone(),
        external: service.external.iter().map(|one| one.address).collect(),
        affinity_seconds: service.affinity,
        ports: ports.collect(),
    }
}

/// `GET /mtls/readiness`. `workloads` and `older` are what the same agent shows of itself.
pub(super) fn readiness(
    snapshot: &Snapshot,
    since: String,
    workloads: &Workloads,
    older: &OlderConnections,
    book: &PlaintextBook,
) -> MtlsReadiness {
    let ours = workloads.workloads.iter().filter(|entry| {
        entry.local && matches!(entry.capture, CaptureState::Captured | CaptureState::Pending)
    });
    let entry = |entry: &crate::admin::document::WorkloadEntry| {
        let sources = sources(book, snapshot, &entry.namespace, &entry.name);
        let mut obstacles = Vec::new();
        if entry.capture == CaptureState::Pending {
            obstacles.push("it is not captured yet: nobody has looked".to_owned());
        }
        let inbound = older.connections.iter().filter(|one| {
            one.direction == Direction::Inbound
                && one.namespace == entry.namespace
                && one.workload == entry.name
        });
        match inbound.count() {
            0 => {}
            n => obstacles.push(format!(
                "{n} connections to it are older than its capture and would be closed"
            )),
        }
        let excluded: Vec<String> = entry
            .uncaptured
            .inbound_ports
            .iter()
            .map(ToString::to_string)
            .collect();
        if !excluded.is_empty() {
            let ports = excluded.join(", ");
            obstacles.push(format!(
                "its inbound ports {ports} are excluded: who comes there is not seen"
            ));
        }
        if !sources.is_empty() && entry.mtls != mode_name(MtlsMode::Strict) {
            obstacles.push(format!("{} sources came in plaintext", sources.len()));
        }
        MtlsReadinessEntry {
            namespace: entry.namespace.clone(),
            name: entry.name.clone(),
            mtls: entry.mtls.clone(),
            ready: obstacles.is_empty(),
            obstacles,
            sources,
        }
    };
    MtlsReadiness {
        since,
        workloads: ours.map(entry).collect(),
    }
}

fn sources(book: &PlaintextBook, snapshot: &Snapshot, namespace: &str, name: &str) -> Vec<PlaintextEntry> {
    let uids: Vec<WorkloadUid> = snapshot
        .local_workloads()
        .filter(|workload| workload.namespace == namespace && workload.name == name)
        .map(|workload| workload.uid.clone())
        .collect();
    let all = uids.iter().flat_map(|uid| book.of(uid));
    let entry =
        |(source, seen): (PlaintextSource, crate::telemetry::plaintext::PlaintextSeen)| PlaintextEntry {
            source: match source {
                PlaintextSource::Workload { namespace, name } => format!("{namespace}/{name}"),
                PlaintextSource::Address(address) => address.to_string(),
                PlaintextSource::Others => "others".to_owned(),
            },
            count: seen.count,
            last_seen: timestamp(seen.last),
            ports: seen.ports.into_iter().collect(),
        };
    let mut all: Vec<PlaintextEntry> = all.map(entry).collect();
    all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.source.cmp(&b.source)));
    all
}

fn name_of(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

fn mode_name(mode: MtlsMode) -> &'static str {
    match mode {
        MtlsMode::Strict => "STRICT",
        MtlsMode::Permissive => "PERMISSIVE",
    }
}

#[cfg(test)]
mod tests;
