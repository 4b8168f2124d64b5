//! From text to a value, from a value to a typed document, from that to a model object.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kinds::Kind;
use super::positions::Position;
use super::report::{Invalid, Path, Remarks, Step};
use crate::model::{Object, ObjectRef};

/// Length of a broken document, in bytes, up to which its head is searched for.
const GUESS_LIMIT: usize = 256 * 1024;

/// What became of a document.
pub(super) enum Decoded {
    /// Its kind is not among [`KINDS`](super::KINDS).
    UnknownKind,
    /// It cannot be what it says.
    Rejected(Invalid),
    /// It is this.
    Object {
        object: Object,
        ignored: Vec<Path>,
        remarks: Remarks,
    },
}

/// Reads one YAML document (JSON is YAML).
pub(super) fn yaml(text: &str) -> Result<Value, (Option<Position>, String)> {
    // Lists of a whole cluster are large; what bounds a file is its size, which the source checks.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 20_000_000,
            max_nodes: 10_000_000,
            max_documents: 2,
        },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let error = error.without_snippet();
        let position = error
            .location()
            .filter(|l| l.line() > 0)
            .map(|l| (l.line(), l.column()));
        (position, plain_message(error, position))
    })
}

/// The message without the position that its text ends in: we name the place in the file, not in the document.
fn plain_message(error: &serde_saphyr::Error, position: Option<Position>) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    // Advice for programmers, not for those who write documents.
    let first = first.split(", set DuplicateKeyPolicy").next().unwrap_or(first);
    let Some((line, column)) = position else {
        return first.to_owned();
    };
    let without = first.replace(&format!(" at line {line}, column {column}"), "");
    let prefix = format!("line {line} column {column}: ");
    without.strip_prefix(&prefix).unwrap_or(&without).to_owned()
}

/// `apiVersion`, `kind` and the names of a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) api_version: String,
    pub(super) kind: String,
    namespace: Option<String>,
    name: Option<String>,
}

impl Head {
    /// Reads it; an element of a typed list may leave `apiVersion` and `kind` to the list.
    pub(super) fn read(value: &Value, of_list: Option<&Head>) -> Result<Self, Invalid> {
        let Value::Object(fields) = value else {
            let message = "expected a Kubernetes object (apiVersion, kind, metadata)";
            return Err(Invalid::at(Path::default(), message));
        };
        let text = |key: &str| match fields.get(key) {
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
            None | Some(Value::Null) => Ok(None),
            Some(_) => Err(Invalid::at(Path::of(key), format!("{key}: expected a text"))),
        };
        let missing = |key: &str| {
            let message =
                format!("{key} is missing: expected a Kubernetes object (apiVersion, kind, metadata)");
            Invalid::at(Path::default(), message)
        };
        let api_version = text("apiVersion")?.or_else(|| of_list.map(|list| list.api_version.clone()));
        let kind = text("kind")?.or_else(|| of_list.map(|list| list.kind.clone()));
        let meta = |key: &str| value.get("metadata")?.get(key)?.as_str().map(str::to_owned);
        Ok(Self {
            api_version: api_version.ok_or_else(|| missing("apiVersion"))?,
            kind: kind.ok_or_else(|| missing("kind"))?,
            namespace: meta("namespace"),
            name: meta("name"),
        })
    }

    /// The elements, when this is a list.
    pub(super) fn items<'v>(&self, value: &'v Value) -> Option<&'v Vec<Value>> {
        match value.get("items") {
            Some(Value::Array(items)) if self.kind.ends_with("List") => Some(items),
            _ => None,
        }
    }

    /// What a typed list, such as a `PodList`, says of its elements.
    pub(super) fn of_items(&self) -> Option<Head> {
        let kind = self.kind.strip_suffix("List").filter(|kind| !kind.is_empty())?;
        Some(Head {
            api_version: self.api_version.clone(),
            kind: kind.to_owned(),
            ..Head::default()
        })
    }

    /// Which object it is, when it has a name.
    pub(super) fn object(&self) -> Option<ObjectRef> {
        let namespace = match self.namespace.as_deref() {
            _ if !Kind::is_namespaced(&self.kind) => "",
            None | Some("") => "default",
            Some(namespace) => namespace,
        };
        let name = self.name.as_deref().filter(|name| !name.is_empty())?;
        Some(ObjectRef::new(&self.kind, namespace, name))
    }
}

/// What the top of a document says that cannot be read as a whole. It names a document in messages and keeps its last good version in
/// force, nothing more.
pub(super) fn guess_head(text: &str) -> Option<Head> {
    if text.len() > GUESS_LIMIT {
        return None;
    }
    let mut end = text.len();
    // Shorter and shorter beginnings, by whole lines, a few times: an error is mostly near the end of what is well-formed.
    for _ in 0..64 {
        let part = text.get(..end)?;
        if let Ok(value) = yaml(part)
            && let Ok(head) = Head::read(&value, None)
        {
            return head.name.is_some().then_some(head);
        }
        end = part.trim_end_matches('\n').rfind('\n')? + 1;
    }
    None
}

/// Reads the object that `head` announces.
pub(super) fn object(head: &Head, value: &Value) -> Decoded {
    let Some(kind) = Kind::of(&head.api_version, &head.kind) else {
        return Decoded::UnknownKind;
    };
    // An element of a typed list comes without these two, which its type wants.
    let mut whole;
    let value = match value {
        Value::Object(fields) if !fields.contains_key("kind") || !fields.contains_key("apiVersion") => {
            whole = fields.clone();
            whole.insert("apiVersion".into(), head.api_version.clone().into());
            whole.insert("kind".into(), head.kind.clone().into());
            &Value::Object(whole)
        }
        value => value,
    };
    // k8s-openapi knows one version of a kind, and checks it.
    kind.decode(value)
}

/// Reads a document as `T`, and makes a model object of that.
pub(super) fn convert<T, F>(value: &Value, into_model: F) -> Decoded
where
    T: DeserializeOwned,
    F: FnOnce(&T, &mut Remarks) -> Result<Object, Invalid>,
{
    let (document, ignored) = match typed::<T>(value) {
        Ok(read) => read,
        Err(invalid) => return Decoded::Rejected(invalid),
    };
    let mut remarks = Remarks::default();
    match into_model(&document, &mut remarks) {
        Ok(object) => Decoded::Object {
            object,
            ignored,
            remarks,
        },
        Err(invalid) => Decoded::Rejected(invalid),
    }
}

/// The typed document and the paths of the fields that its type does not have.
fn typed<T: DeserializeOwned>(value: &Value) -> Result<(T, Vec<Path>), Invalid> {
    let mut ignored = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    match serde_ignored::deserialize(tracked, |path| ignored.push(ignored_path(&path))) {
        Ok(document) => Ok((document, ignored)),
        Err(error) => {
            let path = tracked_path(&track.path());
            let message = format!("{path}: {error}");
            Err(Invalid::at(path, message))
        }
    }
}

fn ignored_path(path: &serde_ignored::Path<'_>) -> Path {
    use serde_ignored::Path as Ignored;
    match path {
        Ignored::Root => Path::default(),
        Ignored::Seq { parent, index } => ignored_path(parent).index(*index),
        Ignored::Map { parent, key } => ignored_path(parent).key(key),
        Ignored::Some { parent } | Ignored::NewtypeStruct { parent } | Ignored::NewtypeVariant { parent } => {
            ignored_path(parent)
        }
    }
}

fn tracked_path(path: &serde_path_to_error::Path) -> Path {
    use serde_path_to_error::Segment;
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    Path(path.iter().filter_map(step).collect())
}
