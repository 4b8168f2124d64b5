//! What `meshctl` shows of the configuration.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use mesh_core::manifest::{Notice, Rejection};
use serde::{Deserialize, Serialize};

/// One file of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStatus {
    /// Its path.
    pub path: String,
    /// Objects it gives.
    pub accepted: usize,
    /// Objects of which an earlier version stays in force.
    pub held: usize,
    /// Documents that are not in force.
    pub rejected: usize,
    /// Why it cannot be read.
    pub error: Option<String>,
}

/// One source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceState {
    /// What it is called.
    pub name: String,
    /// Whether it has reported at all.
    pub synced: bool,
    /// Objects in force from it.
    pub objects: usize,
    /// Its files.
    pub files: Vec<FileStatus>,
}

/// The configuration in force and what there is to say about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Version of the snapshot in force.
    pub version: u64,
    /// Seconds since it was published.
    pub age_seconds: u64,
    /// Where it comes from.
    pub sources: Vec<SourceState>,
    /// Documents that are not in force.
    pub rejections: Vec<Rejection>,
    /// Unknown kinds and fields, conflicts, things that are ignored or changed.
    pub notices: Vec<Notice>,
}

#[derive(Debug)]
struct Current {
    status: SourceStatus,
    published: SystemTime,
}

/// Reads the status; cheap to clone. Not for the data path.
#[derive(Clone, Debug)]
pub struct StatusReader {
    current: Arc<Mutex<Current>>,
}

impl StatusReader {
    pub(super) fn new(status: SourceStatus, published: SystemTime) -> Self {
        Self {
            current: Arc::new(Mutex::new(Current { status, published })),
        }
    }

    pub(super) fn set(&self, status: SourceStatus, published: SystemTime) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Current { status, published };
    }

    /// Another status for the same snapshot.
    pub(super) fn replace(&self, status: SourceStatus) {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).status = status;
    }

    /// The status now.
    pub fn read(&self) -> SourceStatus {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let age = SystemTime::now()
            .duration_since(current.published)
            .unwrap_or_default();
        SourceStatus {
            age_seconds: age.as_secs(),
            ..current.status.clone()
        }
    }
}
