//! The YAML (or JSON) documents as written, and what is wrong with them.
//!
//! [`parse`] turns a file into accepted [`Object`]s, [`Rejection`]s and [`Notice`]s. Each document stands for itself: a bad one spoils
//! none of its neighbours. Nothing here looks at other documents, settings or the host; nothing here decides about connections.

mod authorization_policy;
mod check;
mod decode;
mod exclusions;
mod kinds;
mod locate;
mod peer_authentication;
mod pod;
mod positions;
mod probes;
mod report;
mod service;
mod split;
mod templates;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::Value;

use crate::model::{Object, ObjectRef};
use decode::{Decoded, Head};
use positions::Positions;
use split::Document;

pub use authorization_policy::{Document as AuthorizationPolicyDocument, authorization_policy};
pub(crate) use check::special;
pub use kinds::{KINDS, Kind};
pub use locate::Locator;
pub use peer_authentication::{Document as PeerAuthenticationDocument, peer_authentication};
pub use pod::{PLACEMENT, namespace, node, pod};
pub use report::{Invalid, Notice, NoticeKind, Origin, Path, Rejection, Remarks, Step};
pub use service::{endpoint_slice, service};
pub use templates::Template;

/// Unknown fields of one document that are named one by one; of more, only the number is told.
const NAMED_FIELDS: usize = 32;
/// Lists within lists that are followed.
const LIST_DEPTH: usize = 4;

/// An object that passed the checks of its document, with what there is to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The object.
    pub object: Arc<Object>,
    /// Where it came from.
    pub origin: Origin,
    /// Unknown fields, values that were changed or ignored.
    pub notices: Vec<Notice>,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The accepted objects in the order of the file.
    pub accepted: Vec<Accepted>,
    /// The documents that are not in force. One without an object could not even be told apart.
    pub rejections: Vec<Rejection>,
    /// What belongs to no accepted object: unknown kinds.
    pub notices: Vec<Notice>,
}

/// Reads the documents of `bytes`. `file` is the name to use in messages.
pub fn parse(file: &str, bytes: &[u8]) -> Contents {
    read(file, bytes, None).0
}

/// Reads the documents of `bytes`, and the pods that documents of other kinds, such as Deployments, make: of these no more is said than
/// of pods.
pub fn parse_with_templates(file: &str, bytes: &[u8]) -> (Contents, Vec<Template>) {
    read(file, bytes, Some(Vec::new()))
}

fn read(file: &str, bytes: &[u8], templates: Option<Vec<Template>>) -> (Contents, Vec<Template>) {
    let mut reader = Reader {
        file: file.into(),
        contents: Contents::default(),
        templates,
    };
    match std::str::from_utf8(bytes) {
        Ok(text) => split::documents(text)
            .into_iter()
            .for_each(|document| reader.document(document)),
        Err(error) => {
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + good.iter().filter(|byte| **byte == b'\n').count() as u64;
            let column = 1 + good.iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
            reader.reject((line, column), None, "the file is not UTF-8 text".to_owned());
        }
    }
    (reader.contents, reader.templates.unwrap_or_default())
}

/// Collects the contents of one file.
struct Reader {
    file: Arc<str>,
    contents: Contents,
    /// Where they are asked for.
    templates: Option<Vec<Template>>,
}

/// A document that could be read, with the places of its values once somebody asks for them.
struct Places<'a> {
    document: Document<'a>,
    positions: Option<Positions>,
}

impl Places<'_> {
    fn find(&mut self, prefix: &Path, path: &Path) -> (u64, u64) {
        let text = self.document.text;
        let positions = self.positions.get_or_insert_with(|| Positions::read(text));
        let whole = Path(prefix.0.iter().chain(&path.0).cloned().collect());
        let (line, column) = positions.find(&whole).unwrap_or((1, 1));
        (line + self.document.line_offset, column)
    }
}

impl Reader {
    fn document(&mut self, document: Document<'_>) {
        let value = match decode::yaml(document.text) {
            Ok(Value::Null) => return,
            Ok(value) => value,
            Err((position, message)) => {
                let (line, column) = position.unwrap_or((1, 1));
                // Broken YAML below a readable head: enough to say whose document it is.
                let object = decode::guess_head(document.text).and_then(|head| head.object());
                return self.reject((line + document.line_offset, column), object, message);
            }
        };
        let mut places = Places {
            document,
            positions: None,
        };
        self.value(&mut places, Path::default(), &value, None, LIST_DEPTH);
    }

    /// One object, or a list of them. `kind` is what a typed list says of its elements.
    fn value(&mut self, places: &mut Places<'_>, at: Path, value: &Value, kind: Option<&Head>, depth: usize) {
        if let (Value::Array(items), true) = (value, depth > 0) {
            for (i, item) in items.iter().enumerate() {
                self.value(places, at.clone().index(i), item, None, depth - 1);
            }
            return;
        }
        let head = match Head::read(value, kind) {
            Ok(head) => head,
            Err(invalid) => {
                let position = places.find(&at, &invalid.path);
                return self.reject(position, None, invalid.message);
            }
        };
        if let (Some(items), true) = (head.items(value), depth > 0) {
            let kind = head.of_items();
            for (i, item) in items.iter().enumerate() {
                let at = at.clone().key("items").index(i);
                self.value(places, at, item, kind.as_ref(), depth - 1);
            }
            return;
        }
        match decode::object(&head, value) {
            Decoded::UnknownKind if self.template(places, &at, &head, value) => {}
            Decoded::UnknownKind => self.unknown_kind(places, &at, &head),
            Decoded::Rejected(invalid) => {
                let position = places.find(&at, &invalid.path);
                self.reject(position, head.object(), invalid.message);
            }
            Decoded::Object {
                object,
                ignored,
                remarks,
            } => {
                let notices = self.notices(places, &at, &object.name(), ignored, remarks);
                let (line, column) = places.find(&at, &Path::default());
                let origin = self.origin(line, column);
                self.contents.accepted.push(Accepted {
                    object: Arc::new(object),
                    origin,
                    notices,
                });
            }
        }
    }

    fn unknown_kind(&mut self, places: &mut Places<'_>, at: &Path, head: &Head) {
        let (line, column) = places.find(at, &Path::of("kind"));
        let notice = Notice {
            origin: Some(self.origin(line, column)),
            object: head.object(),
            kind: match Kind::is_of_meshes(&head.api_version, &head.kind) {
                true => NoticeKind::KindWithoutEffect,
                false => NoticeKind::UnknownKind,
            },
            message: format!(
                "{} {} is a kind that this agent does not know: the document has no effect",
                head.api_version, head.kind
            ),
        };
        self.contents.notices.push(notice);
    }

    fn notices(
        &self,
        places: &mut Places<'_>,
        at: &Path,
        object: &ObjectRef,
        ignored: Vec<Path>,
        remarks: Remarks,
    ) -> Vec<Notice> {
        notices_of(object, &ignored, remarks, |path| {
            let (line, column) = places.find(at, path);
            self.origin(line, column)
        })
    }

    fn reject(&mut self, (line, column): (u64, u64), object: Option<ObjectRef>, message: String) {
        let origin = self.origin(line, column);
        self.contents.rejections.push(Rejection {
            origin,
            object,
            message,
        });
    }

    fn origin(&self, line: u64, column: u64) -> Origin {
        Origin {
            file: self.file.clone(),
            line,
            column,
        }
    }
}

/// What there is to say about an accepted object; `place` finds where a value of its document stands.
fn notices_of(
    object: &ObjectRef,
    ignored: &[Path],
    remarks: Remarks,
    mut place: impl FnMut(&Path) -> Origin,
) -> Vec<Notice> {
    let mut notices = Vec::new();
    let mut add = |path: &Path, kind: NoticeKind, message: String| {
        notices.push(Notice {
            origin: Some(place(path)),
            object: Some(object.clone()),
            kind,
            message,
        });
    };
    for path in ignored.iter().take(NAMED_FIELDS) {
        let message = format!("unknown field {path}: it has no effect");
        add(path, NoticeKind::UnknownField, message);
    }
    if let Some(more) = ignored.len().checked_sub(NAMED_FIELDS).filter(|more| *more > 0) {
        let message = format!("{more} more unknown fields: they have no effect");
        add(&Path::default(), NoticeKind::UnknownField, message);
    }
    for (path, kind, message) in remarks.0 {
        add(&path, kind, message);
    }
    notices.sort();
    notices
}
