//! Peers and clients that mean harm, or are merely odd: the offender is cut or bounded, its neighbours notice nothing, the agent lives,
//! its memory stays within a budget, and a metric says what happened.

#[path = "hostile/clients.rs"]
mod clients;
#[path = "hostile/floods.rs"]
mod floods;
#[path = "hostile/neighbours.rs"]
mod neighbours;
#[path = "hostile/ports.rs"]
mod ports;
#[path = "hostile/servers.rs"]
mod servers;
#[path = "hostile/stalls.rs"]
mod stalls;
