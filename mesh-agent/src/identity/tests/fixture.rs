//! Certificates of every kind, good and bad, made without the embedded CA.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use mesh_core::model::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::identity::credential::Credential;
use crate::identity::tls::{self, WorkloadTls};
use crate::identity::verify::Trust;
use crate::identity::{IssueError, IssuedCertificate, Issuer};

/// What a leaf says.
#[derive(Clone)]
pub(crate) struct Claims {
    pub(crate) uris: Vec<String>,
    pub(crate) dns: Vec<String>,
    pub(crate) usages: Vec<KeyUsagePurpose>,
    pub(crate) purposes: Vec<ExtendedKeyUsagePurpose>,
    /// Seconds from now.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    pub(crate) ca: bool,
}

impl Claims {
    pub(crate) fn uris(uris: &[&str]) -> Self {
        Self {
            uris: uris.iter().map(|uri| (*uri).to_owned()).collect(),
            dns: Vec::new(),
            usages: vec![KeyUsagePurpose::DigitalSignature],
            purposes: vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ],
            not_before: -60,
            not_after: 3600,
            ca: false,
        }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::new(self.dns.clone()).unwrap();
        for uri in &self.uris {
            params
                .subject_alt_names
                .push(SanType::URI(uri.as_str().try_into().unwrap()));
        }
        params.key_usages = self.usages.clone();
        params.extended_key_usages = self.purposes.clone();
        params.not_before = instant(self.not_before).into();
        params.not_after = instant(self.not_after).into();
        if self.ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params
    }
}

pub(crate) fn instant(from_now: i64) -> SystemTime {
    let distance = Duration::from_secs(from_now.unsigned_abs());
    let now = SystemTime::now();
    if from_now < 0 {
        now - distance
    } else {
        now + distance
    }
}

/// A root of the test's own.
pub(crate) struct Root {
    key: KeyPair,
    params: CertificateParams,
    pub(crate) der: CertificateDer<'static>,
}

pub(crate) fn root(name: &str) -> Root {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let der = params.self_signed(&key).unwrap().into();
    Root { key, params, der }
}

impl Root {
    pub(crate) fn leaf(&self, claims: &Claims) -> IssuedCertificate {
        let key = KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let certificate = claims.params().signed_by(&key, &issuer).unwrap();
        issued(&key, certificate, claims)
    }
}

pub(crate) fn self_signed(claims: &Claims) -> IssuedCertificate {
    let key = KeyPair::generate().unwrap();
    let certificate = claims.params().self_signed(&key).unwrap();
    issued(&key, certificate, claims)
}

fn issued(key: &KeyPair, certificate: rcgen::Certificate, claims: &Claims) -> IssuedCertificate {
    IssuedCertificate {
        chain: vec![certificate.into()],
        key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        not_before: instant(claims.not_before),
        not_after: instant(claims.not_after),
    }
}

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// The configurations that the agent makes for `id`, believing `root`.
pub(crate) fn workload(root: &Root, id: &SpiffeId, aliases: &[&str]) -> WorkloadTls {
    let aliases = aliases.iter().map(|alias| alias.parse().unwrap()).collect();
    let bundle = vec![root.der.clone()];
    let trust = Trust::new(tls::provider(), id.trust_domain().clone(), aliases, bundle).unwrap();
    let tls = WorkloadTls::new(id.clone(), Arc::new(trust)).unwrap();
    install(&tls, &root.leaf(&Claims::uris(&[&id.to_string()])));
    tls
}

pub(crate) fn install(tls: &WorkloadTls, certificate: &IssuedCertificate) {
    tls.install(Credential::new(tls.id(), certificate, SystemTime::now()).unwrap());
}

/// An issuer that can be told to fail, to be slow, and to change its root.
pub(crate) struct ScriptedIssuer {
    pub(crate) root: Mutex<Root>,
    pub(crate) failing: AtomicBool,
    pub(crate) asked: AtomicUsize,
    pub(crate) delay: Duration,
    /// The private scalars it handed out, to look for where they must not show.
    pub(crate) secrets: Mutex<Vec<Vec<u8>>>,
}

impl ScriptedIssuer {
    pub(crate) fn new() -> Self {
        Self {
            root: Mutex::new(root("scripted")),
            failing: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            delay: Duration::ZERO,
            secrets: Mutex::default(),
        }
    }
}

impl Issuer for ScriptedIssuer {
    fn issue(&self, id: &SpiffeId, lifetime: Duration) -> Result<IssuedCertificate, IssueError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(self.delay);
        if self.failing.load(Ordering::SeqCst) {
            return Err(IssueError::Unavailable("scripted".to_owned()));
        }
        let mut claims = Claims::uris(&[&id.to_string()]);
        claims.not_after = i64::try_from(lifetime.as_secs()).unwrap();
        let issued = self.root.lock().unwrap().leaf(&claims);
        // PKCS#8 of a P-256 key (RFC 5958, RFC 5915): 36 bytes of headers, then the scalar of 32 bytes.
        let scalar = issued.key.secret_pkcs8_der()[36..68].to_vec();
        self.secrets.lock().unwrap().push(scalar);
        Ok(issued)
    }

    fn trust_bundle(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.lock().unwrap().der.clone()]
    }
}
