//! A pod's network namespace: entering it for a moment, and what is asked of it. Never stays in it: every entry is one synchronous
//! function, and a thread that could not come back ends the process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mesh_common::mutation::{self, Mechanism};
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind};
use socket2::{Domain, Protocol, Socket, Type};

use super::Family;
use super::sys::netns_cookie;

/// Backlog of the agent's listeners.
const BACKLOG: i32 = 4096;
/// `RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR` (`linux/rtnetlink.h`).
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

/// An open network namespace.
#[derive(Debug)]
pub(super) struct Netns {
    file: File,
    home: File,
    /// Where it was opened; `None` for one that was found by a process of the pod.
    path: Option<PathBuf>,
    cookie: u64,
}

/// What a look at the interfaces of a namespace shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interfaces {
    /// All addresses, with the index of the device that carries each.
    pub(super) addresses: BTreeMap<IpAddr, u32>,
    /// Names of the interfaces that are up, loopback apart.
    pub(super) up: BTreeSet<String>,
}

impl Netns {
    /// Opens the namespace at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::of(File::open(path)?, Some(path.to_owned()))
    }

    /// The namespace that `file` is. It is known by nothing else: whoever found it says when it is not the pod's any more.
    pub(super) fn opened(file: File) -> io::Result<Self> {
        Self::of(file, None)
    }

    fn of(file: File, path: Option<PathBuf>) -> io::Result<Self> {
        let mut netns = Self {
            file,
            home: File::open("/proc/thread-self/ns/net")?,
            path,
            cookie: 0,
        };
        let probe = netns.within(|| Socket::new(Domain::IPV4, Type::STREAM, None))??;
        netns.cookie = netns_cookie(probe.as_fd())?;
        Ok(netns)
    }

    /// The cookie of the namespace that this thread is in: the agent's own, which is the host's.
    pub(super) fn home_cookie() -> io::Result<u64> {
        netns_cookie(Socket::new(Domain::IPV4, Type::STREAM, None)?.as_fd())
    }

    /// The ports that its kernel gives to clients (`ip_local_port_range`, for both families).
    pub(super) fn ephemeral_ports(&self) -> io::Result<(u16, u16)> {
        let text = self.within(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range"))??;
        let mut numbers = text.split_whitespace().map_while(|number| number.parse().ok());
        match (numbers.next(), numbers.next()) {
            (Some(first), Some(last)) => Ok((first, last)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Its cookie: unique as long as the kernel runs.
    pub(super) fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Its inode, by which `/proc` names it.
    pub(super) fn inode(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    /// Whether it is the namespace that the agent itself lives in.
    pub(super) fn is_home(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.ino() == self.home.metadata()?.ino())
    }

    /// Whether its path, where it has one, still leads to it.
    pub(super) fn is_current(&self) -> bool {
        let Some(path) = &self.path else { return true };
        let same = || Some(std::fs::metadata(path).ok()?.ino() == self.file.metadata().ok()?.ino());
        same().unwrap_or(false)
    }

    /// Runs `action` inside the namespace, on this thread. No await can happen in it.
    pub(super) fn within<T>(&self, action: impl FnOnce() -> T) -> io::Result<T> {
        let way_back = WayBack(&self.home);
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let result = action();
        drop(way_back);
        Ok(result)
    }

    /// For `sk_lookup` links.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// `count` TCP sockets of one family, as [`SocketSource::stream`](super::SocketSource::stream) promises them.
    pub(super) fn sockets(&self, family: Family, count: usize) -> io::Result<Vec<Socket>> {
        self.within(|| (0..count).map(|_| stream_socket(family)).collect())?
    }

    /// `count` listeners on loopback ports of the kernel's choice. They serve both families where the kernel has IPv6.
    pub(super) fn listeners(&self, count: usize) -> io::Result<Vec<Socket>> {
        self.within(|| (0..count).map(|_| listener()).collect())?
    }

    /// Its interfaces and addresses now.
    pub(super) fn interfaces(&self) -> io::Result<Interfaces> {
        self.within(|| {
            let mut seen = Interfaces::default();
            for entry in nix::ifaddrs::getifaddrs()? {
                let flags = entry.flags;
                if let Some(address) = entry.address {
                    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                    let v6 = address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
                    // A device that is gone by now takes its addresses along: the next change says so.
                    let device = || if_nametoindex(entry.interface_name.as_str()).unwrap_or(0);
                    seen.addresses.extend(v4.or(v6).map(|ip| (ip, device())));
                }
                if flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK) {
                    seen.up.insert(entry.interface_name);
                }
            }
            Ok(seen)
        })?
    }

    /// Whether it forwards packets of either family. The setting is inherited from the host, so by itself it says little.
    pub(super) fn forwards(&self) -> io::Result<bool> {
        self.within(|| {
            ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
                .iter()
                .any(|name| {
                    // Absent where the kernel lacks the family.
                    std::fs::read_to_string(format!("/proc/sys/net/{name}"))
                        .is_ok_and(|value| value.trim() != "0")
                })
        })
    }

    /// Whether its TCP listeners take data of TCP Fast Open without a cookie (`tcp_fastopen` of the kernel's `ip-sysctl`): then the
    /// source address of a single packet is believed.
    pub(super) fn believes_first_packets(&self) -> io::Result<bool> {
        const SERVER_WITHOUT_COOKIE: u32 = 0x200;
        self.within(|| {
            let setting = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen").unwrap_or_default();
            setting
                .trim()
                .parse()
                .is_ok_and(|bits: u32| bits & SERVER_WITHOUT_COOKIE != 0)
        })
    }

    /// TCP ports on which something listens, other than on loopback.
    pub(super) fn listening_ports(&self) -> io::Result<BTreeSet<u16>> {
        self.within(|| {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
            let mut ports = parse_listening(&read("tcp")?);
            ports.extend(parse_listening(&read("tcp6").unwrap_or_default()));
            Ok(ports)
        })?
    }

    /// A socket that becomes readable when addresses of the namespace change.
    pub(super) fn address_changes(&self) -> io::Result<OwnedFd> {
        self.within(|| {
            let socket = nix::sys::socket::socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::NetlinkRoute,
            )?;
            bind(
                std::os::fd::AsRawFd::as_raw_fd(&socket),
                &NetlinkAddr::new(0, ADDRESS_GROUPS),
            )?;
            Ok(socket)
        })?
    }
}

/// Brings the thread home when dropped, on unwinding too.
struct WayBack<'a>(&'a File);

impl Drop for WayBack<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            // A thread that is lost in a pod's namespace would open sockets there for others: there is no safe way on.
            eprintln!("mesh-agent: a thread cannot leave a pod's network namespace ({error}): aborting");
            std::process::abort();
        }
    }
}

fn stream_socket(family: Family) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// Never with SO_REUSEPORT: another process could join the group.
fn listener() -> io::Result<Socket> {
    let (socket, address) = match stream_socket(Family::V6) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            (socket, IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()))
        }
        Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            (stream_socket(Family::V4)?, IpAddr::V4(Ipv4Addr::LOCALHOST))
        }
        Err(e) => return Err(e),
    };
    if mutation::is_off(Mechanism::LoneListeners) || mutation::is_off(Mechanism::NoReuseport) {
        socket.set_reuse_port(true)?;
    }
    if mutation::is_off(Mechanism::ReuseAddress) {
        socket.set_reuse_address(false)?;
    }
    socket.bind(&SocketAddr::new(address, 0).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Reads `/proc/net/tcp{,6}` (`proc_net_tcp.txt` of the kernel's documentation). Lines of another shape are left out.
fn parse_listening(table: &str) -> BTreeSet<u16> {
    const LISTEN: &str = "0A";
    let loopback6 = |address: &str| {
        let words: Vec<u32> = (0..4)
            .filter_map(|i| u32::from_str_radix(address.get(i * 8..i * 8 + 8)?, 16).ok())
            .collect();
        let octets: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        <[u8; 16]>::try_from(octets).is_ok_and(|octets| Ipv6Addr::from(octets).to_canonical().is_loopback())
    };
    let loopback = |address: &str| match u32::from_str_radix(address, 16) {
        Ok(word) if address.len() == 8 => Ipv4Addr::from(word.to_ne_bytes()).is_loopback(),
        _ => loopback6(address),
    };
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (address, port) = fields.next()?.split_once(':')?;
        let state = fields.nth(1)?;
        let listens = state == LISTEN && !loopback(address);
        listens.then(|| u16::from_str_radix(port, 16).ok())?
    };
    table.lines().skip(1).filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_ports_are_read_and_loopback_is_left_out() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 00000000:1F90 00000000:0000 0A 00000000:00000000\n\
             1: 0100007F:1F91 00000000:0000 0A 00000000:00000000\n\
             2: 0100007F:1F92 0100007F:1F90 01 00000000:00000000\n\
             garbage\n";
        assert_eq!(parse_listening(table), BTreeSet::from([8080]));
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 00000000000000000000000000000000:3AA0 00000000000000000000000000000000:0000 0A 0\n\
             1: 00000000000000000000000001000000:3AA1 00000000000000000000000000000000:0000 0A 0\n\
             2: 0000000000000000FFFF00000100007F:3AA2 00000000000000000000000000000000:0000 0A 0\n";
        assert_eq!(parse_listening(table), BTreeSet::from([15008]));
    }
}
