//! Tells the owners of rejected objects, by Events beside these objects. An Event's name follows from the object and the words: of all
//! agents that say the same, the first is heard. Best effort: nothing waits for it, and too much of it is left out.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use mesh_core::manifest::Rejection;
use rand::Rng;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::request::Requests;
use super::trouble::Trouble;

/// Complaints that wait to be sent; more are left out.
const WAITING: usize = 256;
/// Shortest time between two Events.
const PACE: Duration = Duration::from_millis(200);
/// Longest wait before the first of several: agents that see the same at once do not speak at once.
const SPREAD: Duration = Duration::from_secs(2);
/// Who speaks.
const CONTROLLER: &str = "mesh-agent.io/mesh-agent";
/// A note's longest form, in bytes, as the API has it.
const NOTE: usize = 1024;

/// That an object was rejected.
#[derive(Debug)]
pub(super) struct Complaint {
    api_version: String,
    uid: String,
    rejection: Rejection,
}

impl Complaint {
    /// About the object in `document`.
    pub(super) fn new(document: &Value, rejection: &Rejection) -> Self {
        let text = |pointer: &str| {
            document
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        Self {
            api_version: text("/apiVersion").to_owned(),
            uid: text("/metadata/uid").to_owned(),
            rejection: rejection.clone(),
        }
    }

    /// The Event, and the namespace that it goes to. `None` without an object to be about.
    fn event(&self, node: &str, now: Timestamp) -> Option<(String, Value)> {
        let object = self.rejection.object.as_ref()?;
        let mut hasher = DefaultHasher::new();
        (&self.uid, &object.kind, &self.rejection.message).hash(&mut hasher);
        let stem: String = object.name.chars().take(230).collect();
        let namespace = match object.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        };
        let mut note = format!("Not in force: {}", self.rejection.message);
        while note.len() > NOTE {
            note.pop();
        }
        let event = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": format!("{stem}.{:016x}", hasher.finish()), "namespace": namespace},
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
            "reportingController": CONTROLLER, "reportingInstance": node,
            "action": "Configure", "reason": "Rejected", "type": "Warning", "note": note,
            "regarding": {
                "apiVersion": self.api_version, "kind": object.kind, "name": object.name, "uid": self.uid,
                "namespace": object.namespace,
            },
        });
        Some((namespace.to_owned(), event))
    }
}

/// Where complaints go.
#[derive(Clone, Debug)]
pub(super) struct Complaints {
    sender: mpsc::Sender<Complaint>,
}

impl Complaints {
    /// And where they come out.
    pub(super) fn new() -> (Self, mpsc::Receiver<Complaint>) {
        let (sender, inbox) = mpsc::channel(WAITING);
        (Self { sender }, inbox)
    }

    /// Leaves it out when there are too many.
    pub(super) fn send(&self, complaint: Complaint) {
        drop(self.sender.try_send(complaint));
    }
}

/// Sends them, one by one, for ever.
pub(super) async fn run(requests: Requests, node: String, mut inbox: mpsc::Receiver<Complaint>) {
    let mut told = false;
    while let Some(complaint) = inbox.recv().await {
        let spread = if inbox.is_empty() { SPREAD } else { PACE };
        let wait = spread.mul_f64(rand::rng().random_range(0.0..1.0));
        tokio::time::sleep(PACE.max(wait)).await;
        let Some((namespace, event)) = complaint.event(&node, Timestamp::now()) else {
            continue;
        };
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        match requests.post(&path, Bytes::from(event.to_string())).await {
            // Another agent, or this one earlier, has said it.
            Ok(_) | Err(Trouble::Refused { status: 409, .. }) => told = false,
            Err(trouble) if !std::mem::replace(&mut told, true) => tracing::info!(
                target: "mesh_agent::kubernetes",
                "rejected objects get no Events: {}", match trouble {
                    Trouble::Forbidden(message) => format!("{message}; grant `create` on events.k8s.io events"),
                    other => other.to_string(),
                }
            ),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::manifest::Origin;
    use mesh_core::model::ObjectRef;

    use super::*;

    #[test]
    fn all_agents_would_write_one_event_and_each_message_its_own() {
        let complaint = |message: &str| Complaint {
            api_version: "security.istio.io/v1".into(),
            uid: "u".into(),
            rejection: Rejection {
                origin: Origin {
                    file: "kubernetes".into(),
                    line: 0,
                    column: 0,
                },
                object: Some(ObjectRef::new("PeerAuthentication", "shop", "default")),
                message: message.into(),
            },
        };
        let now: Timestamp = "2026-11-21T02:33:46.1234567Z".parse().unwrap();
        let (namespace, one) = complaint("spec.mtls.mode").event("n1", now).unwrap();
        let (_, two) = complaint("spec.mtls.mode").event("n2", now).unwrap();
        let (_, other) = complaint("spec.selector").event("n1", now).unwrap();
        assert_eq!(namespace, "shop");
        assert_eq!(one["metadata"], two["metadata"]);
        assert_ne!(one["metadata"], other["metadata"]);
        assert_eq!(one["eventTime"], "2026-11-21T02:33:46.123456Z");
        assert_eq!(one["regarding"]["name"], "default");
        let long = complaint(&"é".repeat(2000)).event("n1", now).unwrap().1;
        assert!(long["note"].as_str().unwrap().len() <= NOTE);
    }
}
