//! What a pod asks to leave uncaptured. Whether that is granted is decided elsewhere.

use std::collections::BTreeSet;

use serde::Serialize;

use super::Cidr;

/// Ports and networks that a pod's connections are to pass uncaptured. Never an agent port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exclusions {
    /// Connections that it opens to these ports.
    pub outbound_ports: BTreeSet<u16>,
    /// Connections that it opens to these networks.
    pub outbound_cidrs: BTreeSet<Cidr>,
    /// Connections that others open to these ports of it.
    pub inbound_ports: BTreeSet<u16>,
    /// Connections that others open to any port of it, while no agent is there to judge them.
    pub inbound_when_down: bool,
}

impl Exclusions {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.outbound_ports.is_empty()
            && self.outbound_cidrs.is_empty()
            && self.inbound_ports.is_empty()
            && !self.inbound_when_down
    }
}
