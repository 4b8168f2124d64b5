//! Watches: what is there, if asked for, then what happens, with bookmarks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::answer::{Query, check_version, name_kind};
use super::resources::Resource;
use super::selectors::Selector;
use super::store::{Change, Refusal};
use super::{Shared, lock};

/// How often a watch is told how far the server is. A real one says so every minute or so.
const BOOKMARK: Duration = Duration::from_secs(2);

struct Watch {
    resource: Resource,
    version: String,
    namespace: Option<String>,
    selector: Selector,
    bookmarks: bool,
    lines: mpsc::Sender<Bytes>,
}

/// Begins a watch; its lines come by the channel.
pub(super) fn begin(
    shared: &Arc<Shared>,
    resource: &Resource,
    version: &str,
    namespace: Option<String>,
    query: &Query,
) -> Result<mpsc::Receiver<Bytes>, Refusal> {
    let (sender, lines) = mpsc::channel(64);
    let watch = Watch {
        resource: resource.clone(),
        version: version.to_owned(),
        namespace,
        selector: Selector::parse(query.get("labelSelector"), query.get("fieldSelector"))?,
        bookmarks: query.is("allowWatchBookmarks"),
        lines: sender,
    };
    let streamed = query.is("sendInitialEvents");
    if !query.get("sendInitialEvents").is_empty() && !lock(&shared.faults).streams {
        return Err(no_streams());
    }
    if streamed && query.get("resourceVersionMatch") != "NotOlderThan" {
        let message = "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting \
                       resourceVersionMatch to NotOlderThan";
        return Err(Refusal::new(422, "Invalid", message));
    }
    let asked = query.get("resourceVersion");
    check_version(&lock(&shared.store), asked)?;
    let from: u64 = asked.parse().unwrap_or(0);
    let seconds = query.get("timeoutSeconds").parse().unwrap_or(300);
    let shared = shared.clone();
    tokio::spawn(async move {
        let limit = Duration::from_secs(seconds);
        drop(tokio::time::timeout(limit, watch.run(shared, from, streamed)).await);
    });
    Ok(lines)
}

fn no_streams() -> Refusal {
    let what = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
    let message = format!("ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: {what}");
    let mut refusal = Refusal::new(422, "Invalid", message);
    refusal.details = json!({
        "group": "meta.k8s.io", "kind": "ListOptions",
        "causes": [{"reason": "FieldValueForbidden", "message": format!("Forbidden: {what}"), "field": "sendInitialEvents"}],
    });
    refusal
}

impl Watch {
    /// `None` when nobody listens any more.
    async fn run(self, shared: Arc<Shared>, from: u64, streamed: bool) -> Option<()> {
        let mut told = lock(&shared.store).follow();
        let mut at = from;
        if from == 0 || streamed {
            let (there, version) = {
                let store = lock(&shared.store);
                (
                    store.list(&self.resource.key(), self.namespace.as_deref()),
                    store.version(),
                )
            };
            for object in there.iter().filter(|object| self.selector.matches(object)) {
                self.event("ADDED", object).await?;
            }
            at = version;
            if streamed {
                let marks = json!({"annotations": {"k8s.io/initial-events-end": "true"}});
                self.bookmark(at, marks).await?;
            }
        }
        loop {
            let (changes, oldest, version) = {
                let store = lock(&shared.store);
                (
                    store.since(&self.resource.key(), at),
                    store.oldest(),
                    store.version(),
                )
            };
            if at < oldest {
                let message = format!("too old resource version: {at} ({oldest})");
                let status = Refusal::new(410, "Expired", message).status();
                self.line(&json!({"type": "ERROR", "object": status})).await?;
                return None;
            }
            for change in changes {
                self.change(&change).await?;
            }
            at = version;
            told.mark_unchanged();
            tokio::select! {
                changed = told.changed() => changed.ok()?,
                () = tokio::time::sleep(BOOKMARK) => {
                    if self.bookmarks {
                        self.bookmark(at, json!({})).await?;
                    }
                }
                () = self.lines.closed() => return None,
            }
            // What was told while we wrote is found by its version.
        }
    }

    async fn change(&self, change: &Change) -> Option<()> {
        let fits = |object: &Option<Arc<Value>>| {
            let in_namespace = |object: &Value| {
                let namespace = self.namespace.as_deref();
                namespace.is_none_or(|namespace| object["metadata"]["namespace"] == namespace)
            };
            object
                .as_ref()
                .is_some_and(|object| in_namespace(object) && self.selector.matches(object))
        };
        match (fits(&change.before), fits(&change.after)) {
            (false, true) => self.event("ADDED", change.after.as_ref()?).await,
            (true, true) => self.event("MODIFIED", change.after.as_ref()?).await,
            (true, false) => {
                // The last state that the watch knew, at the version of the change.
                let mut last = (**change.before.as_ref()?).clone();
                last["metadata"]["resourceVersion"] = change.version.to_string().into();
                self.event("DELETED", &last).await
            }
            (false, false) => Some(()),
        }
    }

    async fn event(&self, what: &str, object: &Value) -> Option<()> {
        let mut object = object.clone();
        name_kind(&mut object, &self.resource, &self.version);
        self.line(&json!({"type": what, "object": object})).await
    }

    async fn bookmark(&self, version: u64, more: Value) -> Option<()> {
        let mut meta = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
        super::store::merge(&mut meta, &more);
        let mut object = json!({"metadata": meta});
        name_kind(&mut object, &self.resource, &self.version);
        self.line(&json!({"type": "BOOKMARK", "object": object})).await
    }

    async fn line(&self, value: &Value) -> Option<()> {
        self.lines.send(Bytes::from(format!("{value}\n"))).await.ok()
    }
}
