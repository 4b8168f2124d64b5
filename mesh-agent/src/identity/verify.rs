//! Whom we believe: chain to the trust bundle, then exactly one URI SAN, then the trust domain, then (as client) the expectation.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_common::mutation::{self, Mechanism};
use mesh_core::model::{SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};

use super::expectation;
use super::leaf::Leaf;
use super::peer::{PeerError, reason};

/// The anchors in force, in the two forms that rustls wants.
struct Anchors {
    ders: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    /// `None` for an empty bundle: nobody is believed.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl Anchors {
    fn new(ders: Vec<CertificateDer<'static>>, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let ders = in_order(ders);
        let mut roots = RootCertStore::empty();
        for der in &ders {
            roots.add(der.clone())?;
        }
        let roots = Arc::new(roots);
        let clients = if roots.is_empty() {
            None
        } else {
            let builder =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider));
            Some(
                builder
                    .build()
                    .map_err(|error| Error::General(error.to_string()))?,
            )
        };
        Ok(Self { ders, roots, clients })
    }
}

/// So that bundles compare as the sets they are.
fn in_order(mut ders: Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>> {
    ders.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    ders.dedup();
    ders
}

/// What all identities of the node believe: one trust bundle, exchanged while in use, and the names of the trust domain.
pub(super) struct Trust {
    provider: Arc<CryptoProvider>,
    local: TrustDomain,
    aliases: Vec<TrustDomain>,
    anchors: ArcSwap<Anchors>,
}

impl Trust {
    /// Believes chains to `bundle` and ids of `local` or `aliases`. An empty bundle believes nobody.
    pub(super) fn new(
        provider: Arc<CryptoProvider>,
        local: TrustDomain,
        aliases: Vec<TrustDomain>,
        bundle: Vec<CertificateDer<'static>>,
    ) -> Result<Self, Error> {
        let anchors = ArcSwap::from_pointee(Anchors::new(bundle, &provider)?);
        Ok(Self {
            provider,
            local,
            aliases,
            anchors,
        })
    }

    pub(super) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    /// Puts another bundle in force; says whether it differs. On error the old one stays.
    pub(super) fn replace_bundle(&self, bundle: Vec<CertificateDer<'static>>) -> Result<bool, Error> {
        if self.anchors.load().ders == in_order(bundle.clone()) {
            return Ok(false);
        }
        self.anchors
            .store(Arc::new(Anchors::new(bundle, &self.provider)?));
        Ok(true)
    }

    /// Refuses ids of foreign trust domains.
    pub(super) fn check_domain(&self, id: &SpiffeId) -> Result<(), PeerError> {
        let domain = id.trust_domain();
        let off = mutation::is_off(Mechanism::TrustDomain);
        if *domain == self.local || self.aliases.contains(domain) || off {
            return Ok(());
        }
        let message = format!(
            "{id} is of trust domain {domain}; ours is {} (see trustDomainAliases)",
            self.local
        );
        Err(PeerError::new(reason::FOREIGN_TRUST_DOMAIN, message))
    }

    /// Whom a test build takes a client without a certificate for.
    pub(super) fn nobody(&self) -> Option<SpiffeId> {
        format!("spiffe://{}/ns/nobody/sa/nobody", self.local)
            .parse()
            .ok()
    }

    /// Whom a certificate names whose chain was found good.
    fn named(&self, der: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
        let leaf = Leaf::parse(der)?;
        self.check_domain(&leaf.identity)?;
        Ok(leaf.identity)
    }
}

/// The verifier of one identity's configurations, in both roles. One per identity: rustls ties sessions to it.
pub(super) struct PeerVerifier(pub(super) Arc<Trust>);

impl PeerVerifier {
    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, dss, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.0
            .provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".to_owned())
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier")
            .field("local", &self.0.local)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let roots = Arc::clone(&self.0.anchors.load().roots);
        let algorithms = self.0.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &roots, intermediates, now, algorithms)?;
        let proven = self.0.named(end_entity).map_err(PeerError::into_tls)?;
        if !expectation::is_expected(server_name, &proven) && !mutation::is_off(Mechanism::ExpectedId) {
            let message = format!("the server proved to be {proven}, which is not whom we dialled");
            return Err(PeerError::new(reason::UNEXPECTED_IDENTITY, message).into_tls());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        !mutation::is_off(Mechanism::ClientCertificate)
    }

    /// None: a client of the mesh has one certificate, and strangers need not learn our roots.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let anchors = self.0.anchors.load_full();
        let clients = anchors
            .clients
            .as_ref()
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let verified = clients.verify_client_cert(end_entity, intermediates, now)?;
        self.0.named(end_entity).map_err(PeerError::into_tls)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
