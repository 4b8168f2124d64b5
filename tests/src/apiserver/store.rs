//! The objects, their versions, and what has happened to them: etcd and the watch cache, in miniature.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;

/// Where an object is: its resource (`group/plural`), namespace and name.
pub(super) type Key = (String, String, String);

/// Something that happened to an object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) resource: String,
    pub(super) before: Option<Arc<Value>>,
    pub(super) after: Option<Arc<Value>>,
}

/// Why something is not done: HTTP status, reason, words.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) details: Value,
}

impl Refusal {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Value::Null,
        }
    }

    /// The `Status` object.
    pub(super) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

/// All objects.
pub(super) struct Store {
    version: u64,
    /// Changes up to this version are forgotten.
    oldest: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    log: VecDeque<Change>,
    /// Lists that are handed out in pages, by the version of the list.
    pages: BTreeMap<u64, Vec<Arc<Value>>>,
    uids: u64,
    told: watch::Sender<u64>,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            version: 1000,
            oldest: 1000,
            objects: BTreeMap::new(),
            log: VecDeque::new(),
            pages: BTreeMap::new(),
            uids: 0,
            told: watch::Sender::new(1000),
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    pub(super) fn follow(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }

    /// Forgets what has happened so far, as etcd's compaction does; lists in pages too.
    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.oldest = self.version;
        self.log.clear();
        self.pages.clear();
        self.told.send_replace(self.version);
    }

    /// The objects of a resource, by namespace and name.
    pub(super) fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let wanted = |key: &Key| key.0 == resource && namespace.is_none_or(|namespace| key.1 == namespace);
        let found = self.objects.iter().filter(|(key, _)| wanted(key));
        found.map(|(_, object)| object.clone()).collect()
    }

    /// Keeps a list for its later pages.
    pub(super) fn keep(&mut self, list: Vec<Arc<Value>>) -> u64 {
        self.version += 1;
        self.pages.insert(self.version, list);
        self.version
    }

    /// The list of `version`; `None` when it is forgotten.
    pub(super) fn kept(&self, version: u64) -> Option<&Vec<Arc<Value>>> {
        self.pages.get(&version)
    }

    pub(super) fn get(&self, key: &Key) -> Result<Arc<Value>, Refusal> {
        self.objects.get(key).cloned().ok_or_else(|| not_found(key))
    }

    pub(super) fn create(&mut self, key: Key, object: Value) -> Result<Arc<Value>, Refusal> {
        self.uids += 1;
        let uid = format!("00000000-0000-4000-8000-{:012x}", self.uids);
        self.create_as(uid, key, object)
    }

    fn create_as(&mut self, uid: String, key: Key, mut object: Value) -> Result<Arc<Value>, Refusal> {
        if self.objects.contains_key(&key) {
            let (resource, _, name) = &key;
            let message = format!("{} {name:?} already exists", plural(resource));
            return Err(Refusal::new(409, "AlreadyExists", message));
        }
        let meta = &mut object["metadata"];
        meta["uid"] = uid.into();
        meta["generation"] = 1.into();
        meta["creationTimestamp"] = "2026-11-21T02:33:46Z".into();
        meta["managedFields"] = json!([{
            "manager": "tests", "operation": "Update", "time": "2026-11-21T02:33:46Z", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:labels": {".": {}}}, "f:spec": {}},
        }]);
        Ok(self.set(key, object))
    }

    /// Makes an object, under its uid if it has one, or puts this one in its place; of its metadata what the server owns stays.
    pub(super) fn put(&mut self, key: Key, object: Value) {
        let replaced = self.update(&key, |old| {
            *old = object.clone();
            Ok(())
        });
        if replaced.is_err() {
            let uid = object["metadata"]["uid"].as_str().map(str::to_owned);
            drop(match uid {
                Some(uid) => self.create_as(uid, key, object),
                None => self.create(key, object),
            });
        }
    }

    /// Puts `change`'s answer in place of an object. Of its metadata what the server owns stays.
    pub(super) fn update(
        &mut self,
        key: &Key,
        change: impl FnOnce(&mut Value) -> Result<(), Refusal>,
    ) -> Result<Arc<Value>, Refusal> {
        let before = self.get(key)?;
        let mut object = (*before).clone();
        change(&mut object)?;
        for field in ["uid", "creationTimestamp", "managedFields", "name", "namespace"] {
            match before["metadata"].get(field) {
                Some(value) => object["metadata"][field] = value.clone(),
                None => {
                    if let Some(meta) = object["metadata"].as_object_mut() {
                        meta.remove(field);
                    }
                }
            }
        }
        let generation = before["metadata"]["generation"].as_u64().unwrap_or(1);
        let grows = u64::from(object["spec"] != before["spec"]);
        object["metadata"]["generation"] = (generation + grows).into();
        object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
        if object == *before {
            return Ok(before);
        }
        Ok(self.set(key.clone(), object))
    }

    pub(super) fn delete(&mut self, key: &Key) -> Result<Arc<Value>, Refusal> {
        let Some(before) = self.objects.remove(key) else {
            return Err(not_found(key));
        };
        self.version += 1;
        let mut last = (*before).clone();
        last["metadata"]["resourceVersion"] = self.version.to_string().into();
        let last = Arc::new(last);
        self.tell(&key.0, Some(last.clone()), None);
        Ok(last)
    }

    /// Removes all objects of a resource.
    pub(super) fn clear(&mut self, resource: &str) {
        let keys: Vec<Key> = self
            .objects
            .keys()
            .filter(|key| key.0 == resource)
            .cloned()
            .collect();
        for key in keys {
            drop(self.delete(&key));
        }
    }

    fn set(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let after = Arc::new(object);
        let before = self.objects.insert(key.clone(), after.clone());
        self.tell(&key.0, before, Some(after.clone()));
        after
    }

    fn tell(&mut self, resource: &str, before: Option<Arc<Value>>, after: Option<Arc<Value>>) {
        self.log.push_back(Change {
            version: self.version,
            resource: resource.to_owned(),
            before,
            after,
        });
        self.told.send_replace(self.version);
    }

    /// What happened to a resource after `version`.
    pub(super) fn since(&self, resource: &str, version: u64) -> Vec<Change> {
        let wanted = |change: &&Change| change.version > version && change.resource == resource;
        self.log.iter().filter(wanted).cloned().collect()
    }
}

fn plural(resource: &str) -> String {
    match resource.split_once('/') {
        Some(("", plural)) => plural.to_owned(),
        Some((group, plural)) => format!("{plural}.{group}"),
        None => resource.to_owned(),
    }
}

fn not_found((resource, _, name): &Key) -> Refusal {
    Refusal::new(
        404,
        "NotFound",
        format!("{} {name:?} not found", plural(resource)),
    )
}

/// RFC 7386.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            if let Some(fields) = target.as_object_mut() {
                fields.remove(key);
            }
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}
