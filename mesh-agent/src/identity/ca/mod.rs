//! The embedded CA: a root in a directory that belongs to the agent alone, for hosts without another issuer. Several agents of one
//! host may share the directory: whoever comes first makes the root. It never prints or hands out the root's key.

mod given;
mod store;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mesh_core::model::{SpiffeId, TrustDomain};
use rand::Rng as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::{Zeroize as _, Zeroizing};

use super::leaf::system_time;
use super::{IssueError, IssuedCertificate, Issuer};

/// How long a new root is valid: ten years.
const ROOT_LIFETIME: Duration = Duration::from_secs(3652 * 86_400);
/// Validity begins this long before the moment of issuance, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(60);
/// A root that ends sooner is warned about.
const ENDS_SOON: Duration = Duration::from_secs(365 * 86_400);

/// Why the CA cannot be used.
#[derive(Debug, Error)]
pub enum CaError {
    /// The file system refused.
    #[error("the CA directory {path} cannot be used: {what}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// Others than the agent could read or change the root's key.
    #[error(
        "{path} is not safe for a CA's key: {why}; `{remedy}` if nobody else had it, else remove the directory for a new root"
    )]
    Unsafe {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// The command that sets it right.
        remedy: String,
    },
    /// A file does not hold what it must.
    #[error(
        "{path} is damaged: {why}; restore it, or remove the directory for a new root (agents that trust the old one then refuse this one)"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The root is of another trust domain.
    #[error(
        "the root in {path} is of {found}, not of trust domain {wanted}; give each trust domain its own state directory"
    )]
    TrustDomain {
        /// Which file.
        path: PathBuf,
        /// Its URI SAN.
        found: String,
        /// The agent's trust domain.
        wanted: TrustDomain,
    },
    /// The root has run out, or is not valid yet.
    #[error(
        "the root in {path} is not valid now; do the clocks agree? Otherwise remove the directory for a new root"
    )]
    NotValid {
        /// Which file.
        path: PathBuf,
    },
    /// What the operator has given cannot be the root. Nothing is made in its place: each node would make another.
    #[error("{path} cannot be the mesh's root: {why}; `mesh-agent ca init` makes one that can")]
    Given {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Key or certificate could not be made.
    #[error("the root CA could not be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// A root that belongs to no directory yet.
pub struct NewRoot {
    /// Its certificate, in PEM.
    pub certificate: String,
    /// Its key, PKCS#8 in PEM; wiped on drop.
    pub key: Zeroizing<String>,
}

impl NewRoot {
    /// Makes a root for `trust_domain`, to be given to all agents of a mesh.
    ///
    /// # Errors
    /// When the cryptography library refuses.
    pub fn make(trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let mut key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = make_root(&key, trust_domain, SystemTime::now());
        let pem = Zeroizing::new(key.serialize_pem());
        key.zeroize();
        Ok(Self {
            certificate: certificate?.pem(),
            key: pem,
        })
    }
}

/// The embedded CA. Its key is wiped on drop.
pub struct EmbeddedCa {
    trust_domain: TrustDomain,
    key: KeyPair,
    root: CertificateDer<'static>,
    not_after: SystemTime,
    name: String,
}

impl EmbeddedCa {
    /// The CA whose root lies in `dir`: `root.key` (PKCS#8 PEM, 0600) and `root.crt` (PEM, for others to trust). Makes the directory
    /// (0700) and the root where they are missing; safe when several agents do so at once. Blocks.
    ///
    /// # Errors
    /// See [`CaError`]; an existing root is never replaced.
    pub fn open(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let now = SystemTime::now();
        let store = store::Store::open(dir)?;
        let (key, root) = match (store.read_key()?, store.read_certificate()?) {
            (Some(key), Some(root)) => (key, root),
            // Nothing there, or a run that ended between the two files: that root was never shown to anybody.
            (key, None) => {
                let key = match key {
                    Some(key) => key,
                    None => {
                        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                        store.write_key(&key)?;
                        key
                    }
                };
                let root = make_root(&key, trust_domain, now)?;
                store.write_certificate(&root)?;
                tracing::info!(dir = %dir.display(), %trust_domain, "made a root CA");
                (key, root.into())
            }
            (None, Some(_)) => {
                return Err(CaError::Damaged {
                    path: store.key_path(),
                    why: "the key is missing, though its certificate is there".to_owned(),
                });
            }
        };
        let not_after = check_root(&store.certificate_path(), &key, &root, trust_domain, now)?;
        Ok(Self::with(dir, trust_domain, key, root, not_after))
    }

    /// The CA whose root the operator has put into `dir`, such as a Secret that is mounted there: `root.key` and `root.crt`, as
    /// [`EmbeddedCa::open`] has them. They may be symbolic links, and the directory may be anybody's, as those of Secrets are. Never
    /// makes anything. Blocks.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn given(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let (key, root) = given::read_root(dir)?;
        let path = dir.join(store::CERTIFICATE);
        let not_after = check_root(&path, &key, &root, trust_domain, SystemTime::now());
        let not_after = not_after.map_err(|error| match error {
            CaError::Damaged { path, why } => CaError::Given { path, why },
            other => other,
        })?;
        Ok(Self::with(dir, trust_domain, key, root, not_after))
    }

    fn with(
        dir: &Path,
        trust_domain: &TrustDomain,
        key: KeyPair,
        root: CertificateDer<'static>,
        not_after: SystemTime,
    ) -> Self {
        if not_after < SystemTime::now() + ENDS_SOON {
            tracing::warn!(dir = %dir.display(), "the root CA ends within a year: plan a new one");
        }
        Self {
            trust_domain: trust_domain.clone(),
            key,
            root,
            not_after,
            name: format!("embedded CA in {}", dir.display()),
        }
    }

    /// When the root runs out.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    fn leaf(
        &self,
        id: &SpiffeId,
        key: &KeyPair,
        from: SystemTime,
        to: SystemTime,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        let mut params = params(from, to)?;
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let issuer = rcgen::Issuer::from_ca_cert_der(&self.root, &self.key)?;
        Ok(params.signed_by(key, &issuer)?.into())
    }
}

impl Issuer for EmbeddedCa {
    fn issue(&self, id: &SpiffeId, lifetime: Duration) -> Result<IssuedCertificate, IssueError> {
        let refused = |why: String| IssueError::Refused { id: id.clone(), why };
        if *id.trust_domain() != self.trust_domain {
            return Err(refused(format!(
                "it issues for trust domain {} only",
                self.trust_domain
            )));
        }
        let now = whole_seconds(SystemTime::now());
        if now >= self.not_after {
            return Err(refused("its root has run out".to_owned()));
        }
        let not_before = now - BACKDATE;
        let not_after = now
            .checked_add(lifetime)
            .map_or(self.not_after, |end| end.min(self.not_after));
        let failed = |error: rcgen::Error| refused(error.to_string());
        let mut key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let certificate = self.leaf(id, &key, not_before, not_after).map_err(failed);
        let pkcs8 = PrivatePkcs8KeyDer::from(key.serialize_der());
        key.zeroize();
        // Wiped on drop, also when there is no certificate for it.
        let mut issued = IssuedCertificate {
            chain: Vec::new(),
            key: pkcs8,
            not_before,
            not_after,
        };
        issued.chain.push(certificate?);
        Ok(issued)
    }

    fn trust_bundle(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.clone()]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Drop for EmbeddedCa {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl std::fmt::Debug for EmbeddedCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedCa")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn make_root(
    key: &KeyPair,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<rcgen::Certificate, rcgen::Error> {
    let now = whole_seconds(now);
    let mut params = params(now - BACKDATE * 2, now + ROOT_LIFETIME)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "mesh-agent embedded root");
    params.subject_alt_names = vec![SanType::URI(uri_of(trust_domain).try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.self_signed(key)
}

/// An empty subject, a random serial of 126 bits, the given validity.
fn params(from: SystemTime, to: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    let mut serial: [u8; 16] = rand::rng().random();
    // Positive, and of full length: no leading byte that DER would drop.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch(from);
    params.not_after = epoch + since_epoch(to);
    Ok(params)
}

fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Certificates know whole seconds only.
fn whole_seconds(at: SystemTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(since_epoch(at).as_secs())
}

fn uri_of(trust_domain: &TrustDomain) -> String {
    format!("spiffe://{trust_domain}")
}

/// Checks that `root` is the certificate of `key`, a CA of `trust_domain`, valid at `now`; says when it ends.
fn check_root(
    path: &Path,
    key: &KeyPair,
    root: &CertificateDer<'_>,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<SystemTime, CaError> {
    let damaged = |why: &str| CaError::Damaged {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let (rest, certificate) =
        X509Certificate::from_der(root).map_err(|_| damaged("it is not an X.509 certificate"))?;
    if !rest.is_empty() {
        return Err(damaged("bytes follow the certificate"));
    }
    if certificate.public_key().raw != key.subject_public_key_info() {
        return Err(damaged("it is not the certificate of the key beside it"));
    }
    if certificate.verify_signature(None).is_err() {
        return Err(damaged("its signature is wrong"));
    }
    let usage = certificate.key_usage().ok().flatten();
    if !certificate.is_ca() || !usage.is_some_and(|usage| usage.value.key_cert_sign()) {
        return Err(damaged("it is not a CA's certificate"));
    }
    let found = uri_san(&certificate).ok_or_else(|| damaged("it has not exactly one URI SAN"))?;
    if found != uri_of(trust_domain) {
        return Err(CaError::TrustDomain {
            path: path.to_owned(),
            found: found.to_owned(),
            wanted: trust_domain.clone(),
        });
    }
    let out_of_range = |_| damaged("its validity is out of range");
    let not_before = system_time(certificate.validity().not_before).map_err(out_of_range)?;
    let not_after = system_time(certificate.validity().not_after).map_err(out_of_range)?;
    if now < not_before || now >= not_after {
        return Err(CaError::NotValid {
            path: path.to_owned(),
        });
    }
    Ok(not_after)
}

fn uri_san<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let names = certificate.subject_alternative_name().ok()??;
    match names.value.general_names[..] {
        [GeneralName::URI(uri)] => Some(uri),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
