//! Real handshakes over an in-memory pipe.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::kx_group;
use rustls::pki_types::ServerName;
use rustls::server::Acceptor;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, CipherSuite, Error, NamedGroup};
use tokio::io::{AsyncWriteExt as _, duplex};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use super::fixture::{self, Claims, Root, id, install, workload};
use super::stranger::{ORDER, PAYMENT, Stranger, address, meet};
use crate::identity::{IssuedCertificate, PeerError, accept, connect, reason};

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
async fn peers_without_post_quantum_groups_are_met_on_what_they_know() {
    let root = fixture::root("td");
    let tls = workload(&root, &id(ORDER), &[]);
    let certificate = root.leaf(&Claims::uris(&[PAYMENT]));
    for group in [kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1] {
        let stranger = Stranger {
            group: Some(group),
            ..Stranger::with(&certificate)
        };
        stranger.dials(&tls).await.0.unwrap();
        stranger.is_dialled(&tls, PAYMENT).await.0.unwrap();
    }
}

#[tokio::test]
async fn the_first_message_names_no_server_and_offers_h2_alone() {
    let tls = workload(&fixture::root("td"), &id(ORDER), &[]);
    let (near, far) = duplex(64 * 1024);
    let expected = id(PAYMENT);
    let dial = connect(&tls, &expected, address(), near);
    let hear = async {
        let heard = LazyConfigAcceptor::new(Acceptor::default(), far).await.unwrap();
        let hello = heard.client_hello();
        let alpn: Vec<Vec<u8>> = hello.alpn().unwrap().map(<[u8]>::to_vec).collect();
        (
            hello.server_name().map(str::to_owned),
            alpn,
            hello.cipher_suites().to_vec(),
        )
    };
    let (_, (name, alpn, suites)) = tokio::join!(dial, hear);
    assert_eq!((name, alpn), (None, vec![b"h2".to_vec()]));
    let allowed = [
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        CipherSuite::TLS13_AES_128_GCM_SHA256,
    ];
    assert_eq!(suites, allowed);
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
        group: None,
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
