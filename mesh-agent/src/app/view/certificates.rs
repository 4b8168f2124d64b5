//! The certificates of local identities, in the documents' words.

use jiff::Timestamp;

use crate::admin::document::{CertificateCounts, CertificateEntry, CertificateState, timestamp};
use crate::identity::{self, CertificateStatus};

/// Whether it serves.
pub(super) fn readiness(status: Option<&CertificateStatus>) -> Result<(), String> {
    use identity::CertificateState::{Expired, Pending, RenewalFailing, Valid};
    let Some(status) = status else {
        return Err("not asked for yet".to_owned());
    };
    let why = |otherwise: &str| Err(status.last_error.clone().unwrap_or_else(|| otherwise.to_owned()));
    match status.state {
        Valid | RenewalFailing => Ok(()),
        Pending => why("it is being issued"),
        Expired => why("it is past its end"),
    }
}

/// How many there are.
pub(super) fn counts(all: &[CertificateStatus]) -> CertificateCounts {
    let (valid, missing): (Vec<_>, Vec<_>) = all.iter().partition(|status| readiness(Some(status)).is_ok());
    CertificateCounts {
        valid: valid.len(),
        missing: missing.len(),
        next_expiry: valid.iter().filter_map(|status| status.not_after).min().map(time),
    }
}

/// One of them.
pub(super) fn entry(status: CertificateStatus, now: Timestamp) -> CertificateEntry {
    CertificateEntry {
        identity: status.identity.to_string(),
        state: match status.state {
            identity::CertificateState::Pending => CertificateState::Pending,
            identity::CertificateState::Valid => CertificateState::Valid,
            identity::CertificateState::RenewalFailing => CertificateState::RenewalFailing,
            identity::CertificateState::Expired => CertificateState::Expired,
        },
        not_before: status.not_before.map(time),
        not_after: status.not_after.map(time),
        expires_in_seconds: status
            .not_after
            .map(|end| end.as_second().saturating_sub(now.as_second())),
        next_rotation: time(status.next_rotation),
        serial: status.serial,
        issuer: status.issuer,
        error: status.last_error,
    }
}

fn time(at: Timestamp) -> String {
    timestamp(at.into())
}
