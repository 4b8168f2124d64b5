//! `mesh-agent sandbox`: any command as an enrolled workload, and nothing of it afterwards.

#[path = "sandbox/ends.rs"]
mod ends;
#[path = "sandbox/stage.rs"]
mod stage;
#[path = "sandbox/talk.rs"]
mod talk;
