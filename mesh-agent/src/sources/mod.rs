//! Where the configuration comes from, and how it becomes the snapshot in force.
//!
//! A [`ConfigurationSource`] watches something and reports what it holds: a directory of files all of it whenever something changes, a
//! Kubernetes API server object by object. The [`Publisher`] puts the reports of all sources together, builds a snapshot off the data
//! path and publishes it; the first one when every source has said all that it holds.
//! Nothing here judges documents (mesh-core does) or decides about connections.

mod files;
pub mod kubernetes;
mod ledger;
mod objects;
mod publisher;
mod read;
mod scan;
mod status;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use mesh_core::manifest::{Accepted, Notice, Rejection};
use mesh_core::model::ObjectRef;
use thiserror::Error;

pub use files::FileSource;
pub use kubernetes::KubernetesSource;
pub use objects::{AllObjects, Objects, ObjectsError};
pub use publisher::Publisher;
pub use read::{Document, ReadError, read_documents};
pub use status::{
    FileStatus, KindBoard, KindState, KindStatus, ServerStatus, SourceState, SourceStatus, StatusReader,
    WriterStatus,
};

/// Why the configuration cannot be watched at all.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The directory is not there or may not be read.
    #[error("the configuration directory {path} cannot be read: {error}; see --config-dir")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// Nothing says how the API server is reached.
    #[error("{0}")]
    Access(#[from] kubernetes::AccessError),
    /// No thread could be started.
    #[error("no thread for {what} could be started: {error}; is the limit of threads or memory reached?")]
    Thread {
        /// What the thread was to do.
        what: &'static str,
        /// What the system says.
        error: std::io::Error,
    },
}

/// Everything that a source holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The objects in force, in order of precedence: of two with one name the first holds.
    pub accepted: Vec<Accepted>,
    /// Documents that are not in force.
    pub rejections: Vec<Rejection>,
    /// What there is to say that belongs to no accepted object.
    pub notices: Vec<Notice>,
    /// The files read, for sources that read files.
    pub files: Vec<FileStatus>,
}

/// What is in force of one object, and what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The version in force.
    pub accepted: Option<Accepted>,
    /// Why a later one is not.
    pub rejection: Option<Box<Rejection>>,
}

impl Held {
    /// Whether there is nothing left of the object.
    pub fn is_gone(&self) -> bool {
        self.accepted.is_none() && self.rejection.is_none()
    }
}

/// What is different from what a source said before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Objects that are new, different or gone.
    pub objects: Vec<(Arc<ObjectRef>, Held)>,
    /// What there is to say by subject, such as a kind; `None` takes it back.
    pub notices: Vec<(String, Option<Notice>)>,
    /// Everything that the source holds has been said now.
    pub complete: bool,
}

/// Where a source puts its reports.
#[derive(Clone, Debug)]
pub struct ReportSink {
    source: usize,
    sender: Sender<publisher::Message>,
}

impl ReportSink {
    /// Replaces what this source said before. Never blocks; once the publisher is gone it does nothing.
    pub fn send(&self, report: Report) {
        let message = publisher::Message::Report {
            source: self.source,
            report,
        };
        drop(self.sender.send(message));
    }

    /// Adds to what this source said before. Never blocks; once the publisher is gone it does nothing.
    pub fn change(&self, changes: Changes) {
        let message = publisher::Message::Changes {
            source: self.source,
            changes,
        };
        drop(self.sender.send(message));
    }
}

/// Keeps a source going; it stops when this is dropped.
pub trait RunningSource: Send {
    /// Has it look for changes now, whether or not it has heard of any.
    fn look_now(&self);

    /// What becomes of its objects together with others is told there.
    fn follow(&self, _status: &StatusReader) {}
}

/// Something that configuration comes from.
pub trait ConfigurationSource {
    /// What to call it in messages, such as `directory /etc/mesh`.
    fn name(&self) -> String;

    /// What it knows of itself at any time, kind by kind; nothing for sources that have no kinds apart.
    fn kinds(&self) -> KindBoard {
        KindBoard::default()
    }

    /// Starts to watch. What is there already is reported before this returns, as far as it can be had at once.
    ///
    /// # Errors
    /// When it cannot be watched at all. Everything that goes wrong later is part of the reports.
    fn start(self: Box<Self>, sink: ReportSink) -> Result<Box<dyn RunningSource>, SourceError>;
}
