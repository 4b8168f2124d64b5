//! A connection's entry in the log, which tells an orderly end from one that was cut short.

use std::sync::Arc;

use crate::telemetry::connections::{ByteCounts, Connection, ResponseFlag};

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
