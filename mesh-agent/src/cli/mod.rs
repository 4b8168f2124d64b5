//! The command lines of `mesh-agent` and `meshctl`: flags, exit codes, tables. Decides nothing about traffic.

pub mod exit;
pub mod host;
pub mod meshctl;
mod render;
