//! A connection's entry in the log, which tells an orderly end from one that was cut short.

use std::sync::Arc;

use mesh_core::authz::Judgement;
use mesh_core::plan::Refusal;

use crate::telemetry::connections::{ByteCounts, Connection, ResponseFlag};
use crate::telemetry::policy::RefusalId;

/// The guard of a connection that is being carried. Dropped without [`Carried::ended`] or a failure, because its task was cancelled or
/// panicked, it is logged as cut off.
#[derive(Debug)]
pub struct Carried {
    connection: Connection,
    done: bool,
}

impl Carried {
    /// Watches over `connection`.
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            done: false,
        }
    }

    /// Where the copy loops count its bytes.
    pub fn counts(&self) -> &Arc<ByteCounts> {
        self.connection.counts()
    }

    /// It ended in order.
    pub fn ended(&mut self) {
        self.done = true;
    }

    /// It is let in, and policies said this of it.
    pub fn admitted(&self, judgement: &Judgement) {
        self.connection.admitted(judgement);
    }

    /// It is refused. Returns the id of the refusal.
    pub fn refuse(&mut self, refusal: &Refusal) -> RefusalId {
        self.done = true;
        self.connection.refuse(refusal)
    }

    /// It is refused after it had been let in.
    pub fn revoke(&mut self, refusal: &Refusal) {
        self.done = true;
        self.connection.revoke(refusal);
    }

    /// It failed. `message` says who failed and what to look at.
    pub fn fail(&mut self, flag: ResponseFlag, reason: &'static str, message: String) {
        self.done = true;
        self.connection.fail(flag, reason, message);
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        if !self.done {
            let message = "cut off: its pod left the mesh, or the agent stopped, while it stood".to_owned();
            self.connection.fail(ResponseFlag::Reset, "cut_off", message);
        }
    }
}
