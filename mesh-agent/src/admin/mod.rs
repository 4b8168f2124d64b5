//! The admin API: what `meshctl` asks the agent, as JSON over a Unix socket that only root can open. Reads only, but for the
//! switch of the BPF programs' debug log.

pub mod client;
pub mod document;
pub mod host;
mod limits;
mod server;
mod socket;

pub use limits::LIMITS;
pub use server::{AdminServer, View, router};
pub use socket::{AdminSocket, SocketError, private_listener};

/// Where the socket is unless a setting says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/mesh-agent/admin.sock";
