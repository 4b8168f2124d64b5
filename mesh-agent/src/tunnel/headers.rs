//! The informative headers of a CONNECT: `forwarded` (RFC 7239) and `baggage` (W3C). Hints from a peer, never identity.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue};
use mesh_core::model::Workload;

use crate::percent::encoded;

/// Names the refusal in the answer to a CONNECT that is refused: what to look for at the destination's agent. Ours; peers pass over it.
pub const REFUSAL: &str = "x-mesh-refusal-id";

/// The id of a refusal, as far as it looks like one.
pub fn refusal(headers: &HeaderMap) -> Option<String> {
    const LONGEST: usize = 40;
    let id = headers.get(REFUSAL)?.to_str().ok()?;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    ((1..=LONGEST).contains(&id.len()) && id.bytes().all(good)).then(|| id.to_owned())
}

/// `for="ip:port"`, with `;host=…` when a service was addressed by name.
pub fn forwarded(client: SocketAddr, service: Option<&str>) -> Option<HeaderValue> {
    let mut value = format!("for=\"{client}\"");
    if let Some(host) = service {
        // Writing to a String cannot fail.
        let _ = write!(value, ";host={host}");
    }
    HeaderValue::try_from(value).ok()
}

/// Who the client is, in the words that other meshes use.
pub fn baggage(source: &Workload) -> Option<HeaderValue> {
    let fields = [
        ("k8s.namespace.name", source.namespace.as_str()),
        ("k8s.deployment.name", source.owner.name.as_str()),
        ("service.name", source.canonical_name()),
        ("service.version", source.canonical_revision()),
    ];
    let mut value = String::new();
    for (key, text) in fields {
        if !value.is_empty() {
            value.push(',');
        }
        value.push_str(key);
        value.push('=');
        value.extend(encoded(text));
    }
    HeaderValue::try_from(value).ok()
}

/// A parameter of the first element of a `forwarded` header, without its quotes.
fn parameter<'v>(value: &'v [u8], wanted: &str) -> Option<&'v str> {
    let text = std::str::from_utf8(value).ok()?;
    let first = text.split(',').next()?;
    let value = first.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim())
    })?;
    value
        .strip_prefix('"')
        .map_or(Some(value), |rest| rest.strip_suffix('"'))
}

/// The client's address out of a `forwarded` header: `for` of its first element, where that is an address with a port.
pub fn forwarded_client(value: &[u8]) -> Option<SocketAddr> {
    let address: SocketAddr = parameter(value, "for")?.parse().ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// The service that the client addressed, out of a `forwarded` header: a hint.
pub fn forwarded_host(value: &[u8]) -> Option<&str> {
    parameter(value, "host")
}

/// The client as an application is to see it: always the address that the tunnel really comes from; the port that the peer reports if it
/// reports it of that very address, the tunnel's port otherwise.
pub fn real_client(tunnel_peer: SocketAddr, forwarded: Option<&HeaderValue>) -> SocketAddr {
    let ip: IpAddr = tunnel_peer.ip().to_canonical();
    let port = forwarded
        .and_then(|value| forwarded_client(value.as_bytes()))
        .filter(|client| client.ip() == ip && client.port() != 0)
        .map_or(tunnel_peer.port(), |client| client.port());
    SocketAddr::new(ip, port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_we_write_we_read() {
        for client in ["198.18.0.1:47228", "[2001:db8::1]:47228"] {
            let client: SocketAddr = client.parse().unwrap();
            for service in [None, Some("payment.shop.svc.cluster.local")] {
                let value = forwarded(client, service).unwrap();
                assert_eq!(forwarded_client(value.as_bytes()), Some(client), "{value:?}");
                assert_eq!(forwarded_host(value.as_bytes()), service, "{value:?}");
            }
        }
        let client = "198.18.0.1:47228".parse().unwrap();
        let value = forwarded(client, Some("a.b.svc.cluster.local")).unwrap();
        assert_eq!(value, "for=\"198.18.0.1:47228\";host=a.b.svc.cluster.local");
    }

    #[test]
    fn the_first_element_counts_and_odd_writings_are_understood() {
        for (text, client) in [
            ("For=\"198.18.0.1:1\", for=198.18.0.2:2", Some("198.18.0.1:1")),
            ("by=x; for=198.18.0.1:9", Some("198.18.0.1:9")),
            ("for=\"[::ffff:198.18.0.1]:9\"", Some("198.18.0.1:9")),
            ("for=198.18.0.1", None),
            ("for=unknown", None),
            ("for=\"198.18.0.1:9", None),
            ("for=198.18.0.1:99999", None),
            ("by=x, for=198.18.0.1:9", None),
            ("", None),
        ] {
            let client: Option<SocketAddr> = client.map(|c| c.parse().unwrap());
            assert_eq!(forwarded_client(text.as_bytes()), client, "{text}");
        }
    }

    #[test]
    fn a_peer_cannot_make_an_application_see_another_address() {
        let peer: SocketAddr = "198.18.0.1:50000".parse().unwrap();
        let told = |text: &'static str| real_client(peer, Some(&HeaderValue::from_static(text)));
        assert_eq!(
            told("for=\"198.18.0.1:47228\""),
            "198.18.0.1:47228".parse().unwrap()
        );
        assert_eq!(told("for=\"198.18.0.9:47228\""), peer);
        assert_eq!(told("for=\"198.18.0.1:0\""), peer);
        assert_eq!(real_client(peer, None), peer);
    }

    #[test]
    fn the_id_of_a_refusal_is_taken_for_one_only_if_it_looks_like_one() {
        let read = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REFUSAL, HeaderValue::from_bytes(value).unwrap());
            refusal(&headers)
        };
        assert_eq!(read(b"4f2a-17").as_deref(), Some("4f2a-17"));
        for bad in [&b""[..], b"a b", b"a\tb", b"\xff", b"<x>", &[b'a'; 41]] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        assert_eq!(refusal(&HeaderMap::new()), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = forwarded_client(&bytes);
            let _ = forwarded_host(&bytes);
        }

        #[test]
        fn almost_headers_never_panic(text in "(?i)(for|by|host)?[=;,\" a-f0-9.:\\[\\]]{0,40}") {
            let _ = forwarded_client(text.as_bytes());
        }

        #[test]
        fn every_address_survives(ip: std::net::IpAddr, port: u16) {
            let client = SocketAddr::new(ip.to_canonical(), port);
            let value = forwarded(client, None).unwrap();
            prop_assert_eq!(forwarded_client(value.as_bytes()), Some(client));
        }
    }
}
