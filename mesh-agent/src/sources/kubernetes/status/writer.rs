//! The task that stands for election and, while it holds the Lease, writes what is not there yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use mesh_core::manifest::{KINDS, Notice};
use mesh_core::model::ObjectRef;
use rand::Rng;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::conditions::{self, Condition, Row};
use super::lease::{Election, RENEWAL};
use super::{LEASE, Seen, Statuses};
use crate::sources::kubernetes::lock;
use crate::sources::kubernetes::request::Requests;
use crate::sources::kubernetes::trouble::Trouble;
use crate::sources::{KindBoard, WriterStatus};

/// Objects are left alone for that long after a change: what is said of them settles meanwhile.
const SETTLE: Duration = Duration::from_secs(1);
/// Conditions written between two looks at the Lease, at most.
const BATCH: usize = 100;
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(4);
/// How long it is left alone what is forbidden, or not there.
const FORBIDDEN: Duration = Duration::from_secs(60);

/// Writes, or waits for its turn.
pub(in crate::sources::kubernetes) struct Writer {
    requests: Requests,
    statuses: Arc<Statuses>,
    board: KindBoard,
    election: Election,
    status: WriterStatus,
    /// What was tried for an object, and until when that is not tried again: the watch must bring what was written, or time must pass.
    tried: BTreeMap<ObjectRef, (Condition, Instant)>,
    /// What is in the way of the Lease.
    unelected: Option<String>,
    /// What was in the way of an object's condition last.
    unwritten: Option<(ObjectRef, String)>,
    told: bool,
}

impl Writer {
    /// A candidate in `namespace`, on this node.
    pub(in crate::sources::kubernetes) fn new(
        requests: Requests,
        statuses: Arc<Statuses>,
        board: KindBoard,
        namespace: &str,
        node: &str,
    ) -> Self {
        // Two agents of one node are two candidates.
        let own = format!("{node}_{:016x}", rand::rng().random::<u64>());
        let election = Election::new(requests.clone(), namespace.to_owned(), LEASE, own);
        Self {
            requests,
            statuses,
            board,
            election,
            status: WriterStatus {
                lease: format!("{namespace}/{LEASE}"),
                ..WriterStatus::default()
            },
            tried: BTreeMap::new(),
            unelected: None,
            unwritten: None,
            told: false,
        }
    }

    /// A look at the Lease; returns how long until the next.
    async fn stand(&mut self) -> Duration {
        let led = self.election.leads();
        let looked = match timeout(REQUEST, self.election.look()).await {
            Ok(looked) => looked
                .err()
                .map(|trouble| (explain(&trouble), is_final(&trouble))),
            Err(_) => Some(("the API server does not answer in time".to_owned(), false)),
        };
        let leads = self.election.leads();
        if leads != led {
            let lease = &self.status.lease;
            tracing::info!(target: "mesh_agent::kubernetes", lease, leads, "which agent writes status conditions has changed");
        }
        let (problem, is_final) = looked.unzip();
        if let Some(problem) = &problem
            && is_final == Some(true)
            && !std::mem::replace(&mut self.told, true)
        {
            tracing::info!(target: "mesh_agent::kubernetes", "no status conditions are written: {problem}");
        }
        self.unelected = problem;
        self.show();
        match is_final {
            Some(true) => FORBIDDEN,
            _ => RENEWAL,
        }
    }

    fn show(&mut self) {
        self.status.leads = self.election.leads();
        self.status.leader = self.election.holder().map(str::to_owned);
        let unwritten = self.unwritten.as_ref().filter(|_| self.status.leads);
        let unwritten = unwritten.map(|(name, why)| format!("{name}: {why}"));
        self.status.problem = self.unelected.clone().or(unwritten);
        self.board.set_writer(self.status.clone());
    }

    /// Writes what is not there, for as long as the Lease is sure. True when something is left to do.
    async fn round(&mut self, until: Instant) -> bool {
        let now = Instant::now();
        self.tried.retain(|_, (_, until)| *until > now);
        let due = self.due();
        let left = due.len() > BATCH;
        for (name, seen, condition) in due.into_iter().take(BATCH) {
            if !self.election.leads() || Instant::now() >= until {
                return true;
            }
            let written = timeout(REQUEST, self.write(&name, &seen, &condition)).await;
            let (result, wait) = match written {
                Err(_) => ("timeout", RENEWAL),
                Ok(Ok(result)) => {
                    self.unwritten.take_if(|(of, _)| *of == name);
                    (result, RENEWAL)
                }
                Ok(Err(trouble)) => (trouble.reason(), self.complain(&name, &trouble)),
            };
            self.tried.insert(name, (condition, Instant::now() + wait));
            *self.status.writes.entry(result.to_owned()).or_default() += 1;
            self.show();
            if matches!(result, "timeout" | "unreachable" | "throttled" | "server_error") {
                return true;
            }
        }
        left
    }

    /// What is not as it should be.
    fn due(&mut self) -> Vec<(ObjectRef, Seen, Condition)> {
        let mut conflicts: HashMap<ObjectRef, Vec<Notice>> = HashMap::new();
        if let Some(reader) = self.statuses.reader.get() {
            let notices = reader.read().notices.into_iter();
            for notice in notices.filter(conditions::is_conflict) {
                if let Some(object) = notice.object.clone() {
                    conflicts.entry(object).or_default().push(notice);
                }
            }
        }
        let mut due = Vec::new();
        let all = lock(&self.statuses.seen);
        self.unwritten.take_if(|(of, _)| !all.contains_key(of));
        for (name, seen) in all.iter() {
            let conflicts = conflicts.get(name).map_or(&[][..], Vec::as_slice);
            let wanted = conditions::wanted(&seen.held, conflicts, seen.generation);
            let is_tried = self.tried.get(name).is_some_and(|(tried, _)| *tried == wanted);
            if seen.present.as_ref() != Some(&wanted) && !is_tried {
                due.push((name.clone(), seen.clone(), wanted));
            }
        }
        due
    }

    /// Writes one condition, unless the object is another by now, or has it.
    async fn write(
        &self,
        name: &ObjectRef,
        seen: &Seen,
        condition: &Condition,
    ) -> Result<&'static str, Trouble> {
        let (Some(row), Some(path)) = (Row::of(&name.kind), path(name, &seen.version)) else {
            return Ok("unknown");
        };
        let document: Value = match self.requests.get(&path).await {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| Trouble::Malformed(error.to_string()))?
            }
            // It is gone; the watch will say so.
            Err(Trouble::NotFound(_)) => return Ok("gone"),
            Err(trouble) => return Err(trouble),
        };
        let meta = &document["metadata"];
        if meta["uid"] != seen.uid.as_str() || meta["generation"].as_i64() != Some(seen.generation) {
            return Ok("outdated");
        }
        if (row.read)(&document).as_ref() == Some(condition) {
            return Ok("present");
        }
        let patch = row.patch(&document, condition, Timestamp::now());
        let patch = Bytes::from(patch.to_string());
        match self.requests.merge_patch(&format!("{path}/status"), patch).await {
            Ok(_) => Ok("written"),
            // Somebody has changed it in between: with what they wrote it is looked at again.
            Err(Trouble::Refused { status: 409, .. }) => Ok("conflict"),
            Err(trouble) => Err(trouble),
        }
    }

    /// Says once what is in the way; returns how long to leave it.
    fn complain(&mut self, name: &ObjectRef, trouble: &Trouble) -> Duration {
        let wait = trouble.wait().unwrap_or_default();
        self.unwritten = Some((name.clone(), explain(trouble)));
        if !is_final(trouble) {
            return wait.max(RENEWAL);
        }
        if !std::mem::replace(&mut self.told, true) {
            let why = explain(trouble);
            tracing::warn!(target: "mesh_agent::kubernetes", object = %name, "a status condition cannot be written: {why}");
        }
        wait.max(FORBIDDEN)
    }
}

/// Stands for election and writes, for ever.
pub(in crate::sources::kubernetes) async fn run(mut writer: Writer) {
    // Agents that start together do not ask together.
    let spread = RENEWAL.mul_f64(rand::rng().random_range(0.0..0.5));
    sleep(spread).await;
    loop {
        let next = Instant::now() + writer.stand().await;
        let mut again = true;
        while Instant::now() < next {
            if !writer.election.leads() {
                tokio::time::sleep_until(next.into()).await;
                break;
            }
            if again {
                again = writer.round(next).await;
            }
            let pause = next.saturating_duration_since(Instant::now());
            tokio::select! {
                () = writer.statuses.changed.notified() => {
                    again = true;
                    sleep(SETTLE.min(pause)).await;
                }
                () = sleep(if again { SETTLE.min(pause) } else { pause }) => {}
            }
        }
    }
}

/// Where an object is.
fn path(name: &ObjectRef, version: &str) -> Option<String> {
    let kind = KINDS.iter().find(|kind| kind.name == &*name.kind)?;
    Some(format!(
        "/apis/{}/{version}/namespaces/{}/{}/{}",
        kind.group, name.namespace, kind.plural, name.name
    ))
}

/// Whether somebody must do something before another attempt makes sense.
fn is_final(trouble: &Trouble) -> bool {
    matches!(
        trouble,
        Trouble::Forbidden(_) | Trouble::NotFound(_) | Trouble::Refused { .. }
    )
}

fn explain(trouble: &Trouble) -> String {
    match trouble {
        Trouble::Forbidden(message) => format!(
            "{message}; grant what deploy/kubernetes/rbac.yaml has for leases and status, or set kubernetes.status: off"
        ),
        other => other.to_string(),
    }
}
