//! Capture on real namespaces: every connection of an enrolled pod is carried, as the programs at both ends expect it, and nothing else.

#[path = "capture/bounds.rs"]
mod bounds;
#[path = "capture/config.rs"]
mod config;
#[path = "capture/events.rs"]
mod events;
#[path = "capture/flows.rs"]
mod flows;
#[path = "capture/life.rs"]
mod life;
#[path = "capture/ways.rs"]
mod ways;
