//! Certificates for the independent peers: good ones signed by the agents' CA, and bad ones of each kind.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// A certificate authority that the tests hold the key of.
#[derive(Debug)]
pub struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// Files of a certificate and its key, as the Python peer takes them.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The chain, PEM, leaf first.
    pub cert: PathBuf,
    /// The key, PKCS#8 PEM.
    pub key: PathBuf,
    /// What the peer is to trust, PEM.
    pub roots: PathBuf,
}

impl TestCa {
    /// The agents' embedded CA, from the directory they share.
    ///
    /// # Errors
    /// When no agent has made it yet.
    pub fn of_agents(ca_dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = ca_dir.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let pem = read("root.crt")?;
        let key = KeyPair::from_pem(&read("root.key")?).context("the CA's key")?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).context("the CA's certificate")?;
        Ok(Self { issuer, pem })
    }

    /// A CA that nobody trusts.
    ///
    /// # Errors
    /// When a key cannot be made.
    pub fn stranger() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "stranger");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// A leaf with these URI SANs, valid from a minute ago for an hour.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn leaf(&self, dir: &Path, name: &str, uris: &[&str]) -> Result<Leaf> {
        let now = SystemTime::now();
        self.leaf_valid(
            dir,
            name,
            uris,
            now - Duration::from_secs(60),
            now + Duration::from_secs(3600),
        )
    }

    /// A leaf whose validity ended a minute ago.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn expired(&self, dir: &Path, name: &str, uris: &[&str]) -> Result<Leaf> {
        let now = SystemTime::now();
        self.leaf_valid(
            dir,
            name,
            uris,
            now - Duration::from_secs(3600),
            now - Duration::from_secs(60),
        )
    }

    fn leaf_valid(
        &self,
        dir: &Path,
        name: &str,
        uris: &[&str],
        from: SystemTime,
        to: SystemTime,
    ) -> Result<Leaf> {
        let (params, key) = leaf_params(uris, from, to)?;
        let cert = params.signed_by(&key, &self.issuer)?.pem();
        write(dir, name, &cert, &key.serialize_pem(), &self.pem)
    }

    /// A certificate that signs itself, with these URI SANs. Its holder trusts this CA.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn self_signed(&self, dir: &Path, name: &str, uris: &[&str]) -> Result<Leaf> {
        let now = SystemTime::now();
        let (params, key) = leaf_params(
            uris,
            now - Duration::from_secs(60),
            now + Duration::from_secs(3600),
        )?;
        let cert = params.self_signed(&key)?.pem();
        write(dir, name, &cert, &key.serialize_pem(), &self.pem)
    }

    /// A leaf of this CA, whose holder trusts `trusted` instead.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn leaf_trusting(&self, trusted: &TestCa, dir: &Path, name: &str, uris: &[&str]) -> Result<Leaf> {
        let leaf = self.leaf(dir, name, uris)?;
        std::fs::write(&leaf.roots, &trusted.pem)?;
        Ok(leaf)
    }
}

fn leaf_params(uris: &[&str], from: SystemTime, to: SystemTime) -> Result<(CertificateParams, KeyPair)> {
    let mut params = CertificateParams::default();
    for uri in uris {
        params.subject_alt_names.push(SanType::URI((*uri).try_into()?));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let date = |time: SystemTime| -> Result<_> {
        Ok(rcgen::date_time_ymd(1970, 1, 1) + time.duration_since(SystemTime::UNIX_EPOCH)?)
    };
    params.not_before = date(from)?;
    params.not_after = date(to)?;
    Ok((params, KeyPair::generate()?))
}

fn write(dir: &Path, name: &str, cert: &str, key: &str, roots: &str) -> Result<Leaf> {
    std::fs::create_dir_all(dir)?;
    let leaf = Leaf {
        cert: dir.join(format!("{name}.crt")),
        key: dir.join(format!("{name}.key")),
        roots: dir.join(format!("{name}.roots")),
    };
    for (path, text) in [(&leaf.cert, cert), (&leaf.key, key), (&leaf.roots, roots)] {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(leaf)
}
