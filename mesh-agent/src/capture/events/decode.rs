//! From the bytes of the ring buffer to an event. Pure, and total: any bytes give an event or say why not.

use std::mem::offset_of;
use std::net::SocketAddr;

use mesh_common::{Addr, Counter, Event};
use thiserror::Error;

/// Something that the BPF programs refused, dropped or lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelEvent {
    /// What: the counter that has it, too.
    pub kind: Counter,
    /// When, in nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// Cookie of the network namespace.
    pub netns: u64,
    /// The side that opens the connection; `None` where it had no address yet.
    pub local: Option<SocketAddr>,
    /// Where it goes.
    pub remote: SocketAddr,
    /// IP protocol.
    pub protocol: u32,
    /// The process that asked for it, where one did and the hook could tell.
    pub pid: Option<u32>,
}

/// Why bytes are no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// There are too few of them.
    #[error("an event of the BPF programs has {0} bytes: are agent and programs of one version?")]
    Short(usize),
    /// The kind is not known.
    #[error(
        "an event of the BPF programs has kind {0}, which is not known: are agent and programs of one version?"
    )]
    Kind(u32),
}

/// Decodes an event. What a newer program may have appended is left aside.
///
/// # Errors
/// When there are too few bytes, or the kind is not known.
pub fn decode(bytes: &[u8]) -> Result<KernelEvent, DecodeError> {
    let fields = Fields(
        bytes
            .get(..size_of::<Event>())
            .ok_or(DecodeError::Short(bytes.len()))?,
    );
    let kind = fields.u32(offset_of!(Event, kind));
    let local = fields.socket(offset_of!(Event, local), offset_of!(Event, local_port));
    let pid = fields.u32(offset_of!(Event, pid));
    Ok(KernelEvent {
        kind: Counter::from_number(kind).ok_or(DecodeError::Kind(kind))?,
        time: fields.u64(offset_of!(Event, time)),
        netns: fields.u64(offset_of!(Event, netns)),
        local: (local.port() != 0 || !local.ip().is_unspecified()).then_some(local),
        remote: fields.socket(offset_of!(Event, remote), offset_of!(Event, remote_port)),
        protocol: fields.u32(offset_of!(Event, protocol)),
        pid: (pid != 0).then_some(pid),
    })
}

/// The bytes of an [`Event`], all of them.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The `N` bytes at an offset of a field of that size.
    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let bytes = self.0.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.copied().unwrap_or([0; N])
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_ne_bytes(self.array(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.array(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.array(offset))
    }

    fn socket(&self, addr: usize, port: usize) -> SocketAddr {
        SocketAddr::new(Addr::from_octets(self.array(addr)).to_ip(), self.u16(port))
    }
}

/// What happened and what to do about it, in a sentence or two; `None` for what is only counted.
pub fn advice(kind: Counter) -> Option<&'static str> {
    Some(match kind {
        Counter::ConnectRefusedNetns => {
            "a process of the pod connects from another network namespace than the pod's: refused. \
             Does it make namespaces of its own, or was a socket of elsewhere opened in the pod's cgroup?"
        }
        Counter::ConnectRefusedFamily => {
            "the pod has no address of the destination's IP family: refused. \
             Use the other family, or give the pod an address of this one (status.podIPs)"
        }
        Counter::ConnectRefusedStorage => {
            "the kernel had no memory to remember the destination with the socket: refused. Is the node out of memory?"
        }
        Counter::ConnectRefusedProtocol => {
            "a stream socket of another protocol than TCP cannot be captured: refused. \
             Make the application use TCP, or take the pod out of the mesh"
        }
        Counter::ConnectRefusedDevice => {
            "a socket bound to a device that does not carry the pod's address wants to reach somebody enrolled: refused. \
             Bind it to the pod's own device, or to none"
        }
        Counter::FastOpenRefused => {
            "an application asked to take data of TCP Fast Open without a cookie (TCP_FASTOPEN_NO_COOKIE): refused. \
             Let it use cookies"
        }
        Counter::HandoffFull => {
            "the map of captured connections that the agent has not accepted yet is full: refused. \
             Does the agent run, and is the node overloaded? `meshctl bpf` shows the map's fill"
        }
        Counter::DeliveryFull => {
            "the map of deliveries is full: the application sees the agent instead of its real client. \
             `meshctl bpf` shows the map's fill"
        }
        Counter::ProbesFull => {
            "the map of the kubelet's live probes is full: this one is captured like other connections. \
             `meshctl bpf` shows the map's fill"
        }
        Counter::DroppedAgentPort => {
            "a connection from off the pod to a port that is the agent's: dropped. Only 15008 is reached from outside"
        }
        Counter::InboundPassedAgentDown => {
            "a connection to the pod passed in plaintext, judged by nobody, while no agent was there: the pod's annotation \
             mesh-agent.io/on-agent-down asks for that, and the setting allow-exclusions allows it"
        }
        Counter::DroppedNoListener => {
            "the agent's listener for the pod is not there: dropped. The agent was away or was exchanging the pod's listeners; \
             where it lasts, see `meshctl workloads` and restart the agent"
        }
        Counter::DroppedNoPod => {
            "the pod's entry is missing from the kernel's map while its programs are attached: dropped. \
             See `meshctl workloads`, and restart the agent if it lasts"
        }
        Counter::LookupMissed => {
            "a packet for a rewrite port has no hand-off: left to the kernel, which refuses it unless the pod listens there. \
             Now and then it is a late packet of a connection that was reset; many mean that the pod's sock_ops program is detached"
        }
        Counter::ConnectCaptured
        | Counter::ConnectPassed
        | Counter::SteeredOutbound
        | Counter::SteeredInbound
        | Counter::SteeredTunnel
        | Counter::LookupPassed
        | Counter::UdpPassed
        | Counter::ClientsShown
        | Counter::EventsSuppressed
        | Counter::ProbesPassed
        | Counter::ConnectExcluded
        | Counter::InboundExcluded
        | Counter::ConnectPassedDevice
        | Counter::ConnectPassedLinkLocal => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(event: &Event) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<Event>()];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(offset_of!(Event, time), &event.time.to_ne_bytes());
        put(offset_of!(Event, netns), &event.netns.to_ne_bytes());
        for (at, addr) in [
            (offset_of!(Event, local), event.local),
            (offset_of!(Event, remote), event.remote),
        ] {
            for (i, word) in addr.0.iter().enumerate() {
                put(at + 4 * i, &word.to_ne_bytes());
            }
        }
        put(offset_of!(Event, local_port), &event.local_port.to_ne_bytes());
        put(offset_of!(Event, remote_port), &event.remote_port.to_ne_bytes());
        put(offset_of!(Event, kind), &event.kind.to_ne_bytes());
        put(offset_of!(Event, protocol), &event.protocol.to_ne_bytes());
        put(offset_of!(Event, pid), &event.pid.to_ne_bytes());
        bytes
    }

    fn refused() -> Event {
        Event {
            time: 7,
            netns: 4711,
            local: Addr::default(),
            remote: Addr::from_ip("198.18.0.1".parse().unwrap()),
            local_port: 0,
            remote_port: 80,
            kind: Counter::ConnectRefusedProtocol as u32,
            protocol: 262,
            pid: 42,
        }
    }

    #[test]
    fn an_event_is_decoded_with_all_its_fields() {
        let event = decode(&bytes(&refused())).unwrap();
        assert_eq!(event.kind, Counter::ConnectRefusedProtocol);
        assert_eq!(
            (event.time, event.netns, event.protocol, event.pid),
            (7, 4711, 262, Some(42))
        );
        assert_eq!(event.local, None);
        assert_eq!(event.remote, "198.18.0.1:80".parse().unwrap());
        let steered = Event {
            local: Addr::from_ip("2001:db8::1".parse().unwrap()),
            local_port: 40000,
            pid: 0,
            ..refused()
        };
        let event = decode(&bytes(&steered)).unwrap();
        assert_eq!(event.local, Some("[2001:db8::1]:40000".parse().unwrap()));
        assert_eq!(event.pid, None);
    }

    #[test]
    fn what_a_newer_program_appends_is_left_aside() {
        let mut longer = bytes(&refused());
        longer.extend([0xff; 16]);
        assert_eq!(decode(&longer), decode(&bytes(&refused())));
    }

    #[test]
    fn bytes_that_are_no_event_are_refused_with_a_reason() {
        let whole = bytes(&refused());
        for length in 0..whole.len() {
            assert_eq!(decode(&whole[..length]), Err(DecodeError::Short(length)));
        }
        let unknown = Event {
            kind: 9999,
            ..refused()
        };
        assert_eq!(decode(&bytes(&unknown)), Err(DecodeError::Kind(9999)));
    }

    #[test]
    fn every_kind_of_trouble_comes_with_advice() {
        for (kind, name) in Counter::ALL {
            let trouble = ["refused", "dropped", "full", "missed", "agent_down"]
                .iter()
                .any(|word| name.contains(word));
            assert_eq!(advice(kind).is_some(), trouble, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
