//! What is said about a document: where it stands, why it was rejected, what was ignored in it.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::ObjectRef;

/// A place in a configuration source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The file, as the source names it.
    pub file: Arc<str>,
    /// Line, from 1; 0 where unknown.
    pub line: u64,
    /// Column, from 1; 0 where unknown.
    pub column: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}:{}", self.file, self.column),
        }
    }
}

/// A document that is not in force, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rejection {
    /// Where.
    #[serde(flatten)]
    pub origin: Origin,
    /// Which object it was meant to be, where that much could be read.
    pub object: Option<ObjectRef>,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.object {
            Some(object) => write!(f, "{}: {object} rejected: {}", self.origin, self.message),
            None => write!(f, "{}: document rejected: {}", self.origin, self.message),
        }
    }
}

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    /// A kind that this agent does not know: the document has no effect.
    UnknownKind,
    /// A kind by which meshes are configured, and that this agent does not know: what it asks for does not happen.
    KindWithoutEffect,
    /// A field that this agent does not know: it has no effect.
    UnknownField,
    /// Something known that is not applied here.
    Ignored,
    /// Two objects claim the same thing; the message says which one holds.
    Conflict,
    /// Applied, but as something else than what was written.
    Changed,
    /// An attribute of HTTP in a policy: it is not looked at, and its rule is judged on the safe side.
    HttpAttribute,
}

/// Something a person should know about an accepted document.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Notice {
    /// Where, when it came from a file.
    pub origin: Option<Origin>,
    /// About which object.
    pub object: Option<ObjectRef>,
    /// What it is about.
    pub kind: NoticeKind,
    /// For people.
    pub message: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// A step into a document.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Into the value of this key.
    Key(String),
    /// Into this element.
    Index(usize),
}

/// A way from a document's root to one of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Path(pub Vec<Step>);

impl Path {
    /// From a text such as `status.podIPs.1.ip`: numbers are indexes.
    pub fn of(text: &str) -> Self {
        let step = |part: &str| match part.parse() {
            Ok(index) => Step::Index(index),
            Err(_) => Step::Key(part.to_owned()),
        };
        Self(text.split('.').map(step).collect())
    }

    /// One key further.
    pub fn key(mut self, key: &str) -> Self {
        self.0.push(Step::Key(key.to_owned()));
        self
    }

    /// One element further.
    pub fn index(mut self, index: usize) -> Self {
        self.0.push(Step::Index(index));
        self
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("the document");
        }
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if key.contains('.') => write!(f, "[{key:?}]")?,
                Step::Key(key) if i == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// What makes an object unacceptable, by its place within the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Where in the document.
    pub path: Path,
    /// What is wrong and what was expected.
    pub message: String,
}

impl Invalid {
    /// At `path`, because of `message`.
    pub fn at(path: Path, message: impl Into<String>) -> Self {
        Self {
            path,
            message: message.into(),
        }
    }
}

/// Remarks collected while an object is converted.
#[derive(Clone, Debug, Default)]
pub struct Remarks(pub Vec<(Path, NoticeKind, String)>);

impl Remarks {
    /// Adds one.
    pub fn add(&mut self, path: Path, kind: NoticeKind, message: impl Into<String>) {
        self.0.push((path, kind, message.into()));
    }
}
