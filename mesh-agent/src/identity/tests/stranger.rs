//! The other end of a handshake: an agent's, or that of a stranger who follows rules of his own.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::model::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use super::fixture::id;
use crate::identity::{IssuedCertificate, PeerError, WorkloadTls, accept, connect};

pub(super) const ORDER: &str = "spiffe://td/ns/shop/sa/order";
pub(super) const PAYMENT: &str = "spiffe://td/ns/shop/sa/payment";

pub(super) fn address() -> SocketAddr {
    "10.0.0.1:15008".parse().unwrap()
}

pub(super) type Connected = Result<(client::TlsStream<DuplexStream>, SpiffeId), PeerError>;

/// Both ends by the agent; one byte each way, so that tickets and late alerts arrive.
pub(super) async fn meet(
    from: &WorkloadTls,
    to: &WorkloadTls,
    expected: &SpiffeId,
) -> (Connected, Result<SpiffeId, PeerError>) {
    let (near, far) = duplex(64 * 1024);
    let server = async {
        let (mut stream, id) = accept(to, far).await?;
        stream.write_all(b"x").await.unwrap();
        let mut one = [0];
        let _ = stream.read(&mut one).await;
        Ok(id)
    };
    let client = async {
        let (mut stream, id) = connect(from, expected, address(), near).await?;
        let mut one = [0];
        if let Err(error) = stream.read_exact(&mut one).await {
            return Err(PeerError::from(&error));
        }
        let _ = stream.write_all(b"x").await;
        Ok((stream, id))
    };
    tokio::join!(client, server)
}

/// A stranger that believes everybody and shows what it is given.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

pub(super) struct Stranger<'a> {
    pub(super) certificate: Option<&'a IssuedCertificate>,
    pub(super) alpn: Option<&'a [u8]>,
    pub(super) version: &'static rustls::SupportedProtocolVersion,
    /// The one key exchange it knows; `None`: all.
    pub(super) group: Option<&'static dyn SupportedKxGroup>,
}

impl<'a> Stranger<'a> {
    pub(super) fn with(certificate: &'a IssuedCertificate) -> Self {
        Self {
            certificate: Some(certificate),
            alpn: Some(b"h2"),
            version: &TLS13,
            group: None,
        }
    }

    fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = aws_lc_rs::default_provider();
        if let Some(group) = self.group {
            provider.kx_groups = vec![group];
        }
        Arc::new(provider)
    }

    fn pair(certificate: &IssuedCertificate) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (
            certificate.chain.clone(),
            PrivateKeyDer::Pkcs8(certificate.key.clone_key()),
        )
    }

    pub(super) fn client(&self) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(self.provider())
            .with_protocol_versions(&[self.version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible));
        let mut config = match self.certificate {
            Some(certificate) => {
                let (chain, key) = Self::pair(certificate);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }

    pub(super) fn server(&self) -> ServerConfig {
        let (chain, key) = Self::pair(self.certificate.unwrap());
        let mut config = ServerConfig::builder_with_provider(self.provider())
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = self.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }

    /// What the agent says of this stranger as client, and which error the stranger sees.
    pub(super) async fn dials(&self, tls: &WorkloadTls) -> (Result<SpiffeId, PeerError>, Option<Error>) {
        let (near, far) = duplex(64 * 1024);
        let server = async { accept(tls, far).await.map(|(_, id)| id) };
        let client = async {
            let name = ServerName::try_from("stranger.test").unwrap();
            let mut stream = match TlsConnector::from(Arc::new(self.client()))
                .connect(name, near)
                .await
            {
                Ok(stream) => stream,
                Err(error) => return tls_error(&error),
            };
            stream.read_u8().await.err().and_then(|error| tls_error(&error))
        };
        tokio::join!(server, client)
    }

    /// What the agent says of this stranger as server, and which error the stranger sees.
    pub(super) async fn is_dialled(
        &self,
        tls: &WorkloadTls,
        expected: &str,
    ) -> (Result<SpiffeId, PeerError>, Option<Error>) {
        let (near, far) = duplex(64 * 1024);
        let client = async {
            connect(tls, &id(expected), address(), near)
                .await
                .map(|(_, id)| id)
        };
        let server = async {
            let outcome = TlsAcceptor::from(Arc::new(self.server())).accept(far).await;
            outcome.err().and_then(|error| tls_error(&error))
        };
        tokio::join!(client, server)
    }
}

fn tls_error(error: &std::io::Error) -> Option<Error> {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
        .cloned()
}
