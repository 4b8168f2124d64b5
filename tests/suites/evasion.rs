//! Every way around capture that we know of is captured, refused, or listed as what capture does not see.
//!
//! `evasion/ways.py` does in pods what an ordinary program does not.

#[path = "evasion/addresses.rs"]
mod addresses;
#[path = "evasion/kernel.rs"]
mod kernel;
#[path = "evasion/packets.rs"]
mod packets;
#[path = "evasion/places.rs"]
mod places;
#[path = "evasion/script.rs"]
mod script;
#[path = "evasion/sockets.rs"]
mod sockets;
#[path = "evasion/theft.rs"]
mod theft;
