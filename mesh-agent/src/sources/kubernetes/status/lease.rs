//! Which agent of the cluster writes: the one that holds a Lease (coordination.k8s.io/v1). As client-go's elections do it: whether a holder
//! is gone is told by this agent's own clock, from when it saw the Lease change last, and each change is guarded by the version it is made of.

use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::sources::kubernetes::request::Requests;
use crate::sources::kubernetes::trouble::Trouble;

/// For how long a holder that says nothing is taken for alive.
const DURATION: Duration = Duration::from_secs(15);
/// How often a holder says that it is there, and others look.
pub(super) const RENEWAL: Duration = Duration::from_secs(5);
/// For how long after its last word a holder goes on: it stops well before another one begins.
const STANDING: Duration = Duration::from_secs(10);

/// What a Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    version: String,
    holder: String,
    duration: Duration,
}

impl Record {
    fn of(lease: &Value) -> Self {
        let seconds = lease["spec"]["leaseDurationSeconds"].as_u64().unwrap_or_default();
        Self {
            version: lease["metadata"]["resourceVersion"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            holder: lease["spec"]["holderIdentity"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            // What somebody else has written must neither end nor outlast everything.
            duration: Duration::from_secs(seconds.clamp(1, 60)),
        }
    }
}

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Renew,
    TakeOver,
    Wait,
}

/// What a candidate does that has seen no change of the Lease for `silent`.
fn step(record: &Record, own: &str, silent: Duration) -> Step {
    if record.holder == own {
        Step::Renew
    } else if record.holder.is_empty() || silent >= record.duration {
        Step::TakeOver
    } else {
        Step::Wait
    }
}

/// A candidate.
pub(super) struct Election {
    requests: Requests,
    namespace: String,
    name: &'static str,
    own: String,
    /// The Lease as it was seen last, and when it was first seen so.
    seen: Option<(Record, Instant)>,
    /// When this agent last said that it holds the Lease, and the server took it.
    renewed: Option<Instant>,
}

impl Election {
    pub(super) fn new(requests: Requests, namespace: String, name: &'static str, own: String) -> Self {
        Self {
            requests,
            namespace,
            name,
            own,
            seen: None,
            renewed: None,
        }
    }

    /// Whether this agent may write.
    pub(super) fn leads(&self) -> bool {
        self.renewed.is_some_and(|at| at.elapsed() < STANDING)
    }

    /// Who holds the Lease, as far as is known.
    pub(super) fn holder(&self) -> Option<&str> {
        let holder = self.seen.as_ref().map(|(record, _)| record.holder.as_str());
        holder.filter(|holder| !holder.is_empty())
    }

    /// Looks at the Lease; renews it, takes it, or leaves it to another.
    pub(super) async fn look(&mut self) -> Result<(), Trouble> {
        let began = Instant::now();
        let lease = match self.requests.get(&self.path()).await {
            Ok(bytes) => parse(&bytes)?,
            Err(Trouble::NotFound(_)) => return self.create(began).await,
            Err(trouble) => return Err(trouble),
        };
        let record = self.see(&lease);
        let silent = self.seen.as_ref().map(|(_, since)| since.elapsed());
        match step(&record, &self.own, silent.unwrap_or_default()) {
            Step::Wait => {
                self.renewed = None;
                Ok(())
            }
            step => {
                let changed = self.taken(lease, step == Step::TakeOver);
                self.put(changed, began).await
            }
        }
    }

    fn see(&mut self, lease: &Value) -> Record {
        let record = Record::of(lease);
        if self.seen.as_ref().map(|(seen, _)| seen) != Some(&record) {
            self.seen = Some((record.clone(), Instant::now()));
        }
        record
    }

    fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }

    fn collection(&self) -> String {
        format!(
            "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
            self.namespace
        )
    }

    /// The Lease as this agent wants it. What it says besides stays.
    fn taken(&self, mut lease: Value, anew: bool) -> Value {
        // RFC 3339 with microseconds, as MicroTime has it.
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let transitions = lease["spec"]["leaseTransitions"].as_i64().unwrap_or_default();
        if anew {
            lease["spec"]["acquireTime"] = now.clone().into();
            lease["spec"]["leaseTransitions"] = (transitions + 1).into();
        }
        lease["spec"]["holderIdentity"] = self.own.clone().into();
        lease["spec"]["leaseDurationSeconds"] = DURATION.as_secs().into();
        lease["spec"]["renewTime"] = now.into();
        lease
    }

    async fn create(&mut self, began: Instant) -> Result<(), Trouble> {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": self.name, "namespace": self.namespace},
        });
        let mut lease = self.taken(lease, true);
        lease["spec"]["leaseTransitions"] = 0.into();
        let done = self
            .requests
            .post(&self.collection(), Bytes::from(lease.to_string()))
            .await;
        self.settle(done, began)
    }

    async fn put(&mut self, lease: Value, began: Instant) -> Result<(), Trouble> {
        let done = self
            .requests
            .put(&self.path(), Bytes::from(lease.to_string()))
            .await;
        self.settle(done, began)
    }

    fn settle(&mut self, done: Result<Bytes, Trouble>, began: Instant) -> Result<(), Trouble> {
        match done {
            Ok(bytes) => {
                let lease = parse(&bytes)?;
                self.see(&lease);
                self.renewed = Some(began);
                Ok(())
            }
            // Another was faster.
            Err(Trouble::Refused { status: 409, .. }) => {
                self.renewed = None;
                Ok(())
            }
            Err(trouble) => Err(trouble),
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Value, Trouble> {
    serde_json::from_slice(bytes).map_err(|error| Trouble::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_from_nobody_and_from_who_is_silent_for_as_long_as_it_says() {
        let lease = |holder: &str, seconds: i64| {
            Record::of(&json!({
                "metadata": {"resourceVersion": "7"},
                "spec": {"holderIdentity": holder, "leaseDurationSeconds": seconds},
            }))
        };
        let silent = Duration::from_secs;
        assert_eq!(step(&lease("a", 15), "a", silent(100)), Step::Renew);
        assert_eq!(step(&lease("b", 15), "a", silent(14)), Step::Wait);
        assert_eq!(step(&lease("b", 15), "a", silent(15)), Step::TakeOver);
        assert_eq!(step(&lease("", 15), "a", silent(0)), Step::TakeOver);
        // Written by somebody else.
        assert_eq!(step(&lease("b", 1 << 40), "a", silent(61)), Step::TakeOver);
        assert_eq!(step(&lease("b", -1), "a", silent(0)), Step::Wait);
        assert_eq!(step(&Record::of(&json!({})), "a", silent(0)), Step::TakeOver);
        const { assert!(RENEWAL.as_secs() < STANDING.as_secs() && STANDING.as_secs() < DURATION.as_secs()) };
    }
}
