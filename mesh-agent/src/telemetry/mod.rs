//! What the agent tells about itself: live connections, metrics, the access log.

pub mod connections;
