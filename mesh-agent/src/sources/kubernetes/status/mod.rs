//! Status conditions: they tell the owner of an object, at the object, what has become of it. Of all agents of a cluster one writes them, the
//! one that holds a Lease, and only what is not there yet.
//!
//! Owns what the followers have seen of the objects that get conditions. Decides nothing about documents, and is in nobody's way: without
//! the right to write, all else goes on.

mod conditions;
mod lease;
mod writer;

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use mesh_core::manifest::Kind;
use mesh_core::model::ObjectRef;
use serde_json::Value;
use tokio::sync::Notify;

use self::conditions::{Condition, Row};
use crate::sources::{Held, StatusReader};

use super::lock;

pub(super) use self::writer::{Writer, run};

/// The name of the Lease, in the agents' namespace.
const LEASE: &str = "mesh-agent-status";

/// What was seen of an object, and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    /// In which version of the kind.
    version: String,
    /// `metadata.uid`.
    uid: String,
    /// `metadata.generation`.
    generation: i64,
    /// The condition that the object has now.
    present: Option<Condition>,
    /// What is in force of it.
    held: Held,
}

/// What a document says for itself, before it is slimmed.
#[derive(Clone, Debug)]
pub(super) struct Told {
    version: String,
    uid: String,
    generation: i64,
    present: Option<Condition>,
}

/// The objects that get conditions, as they were seen last.
#[derive(Default)]
pub(super) struct Statuses {
    seen: Mutex<BTreeMap<ObjectRef, Seen>>,
    changed: Notify,
    /// What the publisher finds out about objects together.
    reader: OnceLock<StatusReader>,
}

impl Statuses {
    /// Reads what a status is made from; `None` for kinds that have none.
    pub(super) fn read(kind: &Kind, document: &Value, version: &str) -> Option<Told> {
        let row = Row::of(kind.name)?;
        let uid = document.pointer("/metadata/uid").and_then(Value::as_str);
        Some(Told {
            version: version.to_owned(),
            uid: uid.unwrap_or_default().to_owned(),
            generation: document
                .pointer("/metadata/generation")
                .and_then(Value::as_i64)
                .unwrap_or_default(),
            present: (row.read)(document),
        })
    }

    /// An object was heard, and this is in force of it.
    pub(super) fn put(&self, name: &ObjectRef, told: Told, held: &Held) {
        let seen = Seen {
            version: told.version,
            uid: told.uid,
            generation: told.generation,
            present: told.present,
            held: held.clone(),
        };
        let mut all = lock(&self.seen);
        if all.get(name) != Some(&seen) {
            all.insert(name.clone(), seen);
            self.changed.notify_one();
        }
    }

    /// An object is gone.
    pub(super) fn remove(&self, name: &ObjectRef) {
        lock(&self.seen).remove(name);
    }

    /// Who knows what objects do to each other.
    pub(super) fn follow(&self, reader: &StatusReader) {
        // Once; there is one publisher.
        let _ = self.reader.set(reader.clone());
    }
}
