//! Handshakes, rotation and secrets, seen from outside the module's parts.

pub(super) mod fixture;
mod handshakes;
mod rotation;
mod sessions;
mod stranger;
