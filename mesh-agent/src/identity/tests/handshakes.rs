//! Real handshakes over an in-memory pipe.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::model::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, Error, HandshakeKind, NamedGroup, ServerConfig,
    SignatureScheme,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use super::fixture::{self, Claims, Root, id, install, workload};
use crate::identity::{IssuedCertificate, PeerError, WorkloadTls, accept, connect, reason};

const ORDER: &str = "spiffe://td/ns/shop/sa/order";
const PAYMENT: &str = "spiffe://td/ns/shop/sa/payment";

fn address() -> SocketAddr {
    "10.0.0.1:15008".parse().unwrap()
}

type Connected = Result<(client::TlsStream<DuplexStream>, SpiffeId), PeerError>;

/// Both ends by the agent; one byte each way, so that tickets and late alerts arrive.
async fn meet(
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

struct Stranger<'a> {
    certificate: Option<&'a IssuedCertificate>,
    alpn: Option<&'a [u8]>,
    version: &'static rustls::SupportedProtocolVersion,
}

impl<'a> Stranger<'a> {
    fn with(certificate: &'a IssuedCertificate) -> Self {
        Self {
            certificate: Some(certificate),
            alpn: Some(b"h2"),
            version: &TLS13,
        }
    }

    fn pair(certificate: &IssuedCertificate) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (
            certificate.chain.clone(),
            PrivateKeyDer::Pkcs8(certificate.key.clone_key()),
        )
    }

    fn client(&self) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
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

    fn server(&self) -> ServerConfig {
        let (chain, key) = Self::pair(self.certificate.unwrap());
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = self.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }

    /// What the agent says of this stranger as client, and which error the stranger sees.
    async fn dials(&self, tls: &WorkloadTls) -> (Result<SpiffeId, PeerError>, Option<Error>) {
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
    async fn is_dialled(
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

/// The reason for which the agent refuses a certificate: it must be the same in both roles.
async fn refusal(root: &Root, certificate: &IssuedCertificate) -> &'static str {
    let tls = workload(root, &id(ORDER), &[]);
    let stranger = Stranger::with(certificate);
    let (as_client, _) = stranger.dials(&tls).await;
    let (as_server, _) = stranger.is_dialled(&tls, PAYMENT).await;
    let (as_client, as_server) = (as_client.unwrap_err(), as_server.unwrap_err());
    assert_eq!(as_client.reason, as_server.reason, "{as_client} / {as_server}");
    as_client.reason
}

#[tokio::test]
async fn two_workloads_prove_themselves_with_the_preferred_cryptography() {
    let root = fixture::root("td");
    let (order, payment) = (
        workload(&root, &id(ORDER), &[]),
        workload(&root, &id(PAYMENT), &[]),
    );
    let (client, server) = meet(&order, &payment, &id(PAYMENT)).await;
    let (stream, proven) = client.unwrap();
    assert_eq!((proven, server.unwrap()), (id(PAYMENT), id(ORDER)));
    let tls = stream.get_ref().1;
    assert_eq!(tls.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(
        tls.negotiated_key_exchange_group().unwrap().name(),
        NamedGroup::X25519MLKEM768
    );
    assert_eq!(
        tls.negotiated_cipher_suite().unwrap().suite(),
        rustls::CipherSuite::TLS13_AES_256_GCM_SHA384
    );
    assert_eq!(tls.alpn_protocol(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn the_wrong_server_is_refused_with_certificate_unknown() {
    let root = fixture::root("td");
    let tls = workload(&root, &id(ORDER), &[]);
    let other = root.leaf(&Claims::uris(&["spiffe://td/ns/shop/sa/evil"]));
    let (ours, theirs) = Stranger::with(&other).is_dialled(&tls, PAYMENT).await;
    let error = ours.unwrap_err();
    assert_eq!(error.reason, reason::UNEXPECTED_IDENTITY);
    assert!(
        error.message.contains("sa/evil") && error.message.contains(PAYMENT),
        "{error}"
    );
    assert_eq!(
        theirs,
        Some(Error::AlertReceived(AlertDescription::CertificateUnknown))
    );
}

#[tokio::test]
async fn a_foreign_trust_domain_is_refused_and_an_alias_is_not() {
    let root = fixture::root("td");
    let foreign = "spiffe://elsewhere/ns/shop/sa/payment";
    let certificate = root.leaf(&Claims::uris(&[foreign]));
    let stranger = Stranger::with(&certificate);
    let strict = workload(&root, &id(ORDER), &[]);
    for outcome in [
        stranger.dials(&strict).await,
        stranger.is_dialled(&strict, foreign).await,
    ] {
        assert_eq!(outcome.0.unwrap_err().reason, reason::FOREIGN_TRUST_DOMAIN);
        assert_eq!(
            outcome.1,
            Some(Error::AlertReceived(AlertDescription::CertificateUnknown))
        );
    }
    let tolerant = workload(&root, &id(ORDER), &["elsewhere"]);
    assert_eq!(stranger.dials(&tolerant).await.0.unwrap(), id(foreign));
    assert_eq!(
        stranger.is_dialled(&tolerant, foreign).await.0.unwrap(),
        id(foreign)
    );
}

#[tokio::test]
async fn bad_certificates_are_refused_by_reason_in_both_roles() {
    let root = fixture::root("td");
    let claims = Claims::uris(&[PAYMENT]);
    let leaf = |change: &dyn Fn(&mut Claims)| {
        let mut claims = claims.clone();
        change(&mut claims);
        root.leaf(&claims)
    };
    let expired = leaf(&|c| (c.not_before, c.not_after) = (-60, -1));
    assert_eq!(refusal(&root, &expired).await, reason::EXPIRED);
    let early = leaf(&|c| c.not_before = 3000);
    assert_eq!(refusal(&root, &early).await, reason::NOT_YET_VALID);
    let two = leaf(&|c| c.uris.push(ORDER.to_owned()));
    assert_eq!(refusal(&root, &two).await, reason::TWO_URI_SANS);
    let none = leaf(&|c| c.uris.clear());
    assert_eq!(refusal(&root, &none).await, reason::NO_URI_SAN);
    let dns_only = leaf(&|c| (c.uris.clear(), c.dns.push("payment.test".to_owned())).1);
    assert_eq!(refusal(&root, &dns_only).await, reason::NO_URI_SAN);
    let odd = leaf(&|c| c.uris = vec!["spiffe://td/payment".to_owned()]);
    assert_eq!(refusal(&root, &odd).await, reason::NOT_SPIFFE);
    let other_use = leaf(&|c| c.purposes = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning]);
    assert_eq!(refusal(&root, &other_use).await, reason::WRONG_USAGE);
    let ca = leaf(&|c| c.ca = true);
    assert_eq!(refusal(&root, &ca).await, reason::UNTRUSTED);
    assert_eq!(
        refusal(&root, &fixture::self_signed(&claims)).await,
        reason::UNTRUSTED
    );
    assert_eq!(
        refusal(&root, &fixture::root("td").leaf(&claims)).await,
        reason::UNTRUSTED
    );
}

#[tokio::test]
async fn a_dns_name_beside_the_uri_is_no_harm() {
    let root = fixture::root("td");
    let mut claims = Claims::uris(&[PAYMENT]);
    claims.dns.push("payment.test".to_owned());
    let certificate = root.leaf(&claims);
    let tls = workload(&root, &id(ORDER), &[]);
    assert_eq!(
        Stranger::with(&certificate).dials(&tls).await.0.unwrap(),
        id(PAYMENT)
    );
    assert_eq!(
        Stranger::with(&certificate)
            .is_dialled(&tls, PAYMENT)
            .await
            .0
            .unwrap(),
        id(PAYMENT)
    );
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let tls = workload(&fixture::root("td"), &id(ORDER), &[]);
    let stranger = Stranger {
        certificate: None,
        alpn: Some(b"h2"),
        version: &TLS13,
    };
    let (ours, theirs) = stranger.dials(&tls).await;
    assert_eq!(ours.unwrap_err().reason, reason::NO_CERTIFICATE);
    assert_eq!(
        theirs,
        Some(Error::AlertReceived(AlertDescription::CertificateRequired))
    );
}

#[tokio::test]
async fn tls_1_2_is_refused_in_both_roles() {
    let root = fixture::root("td");
    let tls = workload(&root, &id(ORDER), &[]);
    let certificate = root.leaf(&Claims::uris(&[PAYMENT]));
    let stranger = Stranger {
        version: &TLS12,
        ..Stranger::with(&certificate)
    };
    assert_eq!(
        stranger.dials(&tls).await.0.unwrap_err().reason,
        reason::INCOMPATIBLE
    );
    assert_eq!(
        stranger.is_dialled(&tls, PAYMENT).await.0.unwrap_err().reason,
        reason::INCOMPATIBLE
    );
}

#[tokio::test]
async fn anything_but_alpn_h2_is_refused_in_both_roles() {
    let root = fixture::root("td");
    let tls = workload(&root, &id(ORDER), &[]);
    let certificate = root.leaf(&Claims::uris(&[PAYMENT]));
    for alpn in [Some(&b"http/1.1"[..]), None] {
        let stranger = Stranger {
            alpn,
            ..Stranger::with(&certificate)
        };
        assert_eq!(
            stranger.dials(&tls).await.0.unwrap_err().reason,
            reason::ALPN,
            "{alpn:?}"
        );
        assert_eq!(
            stranger.is_dialled(&tls, PAYMENT).await.0.unwrap_err().reason,
            reason::ALPN,
            "{alpn:?}"
        );
    }
}

#[tokio::test]
async fn a_second_handshake_is_resumed_and_proves_the_same() {
    let root = fixture::root("td");
    let (order, payment) = (
        workload(&root, &id(ORDER), &[]),
        workload(&root, &id(PAYMENT), &[]),
    );
    let kind = |connected: &Connected| connected.as_ref().unwrap().0.get_ref().1.handshake_kind();
    let (first, _) = meet(&order, &payment, &id(PAYMENT)).await;
    assert_eq!(kind(&first), Some(HandshakeKind::Full));
    let (second, accepted) = meet(&order, &payment, &id(PAYMENT)).await;
    assert_eq!(kind(&second), Some(HandshakeKind::Resumed));
    assert_eq!((second.unwrap().1, accepted.unwrap()), (id(PAYMENT), id(ORDER)));
}

#[tokio::test]
async fn a_session_is_not_offered_for_another_expectation() {
    let root = fixture::root("td");
    let (order, payment) = (
        workload(&root, &id(ORDER), &[]),
        workload(&root, &id(PAYMENT), &[]),
    );
    meet(&order, &payment, &id(PAYMENT)).await.0.unwrap();
    let (refused, _) = meet(&order, &payment, &id("spiffe://td/ns/shop/sa/other")).await;
    assert_eq!(refused.unwrap_err().reason, reason::UNEXPECTED_IDENTITY);
}

#[tokio::test]
async fn a_session_of_one_identity_is_never_resumed_by_another() {
    let root = fixture::root("td");
    let (order, payment) = (
        workload(&root, &id(ORDER), &[]),
        workload(&root, &id(PAYMENT), &[]),
    );
    let cart = workload(&root, &id("spiffe://td/ns/shop/sa/cart"), &[]);
    meet(&order, &payment, &id(PAYMENT)).await.0.unwrap();
    let (connected, accepted) = meet(&cart, &payment, &id(PAYMENT)).await;
    assert_eq!(
        connected.unwrap().0.get_ref().1.handshake_kind(),
        Some(HandshakeKind::Full)
    );
    assert_eq!(accepted.unwrap(), *cart.id());
}

#[tokio::test]
async fn a_rotated_certificate_ends_sessions_on_either_side_but_no_connection() {
    let root = fixture::root("td");
    let (order, payment) = (
        workload(&root, &id(ORDER), &[]),
        workload(&root, &id(PAYMENT), &[]),
    );
    for rotated in [&order, &payment] {
        meet(&order, &payment, &id(PAYMENT)).await.0.unwrap();
        let (near, far) = duplex(64 * 1024);
        let (to, expected) = (payment.clone(), id(PAYMENT));
        let (client, server) = tokio::join!(connect(&order, &expected, address(), near), accept(&to, far));
        let ((mut client, _), (mut server, _)) = (client.unwrap(), server.unwrap());
        let configs = (Arc::clone(&rotated.client), Arc::clone(&rotated.server));

        install(rotated, &root.leaf(&Claims::uris(&[&rotated.id().to_string()])));

        client.write_all(b"still here").await.unwrap();
        client.flush().await.unwrap();
        let mut heard = [0; 10];
        server.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"still here");
        assert!(Arc::ptr_eq(&configs.0, &rotated.client) && Arc::ptr_eq(&configs.1, &rotated.server));
        let (next, _) = meet(&order, &payment, &id(PAYMENT)).await;
        assert_eq!(
            next.unwrap().0.get_ref().1.handshake_kind(),
            Some(HandshakeKind::Full)
        );
    }
}

#[tokio::test]
async fn without_a_certificate_of_our_own_neither_role_shakes_hands() {
    let root = fixture::root("td");
    let order = workload(&root, &id(ORDER), &[]);
    let mut claims = Claims::uris(&[ORDER]);
    claims.not_after = 1;
    install(&order, &root.leaf(&claims));
    std::thread::sleep(std::time::Duration::from_millis(2100));
    assert!(!order.valid_at(SystemTime::now()));
    let (near, far) = duplex(1024);
    assert_eq!(
        accept(&order, near).await.unwrap_err().reason,
        reason::NO_OWN_CERTIFICATE
    );
    let refused = connect(&order, &id(PAYMENT), address(), far).await.unwrap_err();
    assert_eq!(refused.reason, reason::NO_OWN_CERTIFICATE);
}

#[tokio::test]
async fn the_client_configuration_alone_refuses_every_server() {
    let root = fixture::root("td");
    let (order, payment) = (
        workload(&root, &id(ORDER), &[]),
        workload(&root, &id(PAYMENT), &[]),
    );
    let (near, far) = duplex(64 * 1024);
    let name = ServerName::try_from("10.0.0.1").unwrap();
    let (client, _) = tokio::join!(
        TlsConnector::from(Arc::clone(&order.client)).connect(name, near),
        accept(&payment, far)
    );
    assert_eq!(
        PeerError::from(&client.unwrap_err()).reason,
        reason::UNEXPECTED_IDENTITY
    );
}

#[tokio::test]
async fn a_peer_that_hangs_up_or_talks_nonsense_is_told_apart() {
    let order = workload(&fixture::root("td"), &id(ORDER), &[]);
    let (near, far) = duplex(1024);
    drop(far);
    assert_eq!(accept(&order, near).await.unwrap_err().reason, reason::IO);
    let (near, mut far) = duplex(1024);
    far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(accept(&order, near).await.unwrap_err().reason, reason::TLS);
}
