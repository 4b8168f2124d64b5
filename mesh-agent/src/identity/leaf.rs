//! Reads the one certificate that says who somebody is: strictly, from bytes that may come from anybody. Never checks chains.

use std::time::{Duration, SystemTime};

use mesh_common::mutation::{self, Mechanism};
use mesh_core::model::{IdentityError, SpiffeId};
use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;

/// Longest SAN that is worth reading, in bytes (SPIFFE-ID, section 2.3: at most 2048).
const MAX_URI: usize = 2048;

/// Why a certificate is not the document of a workload (SPIFFE X509-SVID, sections 2, 4 and 5.2).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LeafError {
    /// Not DER of an X.509 certificate, or followed by more bytes.
    #[error("the certificate cannot be read: {0}")]
    Malformed(&'static str),
    /// No URI among the subject alternative names.
    #[error("the certificate has no URI SAN: it names no workload")]
    NoUriSan,
    /// Several URIs among the subject alternative names: which one counts would be a guess.
    #[error("the certificate has {0} URI SANs, not exactly one")]
    SeveralUriSans(usize),
    /// The URI is not the identity of a workload.
    #[error("the certificate's URI SAN is no identity: {0}")]
    NotSpiffe(IdentityError),
    /// A certificate that may sign others, or may not sign at all, proves no workload.
    #[error("the certificate is not one of a workload: {0}")]
    WrongUsage(&'static str),
}

/// What a workload's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The one URI SAN.
    pub identity: SpiffeId,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

impl Leaf {
    /// Reads the DER of an end-entity certificate. Says nothing about who signed it, nor whether it is valid now.
    ///
    /// # Errors
    /// See [`LeafError`].
    pub fn parse(der: &[u8]) -> Result<Self, LeafError> {
        let (rest, certificate) = X509Certificate::from_der(der)
            .map_err(|_| LeafError::Malformed("it is not an X.509 certificate"))?;
        if !rest.is_empty() {
            return Err(LeafError::Malformed("bytes follow it"));
        }
        check_usage(&certificate)?;
        let validity = certificate.validity();
        Ok(Self {
            identity: one_uri(&certificate)?,
            serial: hex(certificate.raw_serial()),
            not_before: system_time(validity.not_before)?,
            not_after: system_time(validity.not_after)?,
        })
    }

    /// Whether `now` lies within its validity, both ends included.
    pub fn valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

fn one_uri(certificate: &X509Certificate<'_>) -> Result<SpiffeId, LeafError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| LeafError::Malformed("its subject alternative names are repeated or unreadable"))?
        .ok_or(LeafError::NoUriSan)?;
    let uris: Vec<&str> = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris[..] {
        [] => Err(LeafError::NoUriSan),
        [uri] if uri.len() > MAX_URI => Err(LeafError::Malformed("its URI SAN is longer than 2048 bytes")),
        [uri] => uri.parse().map_err(LeafError::NotSpiffe),
        [uri, ..] if mutation::is_off(Mechanism::PeerSan) => uri.parse().map_err(LeafError::NotSpiffe),
        _ => Err(LeafError::SeveralUriSans(uris.len())),
    }
}

fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), LeafError> {
    let constraints = certificate
        .basic_constraints()
        .map_err(|_| LeafError::Malformed("its basic constraints are repeated or unreadable"))?;
    if constraints.is_some_and(|c| c.value.ca) {
        return Err(LeafError::WrongUsage("it is a CA's"));
    }
    let usage = certificate
        .key_usage()
        .map_err(|_| LeafError::Malformed("its key usage is repeated or unreadable"))?;
    match usage.map(|u| u.value) {
        Some(u) if u.key_cert_sign() || u.crl_sign() => {
            Err(LeafError::WrongUsage("its key may sign certificates"))
        }
        Some(u) if !u.digital_signature() => Err(LeafError::WrongUsage("its key may not make signatures")),
        _ => Ok(()),
    }
}

/// A time of a certificate on this system's clock.
pub(super) fn system_time(time: ASN1Time) -> Result<SystemTime, LeafError> {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let at = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    at.ok_or(LeafError::Malformed("its validity is out of range"))
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::tests::fixture::{self, Claims};

    fn parse(claims: &Claims) -> Result<Leaf, LeafError> {
        Leaf::parse(&fixture::root("td").leaf(claims).chain[0])
    }

    #[test]
    fn exactly_one_uri_is_an_identity() {
        let uri = "spiffe://td/ns/shop/sa/order";
        assert_eq!(parse(&Claims::uris(&[uri])).unwrap().identity.to_string(), uri);
        assert_eq!(parse(&Claims::uris(&[])), Err(LeafError::NoUriSan));
        assert_eq!(
            parse(&Claims::uris(&[uri, uri])),
            Err(LeafError::SeveralUriSans(2))
        );
        assert!(matches!(
            parse(&Claims::uris(&["https://td/x"])),
            Err(LeafError::NotSpiffe(_))
        ));
    }

    #[test]
    fn a_key_that_signs_certificates_proves_no_workload() {
        let mut claims = Claims::uris(&["spiffe://td/ns/shop/sa/order"]);
        claims.usages = vec![
            rcgen::KeyUsagePurpose::DigitalSignature,
            rcgen::KeyUsagePurpose::KeyCertSign,
        ];
        assert!(matches!(parse(&claims), Err(LeafError::WrongUsage(_))));
        claims.usages = vec![rcgen::KeyUsagePurpose::KeyAgreement];
        assert!(matches!(parse(&claims), Err(LeafError::WrongUsage(_))));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut der = fixture::root("td")
            .leaf(&Claims::uris(&["spiffe://td/ns/a/sa/b"]))
            .chain[0]
            .to_vec();
        der.push(0);
        assert_eq!(Leaf::parse(&der), Err(LeafError::Malformed("bytes follow it")));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(Leaf::parse(&bytes).is_err());
        }

        #[test]
        fn a_damaged_certificate_never_panics_and_never_grows_an_identity(
            at in any::<prop::sample::Index>(), xor in 1u8..,
        ) {
            let uri = "spiffe://td/ns/shop/sa/order";
            let mut der = fixture::root("td").leaf(&Claims::uris(&[uri])).chain[0].to_vec();
            let at = at.index(der.len());
            der[at] ^= xor;
            if let Ok(leaf) = Leaf::parse(&der) {
                prop_assert_eq!(leaf.identity.to_string().len(), uri.len());
            }
        }
    }
}
