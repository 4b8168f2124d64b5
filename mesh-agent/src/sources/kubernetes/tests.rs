//! What is known of a kind, from documents alone; and what a server's answers mean, by the words of a real one.

use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use http::StatusCode;
use mesh_core::manifest::Kind;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::trouble::{Status, Trouble};
use super::*;
use crate::sources::publisher::Message;

struct Desk {
    holdings: Holdings,
    inbox: Receiver<Message>,
    complaints: tokio::sync::mpsc::Receiver<events::Complaint>,
}

/// What one kind has said, into a directory.
fn desk(kind: &str, dir: &TempDir, placement: bool) -> Desk {
    let kind: &'static Kind = KINDS.iter().find(|row| row.name == kind).unwrap();
    let (sender, inbox) = mpsc::channel();
    let (complaints, complained) = Complaints::new();
    let shared = Arc::new(Shared {
        sink: ReportSink { source: 0, sender },
        board: KindBoard::new([kind.name]),
        open: AtomicUsize::new(1),
        look: Notify::new(),
        complaints,
        statuses: Arc::default(),
    });
    let reading = Reading {
        node_name: "n1".into(),
        placement,
    };
    Desk {
        holdings: Holdings::new(kind, 0, reading, shared, &kept_dir(dir.path())),
        inbox,
        complaints: complained,
    }
}

impl Desk {
    fn list(&mut self, documents: &[Value]) {
        let mut listing = self.holdings.begin();
        for document in documents {
            self.holdings.listed(&mut listing, document.clone(), "v1");
        }
        self.holdings.commit(listing);
    }

    /// What has been said since the last time: names with `+` for in force, `!` for rejected, `-` for gone; `.` for everything.
    fn said(&self) -> Vec<String> {
        let mut said = Vec::new();
        while let Ok(Message::Changes { changes, .. }) = self.inbox.try_recv() {
            let mut names: Vec<String> = changes
                .objects
                .iter()
                .map(|(name, held)| {
                    let good = if held.accepted.is_some() { "+" } else { "" };
                    let bad = if held.rejection.is_some() { "!" } else { "" };
                    let gone = if held.is_gone() { "-" } else { "" };
                    format!("{}{good}{bad}{gone}", name.name)
                })
                .collect();
            names.sort();
            said.extend(names);
            if changes.complete {
                said.push(".".to_owned());
            }
        }
        said
    }
}

fn policy(name: &str, mode: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": "7"},
        "spec": {"mtls": {"mode": mode}},
    })
}

#[test]
fn a_list_says_what_is_different_and_what_is_gone() {
    let dir = TempDir::new().unwrap();
    let mut desk = desk("PeerAuthentication", &dir, false);
    desk.list(&[policy("a", "STRICT"), policy("b", "STRICT")]);
    assert_eq!(desk.said(), ["a+", "b+", "."]);
    let mut again = policy("a", "STRICT");
    again["metadata"]["resourceVersion"] = "9".into();
    desk.list(&[again, policy("c", "STRICT")]);
    assert_eq!(desk.said(), ["b-", "c+"]);
    desk.holdings.put(policy("c", "STRICT"), "v1");
    assert_eq!(desk.said(), Vec::<String>::new());
    desk.holdings.put(policy("c", "PERMISSIVE"), "v1");
    desk.holdings.delete(&policy("a", ""));
    assert_eq!(desk.said(), ["c+", "a-"]);
}

#[test]
fn a_list_that_breaks_off_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let mut desk = desk("PeerAuthentication", &dir, false);
    desk.list(&[policy("a", "STRICT")]);
    desk.said();
    let mut listing = desk.holdings.begin();
    desk.holdings.listed(&mut listing, policy("b", "STRICT"), "v1");
    drop(listing);
    assert_eq!(desk.said(), Vec::<String>::new());
    desk.holdings.put(policy("c", "STRICT"), "v1");
    assert_eq!(desk.said(), ["c+"]);
}

#[test]
fn the_last_good_version_stays_over_bad_ones_over_lists_and_over_restarts() {
    let dir = TempDir::new().unwrap();
    {
        let mut desk = desk("PeerAuthentication", &dir, false);
        desk.list(&[policy("a", "STRICT")]);
        desk.holdings.put(policy("a", "STRICKT"), "v1");
        desk.holdings.put(policy("a", "STRICKT"), "v1");
        desk.list(&[policy("a", "STRICKT"), policy("b", "NONE")]);
        assert_eq!(desk.said(), ["a+", ".", "a+!", "b!"]);
        // One complaint for each fault, not for each time that it is seen.
        assert!(desk.complaints.try_recv().is_ok() && desk.complaints.try_recv().is_ok());
        assert!(desk.complaints.try_recv().is_err());
    }
    let mut desk = desk("PeerAuthentication", &dir, false);
    desk.holdings.load();
    assert!(desk.holdings.is_stored() && !desk.holdings.is_said());
    desk.list(&[policy("a", "STRICKT")]);
    assert_eq!(desk.said(), ["a+!", "."]);
}

#[test]
fn what_was_kept_is_in_force_only_when_it_is_said() {
    let dir = TempDir::new().unwrap();
    {
        let mut first = desk("PeerAuthentication", &dir, false);
        first.list(&[policy("a", "STRICT"), policy("b", "STRICT")]);
        first.holdings.put(policy("c", "STRICT"), "v1");
        first.holdings.delete(&policy("b", "STRICT"));
    }
    let mut later = desk("PeerAuthentication", &dir, false);
    later.holdings.load();
    assert_eq!(later.said(), Vec::<String>::new());
    later.holdings.say();
    later.holdings.say();
    assert_eq!(later.said(), ["a+", "c+", "."]);
    later.list(&[policy("c", "STRICT")]);
    assert_eq!(later.said(), ["a-"]);
    // A kind that is not there leaves a list without elements, not none.
    later.holdings.clear();
    let mut last = desk("PeerAuthentication", &dir, false);
    last.holdings.load();
    assert!(last.holdings.is_stored());
    last.holdings.say();
    assert_eq!(last.said(), ["."]);
}

#[test]
fn where_a_pod_is_on_the_host_is_believed_only_when_that_is_wanted() {
    let pod = |netns: &str| {
        json!({
            "metadata": {"name": "a", "namespace": "shop",
                "annotations": {"mesh-agent.io/netns": netns, "mesh-agent.io/cgroup": "shop/a"}},
            "spec": {"nodeName": "n1"}, "status": {"podIPs": [{"ip": "10.0.0.1"}]},
        })
    };
    let dir = TempDir::new().unwrap();
    for (placement, netns, placed) in [
        (true, "/run/netns/a", true),
        (false, "/run/netns/a", false),
        // What would be a rejection must not make a pod vanish either.
        (false, "not/a/path", false),
    ] {
        let mut desk = desk("Pod", &dir, placement);
        desk.list(&[pod(netns)]);
        let Ok(Message::Changes { changes, .. }) = desk.inbox.try_recv() else {
            panic!("nothing was said");
        };
        let accepted = changes.objects[0].1.accepted.clone().unwrap();
        let mesh_core::model::Object::Pod(read) = &*accepted.object else {
            panic!("{accepted:?}");
        };
        assert_eq!(read.location.is_some(), placed, "{placement} {netns}");
        assert_eq!(accepted.notices.len(), usize::from(!placement));
    }
}

#[test]
fn answers_mean_what_the_server_means_by_them() {
    let trouble = |code: u16, after: Option<u64>, body: &str| {
        Status::of_answer(StatusCode::from_u16(code).unwrap(), after, body.as_bytes())
    };
    let status = |code: u16, reason: &str, message: &str, details: Value| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "details": details, "code": code});
        trouble(code, None, &status.to_string())
    };
    let words = "secrets is forbidden: User \"system:serviceaccount:kube-system:agent\" cannot list resource \"secrets\"";
    assert_eq!(
        status(403, "Forbidden", words, json!({"kind": "secrets"})),
        Trouble::Forbidden(words.into())
    );
    assert_eq!(
        trouble(404, None, "404 page not found\n"),
        Trouble::NotFound("404 page not found".into())
    );
    let behind = json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1});
    let late = status(
        504,
        "Timeout",
        "Timeout: Too large resource version: 99999999, current: 1049",
        behind,
    );
    assert!(matches!(late, Trouble::Busy { behind: true, .. }), "{late:?}");
    assert_eq!(late.wait(), Some(Duration::from_secs(1)));
    let busy = trouble(429, Some(7), "");
    assert_eq!(
        (busy.wait(), busy.reason()),
        (Some(Duration::from_secs(7)), "throttled")
    );
    let refused = status(
        422,
        "Invalid",
        "sendInitialEvents is forbidden",
        json!({"kind": "ListOptions"}),
    );
    assert!(
        matches!(refused, Trouble::Refused { status: 422, .. }),
        "{refused:?}"
    );
    let gone: Status = serde_json::from_value(json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "message": "too old resource version: 1 (2)", "reason": "Expired", "code": 410}))
    .unwrap();
    assert!(matches!(gone.trouble(), Trouble::Expired(_)));
}
