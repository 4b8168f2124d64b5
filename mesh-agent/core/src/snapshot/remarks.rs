//! What there is to say about the objects in force, kept by what it is about, so that a change replaces its own part.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use super::Diagnostics;
use super::mtls::Remark;
use crate::manifest::{Accepted, Notice, NoticeKind, Origin};
use crate::model::ObjectRef;

/// What remarks are about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    /// A pod by itself.
    Pod(Arc<ObjectRef>),
    /// Policies that select the same pod. The same words may come from several pods.
    Overlaps(Arc<ObjectRef>),
    /// Other meshes on this node.
    Meshes,
    /// The policies of a namespace.
    Policies(Arc<str>),
    /// Pods at an address.
    Address(IpAddr),
    /// Services at an address.
    Front(IpAddr),
}

/// All remarks.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    documents: Diagnostics,
    objects: BTreeMap<Arc<ObjectRef>, Vec<Notice>>,
    topics: HashMap<Topic, Vec<Remark>>,
    stale: bool,
}

impl Remarks {
    /// What is known of documents that gave no object.
    pub(super) fn set_documents(&mut self, documents: Diagnostics) {
        self.stale |= self.documents != documents;
        self.documents = documents;
    }

    /// What is known of an object's document, and of others with the same name.
    pub(super) fn set_object<'a>(
        &mut self,
        name: &Arc<ObjectRef>,
        first: Option<&Accepted>,
        others: impl Iterator<Item = &'a Accepted>,
    ) {
        let mut notices = first.map_or(Vec::new(), |one| one.notices.clone());
        if let Some(first) = first {
            notices.extend(others.map(|second| duplicate(name, first, second)));
        }
        let before = if notices.is_empty() {
            self.objects.remove(name)
        } else if self.objects.get(name) == Some(&notices) {
            return;
        } else {
            self.stale = true;
            self.objects.insert(Arc::clone(name), notices)
        };
        self.stale |= before.is_some();
    }

    /// An object stands elsewhere now: what is said about it names its place.
    pub(super) fn moved(&mut self, moved: bool) {
        self.stale |= moved;
    }

    /// What there is to say about a topic now.
    pub(super) fn set(&mut self, topic: Topic, remarks: Vec<Remark>) {
        if remarks.is_empty() {
            self.stale |= self.topics.remove(&topic).is_some();
        } else if self.topics.get(&topic) != Some(&remarks) {
            self.topics.insert(topic, remarks);
            self.stale = true;
        }
    }

    /// All that there is to say, in order; `None` when it is what it was the last time.
    pub(super) fn diagnostics(
        &mut self,
        origin: impl Fn(&ObjectRef) -> Option<Origin>,
    ) -> Option<Diagnostics> {
        if !mem::take(&mut self.stale) {
            return None;
        }
        let mut all = self.documents.clone();
        all.notices.extend(self.objects.values().flatten().cloned());
        let (overlaps, others): (Vec<_>, Vec<_>) = self
            .topics
            .iter()
            .partition(|(topic, _)| matches!(topic, Topic::Overlaps(_)));
        let once: BTreeSet<&Remark> = overlaps.into_iter().flat_map(|(_, remarks)| remarks).collect();
        let others = others.into_iter().flat_map(|(_, remarks)| remarks);
        for (object, kind, message) in others.chain(once) {
            all.notices.push(Notice {
                origin: origin(object),
                object: Some(object.clone()),
                kind: *kind,
                message: message.clone(),
            });
        }
        all.notices.sort();
        all.rejections.sort();
        Some(all)
    }
}

fn duplicate(name: &ObjectRef, first: &Accepted, second: &Accepted) -> Notice {
    Notice {
        origin: Some(second.origin.clone()),
        object: Some(name.clone()),
        kind: NoticeKind::Conflict,
        message: format!(
            "the same object stands in {} already: this one is ignored",
            first.origin
        ),
    }
}
