//! What a condition says, where each kind keeps its conditions, and the patch that writes one and leaves those of others alone. Pure.

use jiff::Timestamp;
use mesh_core::manifest::{Notice, NoticeKind};
use serde_json::{Value, json};

use crate::sources::Held;

/// The condition's type.
const ACCEPTED: &str = "Accepted";
/// A message's longest form, in bytes (the API's own types allow 32768).
const MESSAGE: usize = 2048;

/// What we say of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) status: bool,
    pub(super) reason: String,
    pub(super) message: String,
    /// The generation of the object that this is about.
    pub(super) generation: i64,
}

/// A kind whose objects get a condition, and where it is in their status.
pub(super) struct Row {
    kind: &'static str,
    /// The condition that a document has.
    pub(super) read: fn(&Value) -> Option<Condition>,
    /// The status that a document is to have.
    write: fn(&Value, &Condition, Timestamp) -> Value,
}

/// All of them.
static ROWS: [Row; 2] = [
    // Istio's `status.conditions` (meta.v1alpha1.IstioStatus).
    Row {
        kind: "AuthorizationPolicy",
        read: from_list,
        write: into_list,
    },
    Row {
        kind: "PeerAuthentication",
        read: from_list,
        write: into_list,
    },
];

impl Row {
    /// That of a kind.
    pub(super) fn of(kind: &str) -> Option<&'static Self> {
        ROWS.iter().find(|row| row.kind == kind)
    }

    /// A merge patch (RFC 7386) of the status subresource. A merge patch replaces lists as a whole, so it holds for this version of the
    /// document alone: another writer's condition that came in between makes it a conflict.
    pub(super) fn patch(&self, document: &Value, condition: &Condition, now: Timestamp) -> Value {
        json!({
            "metadata": {
                "uid": document["metadata"]["uid"],
                "resourceVersion": document["metadata"]["resourceVersion"],
            },
            "status": (self.write)(document, condition, now),
        })
    }
}

/// What is to be said of an object of which this is in force. `conflicts` is what it does not get along with.
pub(super) fn wanted(held: &Held, conflicts: &[Notice], generation: i64) -> Condition {
    let say = |status, reason: &str, message: String| Condition {
        status,
        reason: reason.to_owned(),
        message: shortened(message),
        generation,
    };
    if let Some(rejection) = &held.rejection {
        let kept = match held.accepted {
            Some(_) => "; the last version that was accepted stays in force",
            None => "",
        };
        return say(
            false,
            "Invalid",
            format!("Not in force: {}{kept}", rejection.message),
        );
    }
    if !conflicts.is_empty() {
        let said = conflicts.iter().map(|notice| notice.message.as_str());
        return say(false, "Conflicted", said.collect::<Vec<_>>().join("; "));
    }
    let remarks = held.accepted.iter().flat_map(|accepted| &accepted.notices);
    let remarks: Vec<&str> = remarks.map(|notice| notice.message.as_str()).collect();
    match remarks.is_empty() {
        true => say(true, ACCEPTED, "In force".to_owned()),
        false => say(
            true,
            ACCEPTED,
            format!("In force, but mind: {}", remarks.join("; ")),
        ),
    }
}

/// Whether a notice of the snapshot takes an object out of force.
pub(super) fn is_conflict(notice: &Notice) -> bool {
    notice.kind == NoticeKind::Conflict
}

fn shortened(mut message: String) -> String {
    while message.len() > MESSAGE {
        message.pop();
    }
    message
}

fn list(document: &Value) -> &[Value] {
    let found = document.pointer("/status/conditions").and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

fn is_ours(condition: &Value) -> bool {
    condition["type"] == ACCEPTED
}

fn from_list(document: &Value) -> Option<Condition> {
    let found = list(document).iter().find(|condition| is_ours(condition))?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    let generation = &found["observedGeneration"];
    // Istio's definitions take a number or a text.
    let number = generation.as_i64().or_else(|| generation.as_str()?.parse().ok());
    Some(Condition {
        status: found["status"] == "True",
        reason: text("reason"),
        message: text("message"),
        generation: number.unwrap_or_default(),
    })
}

/// The conditions with ours among them, in its place or at the end.
fn into_list(document: &Value, condition: &Condition, now: Timestamp) -> Value {
    let status = if condition.status { "True" } else { "False" };
    let before = list(document).iter().find(|condition| is_ours(condition));
    // It tells when the status changed, not the words.
    let since = before
        .filter(|before| before["status"] == status)
        .and_then(|before| before["lastTransitionTime"].as_str().map(str::to_owned));
    let ours = json!({
        "type": ACCEPTED, "status": status, "reason": condition.reason, "message": condition.message,
        "observedGeneration": condition.generation,
        "lastTransitionTime": since.unwrap_or_else(|| now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
    });
    let mut all: Vec<Value> = list(document).to_vec();
    match all.iter_mut().find(|condition| is_ours(condition)) {
        Some(place) => *place = ours,
        None => all.push(ours),
    }
    json!({"conditions": all})
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh_core::manifest::{Accepted, Origin, Rejection};
    use mesh_core::model::{Namespace, Object, Wishes};

    use super::*;

    fn origin() -> Origin {
        Origin {
            file: "kubernetes".into(),
            line: 0,
            column: 0,
        }
    }

    fn notice(kind: NoticeKind, message: &str) -> Notice {
        Notice {
            origin: None,
            object: None,
            kind,
            message: message.into(),
        }
    }

    fn accepted(notices: Vec<Notice>) -> Accepted {
        Accepted {
            origin: origin(),
            object: Arc::new(Object::Namespace(Namespace {
                name: "a".into(),
                wishes: Wishes::default(),
            })),
            notices,
        }
    }

    #[test]
    fn a_condition_says_whether_an_object_is_in_force_and_why_not() {
        let mut held = Held {
            accepted: Some(accepted(Vec::new())),
            rejection: None,
        };
        let good = wanted(&held, &[], 3);
        assert!(
            good.status && good.reason == "Accepted" && good.message == "In force" && good.generation == 3
        );
        let conflicted = wanted(&held, &[notice(NoticeKind::Conflict, "default is older")], 3);
        assert!(
            !conflicted.status
                && conflicted.reason == "Conflicted"
                && conflicted.message == "default is older"
        );
        held.accepted = Some(accepted(vec![notice(
            NoticeKind::UnknownField,
            "spec.mtls.colour has no effect",
        )]));
        let minded = wanted(&held, &[], 3);
        assert!(
            minded.status && minded.message.contains("spec.mtls.colour"),
            "{minded:?}"
        );
        held.rejection = Some(Box::new(Rejection {
            origin: origin(),
            object: None,
            message: "spec.mtls.mode: no such mode".into(),
        }));
        let bad = wanted(&held, &[], 4);
        assert!(!bad.status && bad.reason == "Invalid" && bad.message.contains("no such mode"));
        assert!(bad.message.contains("stays in force"), "{bad:?}");
        held.accepted = None;
        assert!(!wanted(&held, &[], 4).message.contains("stays in force"));
        let long = wanted(&held, &[], 4);
        held.rejection.as_mut().unwrap().message = "é".repeat(5000);
        assert!(wanted(&held, &[], 4).message.len() <= MESSAGE && long.message.len() < MESSAGE);
    }

    #[test]
    fn a_patch_leaves_the_conditions_of_others_alone_and_holds_for_one_version() {
        let others = json!({"type": "ZtunnelAccepted", "status": "True", "custom": {"kept": 1}});
        let document = json!({
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "7", "generation": 2},
            "status": {"conditions": [others]},
        });
        let row = Row::of("AuthorizationPolicy").unwrap();
        assert!(Row::of("Pod").is_none());
        assert_eq!((row.read)(&document), None);
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let held = Held::default();
        let condition = wanted(&held, &[], 2);
        let patch = row.patch(&document, &condition, at("2026-11-21T02:33:46Z"));
        assert_eq!(patch["metadata"], json!({"uid": "u", "resourceVersion": "7"}));
        assert_eq!(patch["status"]["conditions"][0], others);
        let mut patched = document.clone();
        patched["status"] = patch["status"].clone();
        assert_eq!((row.read)(&patched), Some(condition.clone()));
        // Other words keep the time of the transition, another status does not.
        let again = Condition {
            message: "other words".into(),
            ..condition.clone()
        };
        let again = row.patch(&patched, &again, at("2026-11-21T03:00:00Z"));
        assert_eq!(again["status"]["conditions"].as_array().unwrap().len(), 2);
        assert_eq!(
            again["status"]["conditions"][1]["lastTransitionTime"],
            "2026-11-21T02:33:46Z"
        );
        let turned = Condition {
            status: false,
            ..condition
        };
        let turned = row.patch(&patched, &turned, at("2026-11-21T03:00:00Z"));
        assert_eq!(
            turned["status"]["conditions"][1]["lastTransitionTime"],
            "2026-11-21T03:00:00Z"
        );
        // A generation that another writer has put as a text.
        patched["status"]["conditions"][1]["observedGeneration"] = "2".into();
        assert_eq!((row.read)(&patched).unwrap().generation, 2);
    }
}
