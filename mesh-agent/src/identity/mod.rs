//! Who a workload is: certificates, the CA that issues them, and the TLS configurations that prove and check identities.
//! Private keys never leave this module; nothing here prints one. It never decides who may talk to whom.
//!
//! The data path needs three things of it: [`Identities::tls`], [`connect`] and [`accept`].

pub mod ca;
mod credential;
mod expectation;
mod handshake;
mod identities;
mod leaf;
mod peer;
mod schedule;
mod sessions;
mod tls;
mod verify;

use std::time::{Duration, SystemTime};

use mesh_core::model::SpiffeId;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use zeroize::Zeroize as _;

pub use ca::{CaError, EmbeddedCa, NewRoot};
pub use handshake::{HANDSHAKE_TIMEOUT, accept, connect};
pub use identities::{CertificateState, CertificateStatus, Identities, IdentitiesError, IdentityOptions};
pub use leaf::{Leaf, LeafError};
pub use peer::{PeerError, peer_identity, reason};
pub use tls::WorkloadTls;

/// A certificate for one identity, as an issuer hands it out. No `Debug` of the key; it is wiped on drop.
pub struct IssuedCertificate {
    /// Leaf first, then intermediates; DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8 DER of the leaf's private key.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

impl Drop for IssuedCertificate {
    fn drop(&mut self) {
        self.key.zeroize();
    }
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
    /// The issuer handed out something that does not serve as a certificate of this identity.
    #[error(
        "the certificate issuer gave {id} an unusable certificate: {why}; look at the issuer's configuration"
    )]
    Unusable {
        /// For which identity.
        id: SpiffeId,
        /// What is wrong with it.
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

    /// The certificates that peers' chains must lead to; DER. It may change, and is asked for at least every 30 seconds:
    /// answer from memory.
    fn trust_bundle(&self) -> Vec<CertificateDer<'static>>;

    /// What people call this issuer, for `meshctl certs`.
    fn name(&self) -> String {
        "unnamed issuer".to_owned()
    }
}

#[cfg(test)]
mod tests;
