//! SPIFFE identities, as Istio shapes them: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`
//! (SPIFFE-ID, section 2; Istio's secure naming).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is no identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// The scheme is missing.
    #[error("{0:?} is not a SPIFFE id: it must begin with spiffe://")]
    Scheme(String),
    /// The path has another shape.
    #[error(
        "{0:?} is not an identity of a workload: expected spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT"
    )]
    Shape(String),
    /// The trust domain has characters that it may not have.
    #[error("{0:?} is not a trust domain: expected 1 to 255 of the characters a-z, 0-9, '.', '-', '_'")]
    TrustDomain(String),
    /// A name has characters that it may not have.
    #[error("{0:?} is not a Kubernetes name: expected 1 to 253 of the characters a-z, 0-9, '.', '-'")]
    Name(String),
}

/// A trust domain (SPIFFE-ID, section 2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `cluster.local`, as Istio has it.
impl Default for TrustDomain {
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(good) {
            return Err(IdentityError::TrustDomain(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> String {
        domain.0.as_ref().to_owned()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl SpiffeId {
    /// The identity of a service account.
    ///
    /// # Errors
    /// When namespace or service account is not a Kubernetes name.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        Ok(Self {
            trust_domain,
            namespace: name(namespace)?,
            service_account: name(service_account)?,
        })
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

fn name(text: &str) -> Result<Arc<str>, IdentityError> {
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'-');
    if text.is_empty() || text.len() > 253 || !text.bytes().all(good) {
        return Err(IdentityError::Name(text.to_owned()));
    }
    Ok(text.into())
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let rest = text
            .strip_prefix("spiffe://")
            .ok_or_else(|| IdentityError::Scheme(text.to_owned()))?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", service_account] = parts[..] else {
            return Err(IdentityError::Shape(text.to_owned()));
        };
        Self::new(trust_domain.parse()?, namespace, service_account)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trust_domain,
            namespace,
            service_account,
        } = self;
        write!(f, "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_the_round_trip() {
        let text = "spiffe://cluster.local/ns/shop/sa/order";
        let id: SpiffeId = text.parse().unwrap();
        assert_eq!(
            (id.trust_domain().as_str(), id.namespace(), id.service_account()),
            ("cluster.local", "shop", "order")
        );
        assert_eq!(id.to_string(), text);
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        for text in [
            "",
            "cluster.local/ns/a/sa/b",
            "https://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns/a/sa/b?x",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td/ns/a%2fb/sa/c",
            "spiffe://td/sa/b/ns/a",
            "spiffe://td/ns/../sa/b/",
            "spiffe://user@td/ns/a/sa/b",
            "spiffe://td:80/ns/a/sa/b",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
