//! What the two BPF objects are made of: `node` (attached to pods' cgroups and to the agent's own) and `pod` (one instance per
//! pod's network namespace). One module per family of hooks; [`maps`] declares the maps, [`ctx`] holds every unsafe read.
//! Nothing here decides policy: sockets are steered to the agent, passed, or refused.
#![no_std]
#![feature(asm_experimental_arch)]

pub mod connect;
pub mod ctx;
pub mod debug;
pub mod delivery;
pub mod events;
pub mod flow;
pub mod lookup;
pub mod maps;
pub mod mutation;
pub mod options;
pub mod peer_name;
pub mod probe;
