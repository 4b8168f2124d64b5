//! Carries the expected identity of a server through rustls, which knows servers by name only.
//!
//! The expectation is a name, `<SHA-256 of the SPIFFE id in two labels>.<address, port, epoch>`: the verifier computes the same
//! from the certificate it is shown, and sessions, which rustls files under the name, can neither be resumed for another
//! expected identity, nor at another address, nor after our own certificate was rotated (the epoch). It never goes on the
//! wire: SNI is off.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use mesh_core::model::SpiffeId;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::pki_types::ServerName;

use super::leaf::hex;
use super::peer::{PeerError, reason};

/// The name under which a server is dialled.
///
/// # Errors
/// Never in practice; a name that rustls refuses must not become a connection.
pub(super) fn server_name(
    expected: &SpiffeId,
    address: SocketAddr,
    epoch: u64,
) -> Result<ServerName<'static>, PeerError> {
    let mut name = digest_labels(expected)?;
    let ip = match address.ip() {
        IpAddr::V4(ip) => hex(&ip.octets()),
        IpAddr::V6(ip) => hex(&ip.octets()),
    };
    // Writing to a String cannot fail.
    let _ = write!(name, ".a{ip}p{:x}e{epoch:x}", address.port());
    ServerName::try_from(name)
        .map_err(|error| PeerError::new(reason::TLS, format!("no name for {expected}: {error}")))
}

/// Whether the server that proved `proven` is the one that `name` was made for. A name of another make matches nobody.
pub(super) fn is_expected(name: &ServerName<'_>, proven: &SpiffeId) -> bool {
    let ServerName::DnsName(name) = name else {
        return false;
    };
    digest_labels(proven).is_ok_and(|labels| {
        name.as_ref()
            .strip_prefix(labels.as_str())
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

fn digest_labels(id: &SpiffeId) -> Result<String, PeerError> {
    let suite = TLS13_AES_128_GCM_SHA256
        .tls13()
        .ok_or_else(|| PeerError::new(reason::TLS, "the TLS provider has no SHA-256"))?;
    let digest = suite.common.hash_provider.hash(id.to_string().as_bytes());
    let (left, right) = digest.as_ref().split_at(digest.as_ref().len() / 2);
    Ok(format!("{}.{}", hex(left), hex(right)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_matches_its_identity_and_no_other() {
        let long = format!(
            "spiffe://{}/ns/{}/sa/{}",
            "t".repeat(255),
            "n".repeat(63),
            "s".repeat(253)
        );
        let ids: Vec<SpiffeId> = ["spiffe://td/ns/a/sa/b", "spiffe://td/ns/a/sa/c", &long]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        for address in ["10.0.0.1:15008", "[2001:db8::ffff:ffff:ffff]:65535"] {
            for id in &ids {
                let name = server_name(id, address.parse().unwrap(), u64::MAX).unwrap();
                for other in &ids {
                    assert_eq!(is_expected(&name, other), id == other);
                }
            }
        }
    }

    #[test]
    fn a_name_of_another_make_matches_nobody() {
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        for name in ["td", "10.0.0.1", "spiffe.td.ns.a.sa.b"] {
            assert!(!is_expected(&ServerName::try_from(name).unwrap(), &id));
        }
    }

    #[test]
    fn address_and_epoch_keep_sessions_apart() {
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let name = |address: &str, epoch| server_name(&id, address.parse().unwrap(), epoch).unwrap();
        assert_ne!(name("10.0.0.1:1", 0), name("10.0.0.2:1", 0));
        assert_ne!(name("10.0.0.1:1", 0), name("10.0.0.1:1", 1));
    }
}
