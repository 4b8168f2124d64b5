//! The certificate and key that one identity proves itself with, and the slot in which they are exchanged while connections live.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use mesh_core::model::SpiffeId;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::leaf::Leaf;
use super::{IssueError, IssuedCertificate};

/// A certificate with its key, checked to serve `leaf.identity`. No `Debug`: it holds a key.
pub(super) struct Credential {
    key: Arc<CertifiedKey>,
    /// What the certificate says.
    pub(super) leaf: Leaf,
    /// When it was issued, by our clock.
    pub(super) issued: SystemTime,
}

impl Credential {
    /// Checks what an issuer handed out for `id`: the right identity, valid now, key and certificate of one pair.
    pub(super) fn new(
        id: &SpiffeId,
        certificate: &IssuedCertificate,
        now: SystemTime,
    ) -> Result<Self, IssueError> {
        let unusable = |why: String| IssueError::Unusable { id: id.clone(), why };
        let der = certificate
            .chain
            .first()
            .ok_or_else(|| unusable("the chain is empty".to_owned()))?;
        let leaf = Leaf::parse(der).map_err(|error| unusable(error.to_string()))?;
        if leaf.identity != *id {
            return Err(unusable(format!("it is one of {}", leaf.identity)));
        }
        if !leaf.valid_at(now) {
            return Err(unusable("it is not valid now; do the clocks agree?".to_owned()));
        }
        let borrowed = PrivatePkcs8KeyDer::from(certificate.key.secret_pkcs8_der());
        let key = any_ecdsa_type(&PrivateKeyDer::Pkcs8(borrowed))
            .map_err(|_| unusable("the key is not an ECDSA key in PKCS#8".to_owned()))?;
        let key = CertifiedKey::new(certificate.chain.clone(), key);
        key.keys_match()
            .map_err(|_| unusable("the key is not the certificate's".to_owned()))?;
        Ok(Self {
            key: Arc::new(key),
            leaf,
            issued: now,
        })
    }
}

/// Where the credential in force lies. An expired one is not shown: the handshake fails.
pub(super) struct CredentialSlot {
    id: SpiffeId,
    current: ArcSwapOption<Credential>,
}

impl CredentialSlot {
    /// An empty slot.
    pub(super) fn new(id: SpiffeId) -> Self {
        Self {
            id,
            current: ArcSwapOption::empty(),
        }
    }

    /// Whose it is.
    pub(super) fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Puts `next` in force.
    pub(super) fn store(&self, next: Credential) {
        self.current.store(Some(Arc::new(next)));
    }

    /// What lies there, valid or not.
    pub(super) fn load(&self) -> Option<Arc<Credential>> {
        self.current.load_full()
    }

    /// Whether what lies there is valid.
    pub(super) fn valid_at(&self, now: SystemTime) -> bool {
        self.current
            .load()
            .as_ref()
            .is_some_and(|credential| credential.leaf.valid_at(now))
    }

    fn to_show(&self) -> Option<Arc<CertifiedKey>> {
        let current = self.current.load();
        let credential = current.as_ref()?;
        credential
            .leaf
            .valid_at(SystemTime::now())
            .then(|| Arc::clone(&credential.key))
    }
}

impl fmt::Debug for CredentialSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialSlot")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl ResolvesServerCert for CredentialSlot {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.to_show()
    }
}

impl ResolvesClientCert for CredentialSlot {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.to_show()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
