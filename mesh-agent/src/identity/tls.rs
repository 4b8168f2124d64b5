//! The TLS configurations of one identity: TLS 1.3, two cipher suites, post-quantum key exchange first, ALPN `h2`, no SNI.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::model::SpiffeId;
use rustls::client::{Resumption, Tls12Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::version::TLS13;
use rustls::{ClientConfig, Error, ServerConfig};

use super::credential::{Credential, CredentialSlot};
use super::sessions::Sessions;
use super::verify::{PeerVerifier, Trust};

/// The one protocol spoken inside.
pub(super) const ALPN: &[u8] = b"h2";

/// The cryptography of HBONE: AES-GCM suites of TLS 1.3; X25519MLKEM768, then X25519, P-256, P-384.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
}

/// The TLS configurations of one local identity. They live as long as the identity has a pod here: session resumption is tied to
/// them, and certificates rotate inside them. Used through [`connect`](super::connect) and [`accept`](super::accept) only:
/// what they check after the handshake cannot be forgotten, and the client configuration alone refuses every server.
#[derive(Clone)]
pub struct WorkloadTls {
    /// For dialling HBONE peers: presents the identity, checks chain, exactly one URI SAN, trust domain, and the expectation.
    pub(super) client: Arc<ClientConfig>,
    /// For accepting HBONE peers: likewise, client certificate required.
    pub(super) server: Arc<ServerConfig>,
    pub(super) shared: Arc<Shared>,
}

/// What both configurations of an identity stand on.
pub(super) struct Shared {
    pub(super) slot: Arc<CredentialSlot>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) trust: Arc<Trust>,
}

impl WorkloadTls {
    /// Configurations for `id`, without a certificate yet.
    pub(super) fn new(id: SpiffeId, trust: Arc<Trust>) -> Result<Self, Error> {
        let slot = Arc::new(CredentialSlot::new(id));
        let sessions = Arc::new(Sessions::new());
        let verifier = Arc::new(PeerVerifier(Arc::clone(&trust)));
        Ok(Self {
            client: Arc::new(client(&trust, &verifier, &slot, &sessions)?),
            server: Arc::new(server(&trust, &verifier, &slot, &sessions)?),
            shared: Arc::new(Shared {
                slot,
                sessions,
                trust,
            }),
        })
    }

    /// Whose they are.
    pub fn id(&self) -> &SpiffeId {
        self.shared.slot.id()
    }

    /// Whether there is a certificate that is valid at `now`. Without one, neither role completes a handshake.
    pub fn valid_at(&self, now: SystemTime) -> bool {
        self.shared.slot.valid_at(now)
    }

    /// Puts a certificate in force. What was proven with the one before is not resumed.
    pub(super) fn install(&self, credential: Credential) {
        self.shared.slot.store(credential);
        self.shared.sessions.forget_all();
    }
}

impl fmt::Debug for WorkloadTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadTls")
            .field("id", self.id())
            .finish_non_exhaustive()
    }
}

fn client(
    trust: &Trust,
    verifier: &Arc<PeerVerifier>,
    slot: &Arc<CredentialSlot>,
    sessions: &Arc<Sessions>,
) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(trust.provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(verifier) as _)
        .with_client_cert_resolver(Arc::clone(slot) as _);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption =
        Resumption::store(Arc::clone(sessions) as _).tls12_resumption(Tls12Resumption::Disabled);
    Ok(config)
}

fn server(
    trust: &Trust,
    verifier: &Arc<PeerVerifier>,
    slot: &Arc<CredentialSlot>,
    sessions: &Arc<Sessions>,
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(trust.provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::clone(verifier) as _)
        .with_cert_resolver(Arc::clone(slot) as _);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::clone(sessions) as _;
    Ok(config)
}
