//! Who a workload is: certificates, the CA that issues them, and the TLS configurations that prove and check identities.
//! Private keys never leave this module.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::model::SpiffeId;
use thiserror::Error;

/// A certificate for one identity, as an issuer hands it out. No `Debug` of the key.
pub struct IssuedCertificate {
    /// Leaf first, then intermediates; DER.
    pub chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    /// PKCS#8 DER of the leaf's private key.
    pub key: rustls::pki_types::PrivatePkcs8KeyDer<'static>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// Why no certificate was issued.
#[derive(Debug, Error)]
pub enum IssueError {
    /// The issuer cannot be reached or answered with a passing fault: worth a retry.
    #[error("the certificate issuer is away: {0}")]
    Unavailable(String),
    /// The issuer refuses: a retry does not help.
    #[error("the certificate issuer refused {id}: {why}")]
    Refused {
        /// For which identity.
        id: SpiffeId,
        /// In its words.
        why: String,
    },
}

/// Hands out certificates: the embedded CA, later others. A seam with the outside world.
pub trait Issuer: Send + Sync {
    /// A new key and certificate for `id`, valid for about `lifetime`. May block: called off the data path.
    ///
    /// # Errors
    /// See [`IssueError`].
    fn issue(&self, id: &SpiffeId, lifetime: Duration) -> Result<IssuedCertificate, IssueError>;

    /// The certificates that peers' chains must lead to; DER.
    fn trust_bundle(&self) -> Vec<rustls::pki_types::CertificateDer<'static>>;
}

/// The TLS configurations of one local identity. They live as long as the identity has a pod here: session resumption is tied to
/// them, and certificates rotate inside them.
#[derive(Clone)]
pub struct WorkloadTls {
    /// For dialling HBONE peers: presents the identity, checks chain, exactly one URI SAN, and trust domain.
    pub client: Arc<rustls::ClientConfig>,
    /// For accepting HBONE peers: likewise, client certificate required.
    pub server: Arc<rustls::ServerConfig>,
}

/// The identities of this node's pods: one certificate each, kept fresh.
#[derive(Default)]
pub struct Identities {}

impl Identities {
    /// The TLS configurations of `id`; `None` while it has no valid certificate: refuse the connection.
    pub fn tls(&self, _id: &SpiffeId) -> Option<WorkloadTls> {
        None
    }
}

/// Why a peer is not believed. `reason` words are the metric's label.
#[derive(Debug, Error)]
#[error("{reason}: {message}")]
pub struct PeerError {
    /// A short fixed word, such as `no_certificate`, `two_uri_sans`, `foreign_trust_domain`, `unexpected_identity`, `expired`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The identity that a peer proved, checked again on every handshake, resumed ones too (rustls does not call verifiers then):
/// a certificate is there, valid now, with exactly one URI SAN, which is a SPIFFE id.
///
/// # Errors
/// See [`PeerError`].
pub fn peer_identity(
    _chain: Option<&[rustls::pki_types::CertificateDer<'_>]>,
    _now: SystemTime,
) -> Result<SpiffeId, PeerError> {
    Err(PeerError {
        reason: "placeholder",
        message: String::new(),
    })
}

/// Temporary.
pub async fn connect<Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(tls: &WorkloadTls, expected: &SpiffeId, address: std::net::SocketAddr, io: Io) -> Result<(tokio_rustls::client::TlsStream<Io>, SpiffeId), PeerError> {
    let _ = (expected,);
    let s = tokio_rustls::TlsConnector::from(tls.client.clone()).connect(address.ip().into(), io).await.map_err(|e| PeerError { reason: "tls", message: e.to_string() })?;
    let id = peer_identity(s.get_ref().1.peer_certificates(), SystemTime::now())?;
    Ok((s, id))
}

/// Temporary.
pub async fn accept<Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(tls: &WorkloadTls, io: Io) -> Result<(tokio_rustls::server::TlsStream<Io>, SpiffeId), PeerError> {
    let s = tokio_rustls::TlsAcceptor::from(tls.server.clone()).accept(io).await.map_err(|e| PeerError { reason: "tls", message: e.to_string() })?;
    let id = peer_identity(s.get_ref().1.peer_certificates(), SystemTime::now())?;
    Ok((s, id))
}
