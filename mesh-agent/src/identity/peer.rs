//! What is wrong with a peer, in one fixed word for metrics and one sentence for people.

use std::io;
use std::time::SystemTime;

use mesh_core::model::SpiffeId;
use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription, CertificateError};
use thiserror::Error;

use super::leaf::{Leaf, LeafError};

/// The words of [`PeerError::reason`].
pub mod reason {
    /// The peer showed no certificate.
    pub const NO_CERTIFICATE: &str = "no_certificate";
    /// The peer's certificate cannot be read.
    pub const MALFORMED: &str = "malformed_certificate";
    /// The peer's certificate names no workload.
    pub const NO_URI_SAN: &str = "no_uri_san";
    /// The peer's certificate names more than one URI.
    pub const TWO_URI_SANS: &str = "two_uri_sans";
    /// The peer's URI is not the SPIFFE id of a service account.
    pub const NOT_SPIFFE: &str = "not_spiffe";
    /// The peer is of a trust domain that is neither ours nor an alias of it.
    pub const FOREIGN_TRUST_DOMAIN: &str = "foreign_trust_domain";
    /// The peer is somebody, but not the workload that was dialled.
    pub const UNEXPECTED_IDENTITY: &str = "unexpected_identity";
    /// The peer's certificate is no longer valid.
    pub const EXPIRED: &str = "expired";
    /// The peer's certificate is not valid yet.
    pub const NOT_YET_VALID: &str = "not_yet_valid";
    /// The peer's chain does not lead to the trust bundle, or a signature is wrong.
    pub const UNTRUSTED: &str = "untrusted";
    /// The peer's certificate is for another use.
    pub const WRONG_USAGE: &str = "wrong_usage";
    /// The peer does not speak `h2` on this connection.
    pub const ALPN: &str = "alpn";
    /// No common TLS version, cipher suite or group: we speak TLS 1.3 only.
    pub const INCOMPATIBLE: &str = "incompatible_tls";
    /// The handshake took too long.
    pub const HANDSHAKE_TIMEOUT: &str = "handshake_timeout";
    /// The peer ended the handshake with an alert: it does not believe us.
    pub const REFUSED_BY_PEER: &str = "refused_by_peer";
    /// We have no valid certificate of our own for this identity.
    pub const NO_OWN_CERTIFICATE: &str = "no_own_certificate";
    /// The connection broke during the handshake.
    pub const IO: &str = "io";
    /// The peer broke the TLS protocol in another way.
    pub const TLS: &str = "tls";
}

/// Why a peer is not believed. `reason` words are the metric's label.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}: {message}")]
pub struct PeerError {
    /// A short fixed word, one of [`reason`].
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl PeerError {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// The same refusal, its message saying about whom.
    pub(super) fn about(mut self, whom: &str) -> Self {
        self.message = format!("{whom}: {}", self.message);
        self
    }

    /// As an error of a certificate verifier: ends the handshake with alert `certificate_unknown`.
    pub(super) fn into_tls(self) -> rustls::Error {
        CertificateError::Other(rustls::OtherError(std::sync::Arc::new(self))).into()
    }
}

impl From<LeafError> for PeerError {
    fn from(error: LeafError) -> Self {
        let reason = match error {
            LeafError::Malformed(_) => reason::MALFORMED,
            LeafError::NoUriSan => reason::NO_URI_SAN,
            LeafError::SeveralUriSans(_) => reason::TWO_URI_SANS,
            LeafError::NotSpiffe(_) => reason::NOT_SPIFFE,
            LeafError::WrongUsage(_) => reason::WRONG_USAGE,
        };
        Self::new(reason, error.to_string())
    }
}

impl From<&rustls::Error> for PeerError {
    fn from(error: &rustls::Error) -> Self {
        use rustls::Error as E;
        let (reason, hint) = match error {
            E::InvalidCertificate(certificate) => return Self::from(certificate),
            E::NoCertificatesPresented => (reason::NO_CERTIFICATE, "; is it a mesh agent?"),
            E::NoApplicationProtocol | E::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                (reason::ALPN, "; HBONE needs ALPN h2")
            }
            E::PeerIncompatible(_) => (reason::INCOMPATIBLE, "; HBONE needs TLS 1.3"),
            E::AlertReceived(AlertDescription::ProtocolVersion) => {
                (reason::INCOMPATIBLE, "; HBONE needs TLS 1.3")
            }
            E::AlertReceived(_) => (
                reason::REFUSED_BY_PEER,
                "; its log says why it does not believe us",
            ),
            _ => (reason::TLS, ""),
        };
        Self::new(reason, format!("{error}{hint}"))
    }
}

impl From<&CertificateError> for PeerError {
    fn from(error: &CertificateError) -> Self {
        use CertificateError as C;
        let (reason, hint) = match error {
            C::Other(other) => match other.0.downcast_ref::<Self>() {
                Some(ours) => return ours.clone(),
                None => (reason::UNTRUSTED, ""),
            },
            C::Expired | C::ExpiredContext { .. } => (
                reason::EXPIRED,
                "; does its issuer answer, and do the clocks agree?",
            ),
            C::NotValidYet | C::NotValidYetContext { .. } => {
                (reason::NOT_YET_VALID, "; do the clocks agree?")
            }
            C::BadEncoding | C::UnhandledCriticalExtension => (reason::MALFORMED, ""),
            C::InvalidPurpose | C::InvalidPurposeContext { .. } => (reason::WRONG_USAGE, ""),
            C::UnknownIssuer => (
                reason::UNTRUSTED,
                "; do both agents share a root (`meshctl certs`)?",
            ),
            _ => (reason::UNTRUSTED, ""),
        };
        Self::new(reason, format!("its certificate is refused: {error}{hint}"))
    }
}

impl From<&io::Error> for PeerError {
    fn from(error: &io::Error) -> Self {
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            Some(tls) => Self::from(tls),
            None => Self::new(
                reason::IO,
                format!("the connection broke during the handshake: {error}"),
            ),
        }
    }
}

/// The identity that a peer proved, checked again on every handshake, resumed ones too (rustls does not call verifiers then):
/// a certificate is there, valid now, with exactly one URI SAN, which is a SPIFFE id.
///
/// # Errors
/// See [`PeerError`].
pub fn peer_identity(chain: Option<&[CertificateDer<'_>]>, now: SystemTime) -> Result<SpiffeId, PeerError> {
    let der = chain
        .and_then(<[_]>::first)
        .ok_or_else(|| PeerError::new(reason::NO_CERTIFICATE, "the peer showed no certificate"))?;
    let leaf = Leaf::parse(der)?;
    if now > leaf.not_after {
        return Err(PeerError::new(
            reason::EXPIRED,
            format!("the certificate of {} has expired", leaf.identity),
        ));
    }
    if now < leaf.not_before {
        let message = format!(
            "the certificate of {} is not valid yet; do the clocks agree?",
            leaf.identity
        );
        return Err(PeerError::new(reason::NOT_YET_VALID, message));
    }
    Ok(leaf.identity)
}
