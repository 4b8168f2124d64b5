//! The mesh's decisions: pure and synchronous. No I/O, no clock, no randomness of its own: time and random numbers are passed in.
//!
//! Documents ([`manifest`]) become model types ([`model`]), which are indexed in an immutable [`snapshot::Snapshot`]; every question
//! that the data path, `meshctl` and the tests ask is answered by [`plan`] (and, for policies, [`authz`]) from a snapshot.
#![forbid(unsafe_code)]

pub mod analyze;
pub mod authz;
pub mod manifest;
pub mod model;
pub mod plan;
pub mod snapshot;
