//! `mesh-agent sandbox`: any command as an enrolled workload of the local agent, gone with the command.
//!
//! A sandbox is a record in the agent's directory of sandboxes, locked for as long as its process lives; a network namespace, a link and
//! a cgroup that the record names; and a document beside it, which the agent reads like any other. So the kernel says whose time is
//! over: a record that nobody holds is swept, with all it names, by the next sandbox, the next agent, or the running one. An agent that
//! restarts finds its sandboxes where they were.
//!
//! Never touches traffic: a sandbox is captured as every pod is, by its document.

mod command;
mod error;
mod init;
mod place;
mod registry;
mod signals;

pub use command::{SandboxArgs, run};
pub use error::SandboxError;
pub use init::{InitArgs, init};
pub use registry::{Record, Registry};
