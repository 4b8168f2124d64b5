//! AuthorizationPolicy between real pods: who is let in, what a change does to connections that stand, and what is shown of it.

#[path = "policy/changes.rs"]
mod changes;
#[path = "policy/decisions.rs"]
mod decisions;
#[path = "policy/shown.rs"]
mod shown;
