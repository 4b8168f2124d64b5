//! The set of wanted identities and the rotation task, in real time with short-lived certificates.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::fixture::{ScriptedIssuer, id, root};
use crate::identity::{
    CertificateState, Identities, IdentitiesError, IdentityOptions, IssueError, IssuedCertificate, Issuer,
    accept, connect, reason,
};

const ORDER: &str = "spiffe://td/ns/shop/sa/order";
const PAYMENT: &str = "spiffe://td/ns/shop/sa/payment";

fn identities(issuer: &Arc<ScriptedIssuer>, seconds: u64) -> Arc<Identities> {
    let options = IdentityOptions {
        lifetime: Duration::from_secs(seconds),
        trust_domain: "td".parse().unwrap(),
        aliases: Vec::new(),
    };
    Arc::new(Identities::new(Arc::clone(issuer) as Arc<dyn Issuer>, options).unwrap())
}

fn rotate(identities: &Arc<Identities>) -> CancellationToken {
    let shutdown = CancellationToken::new();
    let (identities, token) = (Arc::clone(identities), shutdown.clone());
    tokio::spawn(async move { identities.run(token).await });
    shutdown
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_identity_is_there_once_ensured_and_gone_once_not_retained() {
    let issuer = Arc::new(ScriptedIssuer::new());
    let identities = identities(&issuer, 3600);
    let (order, payment) = (id(ORDER), id(PAYMENT));
    assert!(identities.tls(&order).is_none() && identities.status().is_empty());
    identities.ensure(&order).await.unwrap();
    identities.ensure(&payment).await.unwrap();
    assert_eq!(identities.tls(&order).unwrap().id(), &order);
    assert_eq!(identities.expiries().len(), 2);
    identities.retain(&HashSet::from([payment.clone()]));
    assert!(identities.tls(&order).is_none() && identities.tls(&payment).is_some());
}

#[tokio::test]
async fn many_who_ensure_at_once_ask_the_issuer_once() {
    let issuer = Arc::new(ScriptedIssuer {
        delay: Duration::from_millis(50),
        ..ScriptedIssuer::new()
    });
    let identities = identities(&issuer, 3600);
    let _stop = rotate(&identities).drop_guard();
    let order = id(ORDER);
    let waits = (0..20).map(|_| identities.ensure(&order));
    for outcome in futures_util::future::join_all(waits).await {
        outcome.unwrap();
    }
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_issuer_that_is_away_is_asked_again_until_it_answers() {
    let issuer = Arc::new(ScriptedIssuer::new());
    issuer.failing.store(true, Ordering::SeqCst);
    let identities = identities(&issuer, 3600);
    let _stop = rotate(&identities).drop_guard();
    let order = id(ORDER);
    let refused = identities.ensure(&order).await;
    assert!(matches!(
        refused,
        Err(IdentitiesError::Issue(IssueError::Unavailable(_)))
    ));
    assert!(identities.tls(&order).is_none());
    let status = &identities.status()[0];
    assert_eq!(status.state, CertificateState::Pending);
    assert!(status.last_error.as_ref().unwrap().contains("scripted"));
    issuer.failing.store(false, Ordering::SeqCst);
    until("the rotation task tries again", || {
        identities.tls(&order).is_some()
    })
    .await;
    assert_eq!(identities.status()[0].state, CertificateState::Valid);
}

#[tokio::test]
async fn certificates_rotate_under_new_and_standing_connections_without_a_failure() {
    let issuer = Arc::new(ScriptedIssuer::new());
    let identities = identities(&issuer, 4);
    let _stop = rotate(&identities).drop_guard();
    let (order, payment) = (id(ORDER), id(PAYMENT));
    let (from, to) = (
        identities.ensure(&order).await.unwrap(),
        identities.ensure(&payment).await.unwrap(),
    );
    let first = identities.status()[0].serial.clone();
    let start = Instant::now();
    let (mut full, mut resumed) = (0u32, 0u32);
    while start.elapsed() < Duration::from_secs(7) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let address = "10.0.0.1:15008".parse().unwrap();
        let (client, server) = tokio::join!(connect(&from, &payment, address, near), accept(&to, far));
        // Reading the tickets, so that later handshakes resume.
        let ((mut client, _), (mut server, _)) = (client.unwrap(), server.unwrap());
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        client.read_u8().await.unwrap();
        match client.get_ref().1.handshake_kind() {
            Some(rustls::HandshakeKind::Resumed) => resumed += 1,
            _ => full += 1,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(resumed > 50 && full >= 3, "{resumed} resumed, {full} full");
    assert_ne!(identities.status()[0].serial, first);
    assert!(
        issuer.asked.load(Ordering::SeqCst) >= 6,
        "two identities, three certificates each"
    );
}

#[tokio::test]
async fn while_renewal_fails_the_old_certificate_serves_until_it_ends() {
    let issuer = Arc::new(ScriptedIssuer::new());
    let identities = identities(&issuer, 3);
    let _stop = rotate(&identities).drop_guard();
    let order = id(ORDER);
    let held = identities.ensure(&order).await.unwrap();
    issuer.failing.store(true, Ordering::SeqCst);
    let state = || identities.status()[0].state;
    until("renewal fails", || state() == CertificateState::RenewalFailing).await;
    assert!(identities.tls(&order).is_some());
    until("it ends", || state() == CertificateState::Expired).await;
    assert!(identities.tls(&order).is_none());
    let (near, _far) = tokio::io::duplex(1024);
    assert_eq!(
        accept(&held, near).await.unwrap_err().reason,
        reason::NO_OWN_CERTIFICATE
    );
    issuer.failing.store(false, Ordering::SeqCst);
    until("it comes back", || identities.tls(&order).is_some()).await;
}

#[tokio::test]
async fn a_new_root_is_believed_and_the_old_one_is_not() {
    let issuer = Arc::new(ScriptedIssuer::new());
    let identities = identities(&issuer, 3600);
    let (order, payment) = (id(ORDER), id(PAYMENT));
    let old = identities.ensure(&order).await.unwrap();
    *issuer.root.lock().unwrap() = root("next");
    let new = identities.ensure(&payment).await.unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (_, server) = tokio::join!(
        connect(&old, &payment, "10.0.0.1:1".parse().unwrap(), near),
        accept(&new, far)
    );
    assert_eq!(server.unwrap_err().reason, reason::UNTRUSTED);
}

#[tokio::test]
async fn a_new_root_is_noticed_without_an_issuance() {
    let issuer = Arc::new(ScriptedIssuer::new());
    let identities = identities(&issuer, 3600);
    let order = id(ORDER);
    let tls = identities.ensure(&order).await.unwrap();
    *issuer.root.lock().unwrap() = root("next");
    let _stop = rotate(&identities).drop_guard();
    let epoch = tls.shared.sessions.epoch();
    until("sessions end with the old root", || {
        tls.shared.sessions.epoch() > epoch
    })
    .await;
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 1);
}

/// Hands out certificates that live longer than asked.
struct Generous(ScriptedIssuer);

impl Issuer for Generous {
    fn issue(&self, id: &mesh_core::model::SpiffeId, _: Duration) -> Result<IssuedCertificate, IssueError> {
        self.0.issue(id, Duration::from_secs(86_400))
    }

    fn trust_bundle(&self) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        self.0.trust_bundle()
    }
}

#[tokio::test]
async fn a_certificate_that_lives_longer_than_asked_is_not_renewed_early() {
    let issuer = Arc::new(Generous(ScriptedIssuer::new()));
    let options = IdentityOptions {
        lifetime: Duration::from_secs(1),
        trust_domain: "td".parse().unwrap(),
        aliases: Vec::new(),
    };
    let identities = Arc::new(Identities::new(Arc::clone(&issuer) as Arc<dyn Issuer>, options).unwrap());
    let _stop = rotate(&identities).drop_guard();
    identities.ensure(&id(ORDER)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(issuer.0.asked.load(Ordering::SeqCst), 1);
}

/// Hands out certificates of somebody else.
struct Confused(ScriptedIssuer);

impl Issuer for Confused {
    fn issue(
        &self,
        _: &mesh_core::model::SpiffeId,
        lifetime: Duration,
    ) -> Result<IssuedCertificate, IssueError> {
        self.0.issue(&id(PAYMENT), lifetime)
    }

    fn trust_bundle(&self) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        self.0.trust_bundle()
    }
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_not_put_in_force() {
    let options = IdentityOptions {
        lifetime: Duration::from_secs(60),
        trust_domain: "td".parse().unwrap(),
        aliases: Vec::new(),
    };
    let identities = Identities::new(Arc::new(Confused(ScriptedIssuer::new())), options).unwrap();
    let refused = identities.ensure(&id(ORDER)).await;
    assert!(matches!(
        refused,
        Err(IdentitiesError::Issue(IssueError::Unusable { .. }))
    ));
    assert!(identities.tls(&id(ORDER)).is_none());
}

/// Everything that is logged, as text.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_key_shows_in_debug_output_nor_in_status_or_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);

    let issuer = Arc::new(ScriptedIssuer::new());
    let identities = identities(&issuer, 60);
    let tls = identities.ensure(&id(ORDER)).await.unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let expected = id(ORDER);
    let (client, server) = tokio::join!(
        connect(&tls, &expected, "10.0.0.1:1".parse().unwrap(), near),
        accept(&tls, far)
    );
    let mut shown = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(shown.contains("certificate issued"), "{shown}");
    shown += &format!(
        "{identities:?} {tls:?} {:?} {:?} {client:?} {server:?} {}",
        tls.client,
        tls.server,
        serde_json::to_string(&identities.status()).unwrap()
    );
    assert!(shown.contains(ORDER));
    let shown = shown.to_lowercase();
    for secret in issuer.secrets.lock().unwrap().iter() {
        for form in [
            format!("{:?}", &secret[..8]),
            format!("{:x?}", &secret[..8]),
            format!("{:02x?}", &secret[..8]),
        ] {
            let form = form.trim_matches(['[', ']']);
            assert!(
                !shown.contains(form) && !shown.contains(&form.replace(", ", "")),
                "a key shows"
            );
        }
    }
}
