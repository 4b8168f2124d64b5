//! TCP sockets of a network namespace by `sock_diag(7)`: listing them, closing one. Knows the wire format and nothing of capture.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt,
};
use nix::sys::time::TimeVal;

use super::netns::Netns;

/// `TCP_*` of `tcp_states.h`.
pub(super) mod state {
    pub(in crate::capture) const ESTABLISHED: u8 = 1;
    pub(in crate::capture) const SYN_SENT: u8 = 2;
    pub(in crate::capture) const SYN_RECV: u8 = 3;
    pub(in crate::capture) const FIN_WAIT1: u8 = 4;
    pub(in crate::capture) const FIN_WAIT2: u8 = 5;
    pub(in crate::capture) const CLOSE_WAIT: u8 = 8;
    pub(in crate::capture) const LISTEN: u8 = 10;
}

/// The states that are listed: what listens, and what may still carry data.
const STATES: [u8; 7] = [
    state::ESTABLISHED,
    state::SYN_SENT,
    state::SYN_RECV,
    state::FIN_WAIT1,
    state::FIN_WAIT2,
    state::CLOSE_WAIT,
    state::LISTEN,
];

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// `INET_DIAG_CGROUP_ID`, Linux 5.7.
const CGROUP_ID: u16 = 21;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct inet_diag_sockid`.
const ID: usize = 48;
/// Where `idiag_inode` stands in `struct inet_diag_msg`, and its length.
const INODE_AT: usize = 68;
const MESSAGE: usize = 72;
/// The kernel answers at once; a lost answer must not hold a thread for ever.
const PATIENCE: Duration = Duration::from_secs(2);

/// A TCP socket as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    /// See [`state`].
    pub(super) state: u8,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// Unique as long as the kernel runs; a half-open connection hands it on to its socket.
    pub(super) cookie: u64,
    /// 0 where no process holds the socket (yet, or any more).
    pub(super) inode: u32,
    /// The cgroup that it was made in. Half-open connections and those that only wait for their end have none.
    pub(super) cgroup: Option<u64>,
    family: u8,
    id: [u8; ID],
}

/// All sockets in one of [`STATES`], of both families.
pub(super) fn list(netns: &Netns) -> io::Result<Vec<Socket>> {
    let socket = open(netns)?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        send(&socket, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family as u8, &[0; ID])?;
        loop {
            let datagram = receive(&socket)?;
            let mut done = false;
            for (kind, body) in messages(&datagram) {
                match kind {
                    NLMSG_DONE => done = true,
                    NLMSG_ERROR => error(body)?,
                    SOCK_DIAG_BY_FAMILY => found.extend(parse(body)),
                    _ => {}
                }
            }
            if done {
                break;
            }
        }
    }
    Ok(found)
}

/// Closes a socket with a reset to its peer, whoever holds it. A socket that is gone already is no error.
///
/// # Errors
/// `EOPNOTSUPP` where the kernel is built without `CONFIG_INET_DIAG_DESTROY`.
pub(super) fn destroy(netns: &Netns, socket: &Socket) -> io::Result<()> {
    let netlink = open(netns)?;
    send(&netlink, SOCK_DESTROY, NLM_F_ACK, socket.family, &socket.id)?;
    let datagram = receive(&netlink)?;
    let answer = messages(&datagram).find(|(kind, _)| *kind == NLMSG_ERROR);
    match answer.map_or(Ok(()), |(_, body)| error(body)) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(()),
        other => other,
    }
}

fn open(netns: &Netns) -> io::Result<OwnedFd> {
    // Made inside, used anywhere: a socket keeps its namespace for life.
    let socket = netns.within(|| {
        nix::sys::socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )
    })??;
    let patience = TimeVal::new(PATIENCE.as_secs() as i64, 0);
    setsockopt(&socket, ReceiveTimeout, &patience)?;
    Ok(socket)
}

fn send(socket: &OwnedFd, kind: u16, flags: u16, family: u8, id: &[u8; ID]) -> io::Result<()> {
    let request = request(kind, flags, family, id);
    sendto(
        socket.as_raw_fd(),
        &request,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    Ok(())
}

/// A `struct nlmsghdr` and a `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, id: &[u8; ID]) -> Vec<u8> {
    let states = STATES.iter().fold(0u32, |mask, state| mask | 1 << state);
    let length = (HEADER + 8 + ID) as u32;
    let mut bytes = Vec::with_capacity(length as usize);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port: one request at a time on a socket of its own.
    bytes.extend([0; 8]);
    bytes.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

fn receive(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The messages of a datagram: type and body.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32_at(datagram, 0)? as usize;
        let kind = u16_at(datagram, 4)?;
        let body = datagram.get(HEADER..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// `struct nlmsgerr`: a negative errno, or 0 for an acknowledgement.
fn error(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A `struct inet_diag_msg` and its attributes. `None` for what has another shape.
fn parse(body: &[u8]) -> Option<Socket> {
    let (family, state) = (*body.first()?, *body.get(1)?);
    let id: [u8; ID] = body.get(4..4 + ID)?.try_into().ok()?;
    let port = |at: usize| Some(u16::from_be_bytes(id.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = id.get(at..at + 16)?.try_into().ok()?;
        Some(if i32::from(family) == libc::AF_INET {
            let [a, b, c, d, ..] = octets;
            Ipv4Addr::new(a, b, c, d).into()
        } else {
            Ipv6Addr::from(octets).to_canonical()
        })
    };
    let cookie = u64::from(u32_at(&id, 40)?) | u64::from(u32_at(&id, 44)?) << 32;
    Some(Socket {
        state,
        local: SocketAddr::new(address(4)?, port(0)?),
        remote: SocketAddr::new(address(20)?, port(2)?),
        cookie,
        inode: u32_at(body, INODE_AT)?,
        cgroup: attribute(body.get(MESSAGE..)?, CGROUP_ID),
        family,
        id,
    })
}

/// The value of an attribute of eight bytes.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<u64> {
    loop {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)?;
        let value = rest.get(4..length)?;
        if kind == wanted {
            return Some(u64::from_ne_bytes(value.try_into().ok()?));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(family: i32, state: u8, cgroup: Option<u64>) -> Vec<u8> {
        let mut body = vec![0; MESSAGE];
        body[0] = family as u8;
        body[1] = state;
        body[4..6].copy_from_slice(&8080u16.to_be_bytes());
        body[6..8].copy_from_slice(&40000u16.to_be_bytes());
        body[8..12].copy_from_slice(&[198, 18, 0, 1]);
        body[24..28].copy_from_slice(&[198, 18, 0, 2]);
        body[44..48].copy_from_slice(&7u32.to_ne_bytes());
        body[48..52].copy_from_slice(&1u32.to_ne_bytes());
        body[INODE_AT..].copy_from_slice(&99u32.to_ne_bytes());
        // An attribute that is not asked about, of a length that needs padding.
        body.extend([5, 0, 8, 0, 3, 0, 0, 0]);
        if let Some(id) = cgroup {
            body.extend(12u16.to_ne_bytes());
            body.extend(CGROUP_ID.to_ne_bytes());
            body.extend(id.to_ne_bytes());
        }
        body
    }

    #[test]
    fn a_socket_is_read_with_its_cgroup() {
        let socket = parse(&message(libc::AF_INET, state::ESTABLISHED, Some(4242))).unwrap();
        assert_eq!(socket.local, "198.18.0.1:8080".parse().unwrap());
        assert_eq!(socket.remote, "198.18.0.2:40000".parse().unwrap());
        assert_eq!(
            (socket.cookie, socket.inode, socket.cgroup),
            (1 << 32 | 7, 99, Some(4242))
        );
        let socket = parse(&message(libc::AF_INET, state::SYN_RECV, None)).unwrap();
        assert_eq!(socket.cgroup, None);
    }

    #[test]
    fn what_is_cut_short_is_left_out() {
        let whole = message(libc::AF_INET, state::ESTABLISHED, Some(1));
        for length in 0..MESSAGE {
            assert_eq!(parse(&whole[..length]), None);
        }
        assert!(
            (MESSAGE..whole.len()).all(|length| parse(&whole[..length]).is_some_and(|s| s.cgroup.is_none()))
        );
        assert_eq!(messages(&[1, 2, 3]).count(), 0);
        assert_eq!(messages(&[0xff; 64]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0);
    }
}
