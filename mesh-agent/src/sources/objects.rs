//! All objects that are in force, for whoever asks: the publisher holds them, and answers between two snapshots.

use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use mesh_core::manifest::Accepted;
use mesh_core::snapshot::Diagnostics;
use thiserror::Error;

use super::publisher::Message;

/// How long the publisher may take: it answers when it has built what it is building.
const PATIENCE: Duration = Duration::from_secs(8);

/// What the sources hold.
#[derive(Clone, Debug, Default)]
pub struct AllObjects {
    /// The objects in force, in order of precedence.
    pub accepted: Vec<Accepted>,
    /// What was said about documents one by one.
    pub diagnostics: Diagnostics,
}

/// Why they are not told.
#[derive(Debug, Error)]
pub enum ObjectsError {
    /// A source has not said yet what it holds.
    #[error("no configuration is in force yet: `meshctl status` says what is waited for")]
    Waiting,
    /// The publisher does not answer.
    #[error("the configuration is busy, or the agent stops: try again")]
    Busy,
}

/// Asks the publisher.
#[derive(Clone, Debug)]
pub struct Objects {
    publisher: Sender<Message>,
}

impl Objects {
    pub(super) fn new(publisher: Sender<Message>) -> Self {
        Self { publisher }
    }

    /// All of them, as they are now. Blocks for a moment; not for the data path.
    ///
    /// # Errors
    /// See [`ObjectsError`].
    pub fn read(&self) -> Result<AllObjects, ObjectsError> {
        let (to, answer) = mpsc::channel();
        self.publisher
            .send(Message::Tell(to))
            .map_err(|_| ObjectsError::Busy)?;
        let told = answer.recv_timeout(PATIENCE).map_err(|_| ObjectsError::Busy)?;
        told.ok_or(ObjectsError::Waiting)
    }
}
