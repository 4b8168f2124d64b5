//! TCP connections from inside a pod's network namespace.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::Socket;
use tokio::net::{TcpSocket, TcpStream};

use super::{DIAL_TIMEOUT, PodContext, TunnelError};
use crate::capture::{Family, Pod};

/// Dials `address` from the pod's namespace. `prepare` is called with the socket before it connects: to bind it, or to announce it.
///
/// # Errors
/// When there is no socket, `prepare` fails, or nothing answers within [`DIAL_TIMEOUT`].
pub async fn dial(
    context: &PodContext,
    address: SocketAddr,
    prepare: impl FnOnce(&Socket) -> io::Result<()>,
) -> Result<TcpStream, TunnelError> {
    let socket = socket(&context.pod, address, prepare).map_err(|e| TunnelError::Socket {
        address,
        why: e.to_string(),
    })?;
    match tokio::time::timeout(DIAL_TIMEOUT, socket.connect(address)).await {
        Ok(Ok(stream)) => {
            context.path.legs.watch(&stream);
            Ok(stream)
        }
        Ok(Err(error)) => Err(TunnelError::connect(address, &error)),
        Err(_) => Err(TunnelError::timeout(address, "TCP", DIAL_TIMEOUT)),
    }
}

fn socket(
    pod: &Pod,
    address: SocketAddr,
    prepare: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<TcpSocket> {
    let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
    let socket = pod.sockets.stream(family)?;
    prepare(&socket)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Sets the source address of `socket` without taking a port yet: connect picks one per destination, so that ports do not run out.
///
/// # Errors
/// When the address is not one of the namespace's.
pub fn from_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    setsockopt(socket, IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(source, 0).into())
}

/// The address within the pod that a delivery to `destination` comes from. For IPv4 it is one of 127/8, spread by the client's
/// address, so that many clients of one port never use up the ports of one source address. For IPv6 it is the pod's own: to `::1` the
/// kernel sends no reset from a socket that is not there (it routes it by the device that carries the address, not by loopback), so
/// that a delivery to a port where nobody listens would time out instead of being refused.
pub fn delivery_source(client: SocketAddr, destination: IpAddr) -> IpAddr {
    if destination.is_ipv6() {
        return destination;
    }
    let mut hasher = DefaultHasher::new();
    client.hash(&mut hasher);
    let [a, b, c, ..] = hasher.finish().to_ne_bytes();
    // 1 to 254 in the second place keeps clear of 127.0.0.0/16, where people bind things, and of the broadcast address.
    IpAddr::V4(Ipv4Addr::new(127, a % 254 + 1, b, c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_of_many_clients_come_from_many_loopback_addresses() {
        let destination: IpAddr = "198.18.0.1".parse().unwrap();
        let sources: std::collections::HashSet<IpAddr> = (1..=2000)
            .map(|port| delivery_source(SocketAddr::new("198.18.0.2".parse().unwrap(), port), destination))
            .collect();
        assert!(sources.len() > 1900, "{}", sources.len());
        for source in sources {
            assert!(source.is_loopback());
            let IpAddr::V4(v4) = source else {
                panic!("{source}")
            };
            assert!((1..=254).contains(&v4.octets()[1]));
        }
    }

    #[test]
    fn an_ipv6_delivery_comes_from_the_pods_own_address() {
        let client: SocketAddr = "[2001:db8::2]:40000".parse().unwrap();
        let destination = "2001:db8::1".parse().unwrap();
        assert_eq!(delivery_source(client, destination), destination);
    }
}
