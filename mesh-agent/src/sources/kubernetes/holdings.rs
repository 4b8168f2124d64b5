//! What is known of one kind: the version in force of each object, and why a later one is not. Knows nothing of requests.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::manifest::{Kind, Notice, NoticeKind, Origin, PLACEMENT};
use mesh_core::model::{ObjectRef, Sharing};
use serde_json::Value;

use super::events::Complaint;
use super::journal::{Draft, Journal};
use super::status::Statuses;
use super::{Changes, Shared};
use crate::sources::Held;

/// What a document's reading depends on.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// This agent's node.
    pub(super) node_name: String,
    /// Whether annotations that place a pod are believed.
    pub(super) placement: bool,
}

/// The objects of a kind.
pub(super) struct Holdings {
    kind: &'static Kind,
    index: usize,
    reading: Reading,
    shared: Arc<Shared>,
    origin: Origin,
    objects: HashMap<Arc<ObjectRef>, Held>,
    sharing: Sharing,
    journal: Journal,
    /// An earlier run has kept a full list.
    stored: bool,
    /// The publisher knows them: everything that changes is said from here on.
    said: bool,
}

/// A list that is being read.
#[derive(Default)]
pub(super) struct Listing {
    seen: HashSet<Arc<ObjectRef>>,
    changed: Vec<(Arc<ObjectRef>, Held)>,
    /// Objects whose document in the list is bad: the one before stays kept.
    keep: HashSet<Arc<ObjectRef>>,
    draft: Option<Draft>,
}

impl Holdings {
    /// Nothing, yet. What is kept goes below `kept`.
    pub(super) fn new(
        kind: &'static Kind,
        index: usize,
        reading: Reading,
        shared: Arc<Shared>,
        kept: &Path,
    ) -> Self {
        Self {
            kind,
            index,
            reading,
            shared,
            origin: Origin {
                file: "kubernetes".into(),
                line: 0,
                column: 0,
            },
            objects: HashMap::new(),
            sharing: Sharing::default(),
            journal: Journal::new(kept, kind.name),
            stored: false,
            said: false,
        }
    }

    /// Reads what an earlier run has kept. It is not in force by that: a list may come, or [`say`](Self::say).
    pub(super) fn load(&mut self) {
        let mut objects = HashMap::new();
        let mut documents = 0;
        let mut sharing = Sharing::default();
        self.stored = self.journal.read(|mut document| {
            documents += 1;
            let read = self.read(&mut document, None);
            let good = read.filter(|(_, held)| held.accepted.is_some());
            objects.extend(good.map(|(name, held)| (Arc::new(name), shared(held, &mut sharing))));
        });
        self.sharing = sharing;
        if self.stored {
            tracing::debug!(
                target: "mesh_agent::kubernetes",
                kind = self.kind.name, documents, "an earlier run has kept them"
            );
            self.objects = objects;
        }
    }

    /// Whether there is a full list, though an old one.
    pub(super) fn is_stored(&self) -> bool {
        self.stored
    }

    /// How long ago what is kept was written.
    pub(super) fn kept_for(&self) -> Duration {
        self.journal.age()
    }

    /// Whether these objects are in force.
    pub(super) fn is_said(&self) -> bool {
        self.said
    }

    /// Puts all that is known in force.
    pub(super) fn say(&mut self) {
        if std::mem::replace(&mut self.said, true) {
            return;
        }
        let objects = self
            .objects
            .iter()
            .map(|(name, held)| (name.clone(), held.clone()));
        self.shared.change(Changes {
            objects: objects.collect(),
            ..Changes::default()
        });
        self.count();
        self.shared.kind_is_known();
    }

    /// Begins a full list.
    pub(super) fn begin(&mut self) -> Listing {
        Listing {
            draft: self.journal.draft(),
            ..Listing::default()
        }
    }

    /// An object of the list, in `version` of the kind.
    pub(super) fn listed(&mut self, listing: &mut Listing, mut document: Value, version: &str) {
        let told = Statuses::read(self.kind, &document, version);
        let Some((name, held)) = self.learn(&mut document, version) else {
            return;
        };
        if let Some(told) = told {
            self.shared.statuses.put(&name, told, &held);
        }
        if held.rejection.is_some() {
            self.complain(&name, &held, &document);
            listing.keep.insert(name.clone());
        } else if let Some(draft) = &mut listing.draft
            && draft.put(&document).is_err()
        {
            // Another draft would fail alike; the old file is wrong from now on, which the commit without a draft sees to.
            listing.draft = None;
        }
        if self.objects.get(&name) != Some(&held) {
            listing.changed.push((name.clone(), held));
        }
        listing.seen.insert(name);
    }

    /// The list is whole: what is not in it is gone.
    pub(super) fn commit(&mut self, listing: Listing) {
        let Listing {
            seen,
            mut changed,
            keep,
            draft,
        } = listing;
        let gone = self.objects.keys().filter(|name| !seen.contains(*name));
        changed.extend(gone.map(|name| (name.clone(), Held::default())));
        match draft {
            Some(draft) => self.journal.commit(draft, &keep),
            None => self.journal.forget(),
        }
        if self.said {
            self.apply(changed);
        } else {
            self.replace(&changed);
            self.say();
        }
    }

    /// There are no objects, because there is no such kind.
    pub(super) fn clear(&mut self) {
        let listing = self.begin();
        self.commit(listing);
    }

    /// This is how an object is now. Most of what changes in a cluster changes nothing here.
    pub(super) fn put(&mut self, mut document: Value, version: &str) {
        let told = Statuses::read(self.kind, &document, version);
        let Some((name, held)) = self.learn(&mut document, version) else {
            return;
        };
        if let Some(told) = told {
            self.shared.statuses.put(&name, told, &held);
        }
        if self.objects.get(&name) == Some(&held) {
            return;
        }
        match held.rejection {
            None => self.journal.put(&document),
            Some(_) => self.complain(&name, &held, &document),
        }
        self.apply(vec![(name, held)]);
        self.journal.shorten(self.objects.len());
    }

    /// An object is gone.
    pub(super) fn delete(&mut self, document: &Value) {
        if let Some(name) = self.kind.object(document) {
            self.journal.delete(&name);
            self.apply(vec![(self.name(name), Held::default())]);
        }
    }

    /// Tells the owner, unless that was done.
    fn complain(&self, name: &ObjectRef, held: &Held, document: &Value) {
        let before = self.objects.get(name).and_then(|held| held.rejection.as_deref());
        if let Some(rejection) = held
            .rejection
            .as_deref()
            .filter(|rejection| before != Some(*rejection))
        {
            self.shared.complaints.send(Complaint::new(document, rejection));
        }
    }

    fn apply(&mut self, changed: Vec<(Arc<ObjectRef>, Held)>) {
        if changed.is_empty() {
            return;
        }
        self.replace(&changed);
        self.shared.change(Changes {
            objects: changed,
            ..Changes::default()
        });
        self.count();
    }

    fn replace(&mut self, changed: &[(Arc<ObjectRef>, Held)]) {
        for (name, held) in changed {
            if held.is_gone() {
                self.objects.remove(name);
                self.shared.statuses.remove(name);
            } else {
                self.objects.insert(name.clone(), held.clone());
            }
        }
    }

    fn count(&self) {
        let objects = self.objects.len();
        self.shared
            .board
            .update(self.index, |status| status.objects = objects);
    }

    /// The name, held once for all who keep it.
    fn name(&self, name: ObjectRef) -> Arc<ObjectRef> {
        let known = self.objects.get_key_value(&name);
        known.map_or_else(|| Arc::new(name), |(known, _)| Arc::clone(known))
    }

    /// As [`read`](Self::read), for a document that the server has sent in `version`.
    fn learn(&mut self, document: &mut Value, version: &str) -> Option<(Arc<ObjectRef>, Held)> {
        let (name, held) = self.read(document, Some(version))?;
        Some((self.name(name), shared(held, &mut self.sharing)))
    }

    /// The object in a document, and what is in force of it with that document; `None` for one without a name. The document is left with
    /// what counts. `version` is none for documents that were kept: they say it themselves.
    fn read(&self, document: &mut Value, version: Option<&str>) -> Option<(ObjectRef, Held)> {
        let name = self.kind.object(document)?;
        if let Some(version) = version {
            self.kind.slim(document, version);
            if let Some(meta) = document.get_mut("metadata").and_then(Value::as_object_mut) {
                meta.remove("resourceVersion");
                meta.remove("generation");
            }
        }
        let unplaced = self.kind.name == "Pod" && self.own_reading(document);
        let held = match self.kind.accept(&self.origin, document) {
            Ok(mut accepted) => {
                if unplaced {
                    accepted.notices.push(self.unplaced(&name));
                    accepted.notices.sort();
                }
                Held {
                    accepted: Some(accepted),
                    rejection: None,
                }
            }
            Err(rejection) => Held {
                accepted: self.objects.get(&name).and_then(|held| held.accepted.clone()),
                rejection: Some(rejection),
            },
        };
        Some((name, held))
    }

    /// Takes away what must not be believed of a pod, and what only its own node needs. Says whether a pod of ours wanted to be believed.
    fn own_reading(&self, document: &mut Value) -> bool {
        let node = document.pointer("/spec/nodeName").and_then(Value::as_str);
        let local = node == Some(&*self.reading.node_name);
        if !local {
            for list in ["/spec/containers", "/spec/initContainers"] {
                let containers = document.pointer_mut(list).and_then(Value::as_array_mut);
                for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
                    for key in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
                        container.remove(key);
                    }
                }
            }
        }
        if self.reading.placement {
            return false;
        }
        let annotations = document
            .pointer_mut("/metadata/annotations")
            .and_then(Value::as_object_mut);
        let Some(annotations) = annotations else {
            return false;
        };
        let removed = PLACEMENT.iter().filter(|key| annotations.remove(**key).is_some());
        removed.count() > 0 && local
    }

    fn unplaced(&self, name: &ObjectRef) -> Notice {
        Notice {
            origin: Some(self.origin.clone()),
            object: Some(name.clone()),
            kind: NoticeKind::Ignored,
            message: format!(
                "annotations {} are not believed: whoever may create pods could write them (--kubernetes-pod-placement)",
                PLACEMENT.join(" and ")
            ),
        }
    }
}

/// The same, with parts that other objects have, too, held once.
fn shared(mut held: Held, sharing: &mut Sharing) -> Held {
    if let Some(accepted) = &mut held.accepted {
        sharing.share(&mut accepted.object);
    }
    held
}
