//! The agent's life under load: upgrades, crashes, signals, exit codes. What a clean stop leaves is `capture`'s.

#[path = "lifecycle/crash.rs"]
mod crash;
#[path = "lifecycle/down.rs"]
mod down;
#[path = "lifecycle/pins.rs"]
mod pins;
#[path = "lifecycle/signals.rs"]
mod signals;
#[path = "lifecycle/upgrade.rs"]
mod upgrade;
