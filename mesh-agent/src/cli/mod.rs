//! The command lines of `mesh-agent` and `meshctl`: flags, exit codes, tables. Decides nothing about traffic.

pub mod agent;
pub mod ca;
pub mod exit;
pub mod meshctl;
mod render;
