//! The identities of this node's pods: which are wanted, one certificate each, renewed off the data path.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use mesh_common::mutation::{self, Mechanism};
use mesh_core::model::{SpiffeId, TrustDomain};
use serde::Serialize;
use thiserror::Error;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::credential::Credential;
use super::tls::{self, WorkloadTls};
use super::verify::Trust;
use super::{IssueError, Issuer, schedule};

/// An issuer that takes longer counts as away.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(30);
/// How many certificates are asked for at a time.
const CONCURRENT_ISSUES: usize = 4;
/// The wall clock, which may be set, and the trust bundle are looked at this often at least.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum IdentitiesError {
    /// TLS could not be set up, or the trust bundle cannot be read.
    #[error("TLS for the mesh cannot be set up: {0}; look at the issuer's trust bundle")]
    Tls(#[from] rustls::Error),
    /// The issuer gave none. The rotation task tries again.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The identity was withdrawn while it waited.
    #[error("{0} is not wanted on this node any more")]
    Withdrawn(SpiffeId),
}

/// What the identities of a node have in common.
#[derive(Clone, Debug)]
pub struct IdentityOptions {
    /// How long certificates are asked for.
    pub lifetime: Duration,
    /// The local trust domain.
    pub trust_domain: TrustDomain,
    /// Other names of it, believed in peers' certificates.
    pub aliases: Vec<TrustDomain>,
}

/// The identities of this node's pods: one certificate each, kept fresh. Reading takes no lock.
pub struct Identities {
    issuer: Arc<dyn Issuer>,
    lifetime: Duration,
    trust: Arc<Trust>,
    wanted: ArcSwap<HashMap<SpiffeId, Arc<Entry>>>,
    /// Held while `wanted` is exchanged.
    writing: Mutex<()>,
    /// Wakes the rotation task when there is something new to schedule.
    changed: Notify,
}

/// One wanted identity.
struct Entry {
    tls: WorkloadTls,
    /// Held while its certificate is being issued.
    issuing: tokio::sync::Mutex<()>,
    progress: Mutex<Progress>,
}

/// How its renewal goes.
#[derive(Clone)]
struct Progress {
    next: SystemTime,
    failures: u32,
    last_error: Option<String>,
}

impl Entry {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Identities {
    /// No identity yet; believes the issuer's bundle.
    ///
    /// # Errors
    /// When the trust bundle cannot be read.
    pub fn new(issuer: Arc<dyn Issuer>, options: IdentityOptions) -> Result<Self, IdentitiesError> {
        let bundle = issuer.trust_bundle();
        let trust = Trust::new(tls::provider(), options.trust_domain, options.aliases, bundle)?;
        Ok(Self {
            issuer,
            lifetime: options.lifetime,
            trust: Arc::new(trust),
            wanted: ArcSwap::default(),
            writing: Mutex::new(()),
            changed: Notify::new(),
        })
    }

    /// The TLS configurations of `id`; `None` while it has no valid certificate: refuse the connection. Never blocks.
    pub fn tls(&self, id: &SpiffeId) -> Option<WorkloadTls> {
        let wanted = self.wanted.load();
        let tls = &wanted.get(id)?.tls;
        tls.valid_at(SystemTime::now()).then(|| tls.clone())
    }

    /// Wants `id` from now on, and waits until it has a valid certificate. When the first attempt fails that is returned, `id` stays
    /// wanted, and the rotation task tries on: call again to wait for it, or [`retain`](Self::retain) without it to give up.
    ///
    /// # Errors
    /// See [`IdentitiesError`].
    pub async fn ensure(&self, id: &SpiffeId) -> Result<WorkloadTls, IdentitiesError> {
        let entry = self.entry(id)?;
        if !entry.tls.valid_at(SystemTime::now()) {
            self.renew(&entry, When::Invalid).await?;
        }
        // One that was given up in the meantime nobody would renew.
        match self.wanted.load().get(id) {
            Some(wanted) if Arc::ptr_eq(wanted, &entry) => Ok(entry.tls.clone()),
            _ => Err(IdentitiesError::Withdrawn(id.clone())),
        }
    }

    /// Gives up all identities but `keep`. Connections that stand are not touched; new ones are refused.
    pub fn retain(&self, keep: &HashSet<SpiffeId>) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.wanted.load_full();
        if current.keys().all(|id| keep.contains(id)) {
            return;
        }
        let mut next = HashMap::clone(&current);
        next.retain(|id, _| keep.contains(id));
        self.wanted.store(Arc::new(next));
    }

    /// Renews certificates, and follows the issuer's trust bundle, until `shutdown`. Run once, off the data path.
    pub async fn run(&self, shutdown: CancellationToken) {
        loop {
            self.refresh_bundle();
            let now = SystemTime::now();
            let due = self.due(now);
            let renewals =
                futures_util::stream::iter(due).for_each_concurrent(CONCURRENT_ISSUES, |entry| async move {
                    // The error is in the entry's progress and in the log.
                    let _ = self.renew(&entry, When::Due).await;
                });
            tokio::select! {
                () = renewals => {}
                () = shutdown.cancelled() => return,
            }
            let sleep = self.until_next(SystemTime::now());
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                () = self.changed.notified() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// The state of every wanted identity's certificate, by identity.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let now = SystemTime::now();
        let issuer = self.issuer.name();
        let wanted = self.wanted.load();
        let mut all: Vec<_> = wanted
            .values()
            .map(|entry| CertificateStatus::of(entry, &issuer, now))
            .collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    /// When the certificate of each identity runs out; identities without one are left out. For the expiry gauge.
    pub fn expiries(&self) -> Vec<(SpiffeId, SystemTime)> {
        let wanted = self.wanted.load();
        let expiry = |entry: &Arc<Entry>| {
            let credential = entry.tls.shared.slot.load()?;
            Some((entry.tls.id().clone(), credential.leaf.not_after))
        };
        wanted.values().filter_map(expiry).collect()
    }

    fn entry(&self, id: &SpiffeId) -> Result<Arc<Entry>, IdentitiesError> {
        if let Some(entry) = self.wanted.load().get(id) {
            return Ok(Arc::clone(entry));
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.wanted.load_full();
        if let Some(entry) = current.get(id) {
            return Ok(Arc::clone(entry));
        }
        let entry = Arc::new(Entry {
            tls: WorkloadTls::new(id.clone(), Arc::clone(&self.trust))?,
            issuing: tokio::sync::Mutex::new(()),
            progress: Mutex::new(Progress {
                next: SystemTime::now(),
                failures: 0,
                last_error: None,
            }),
        });
        let mut next = HashMap::clone(&current);
        next.insert(id.clone(), Arc::clone(&entry));
        self.wanted.store(Arc::new(next));
        self.changed.notify_one();
        Ok(entry)
    }

    fn due(&self, now: SystemTime) -> Vec<Arc<Entry>> {
        let wanted = self.wanted.load();
        wanted
            .values()
            .filter(|entry| Self::is_due(entry, now))
            .cloned()
            .collect()
    }

    /// Its time has come; or the clock was set so far back that the certificate is not valid any more, or that the next attempt
    /// lies farther off than any delay between attempts.
    fn is_due(entry: &Entry, now: SystemTime) -> bool {
        let Progress { next, failures, .. } = *entry.progress();
        let stranded = match failures {
            0 => !entry.tls.valid_at(now),
            _ => next > now + schedule::LONGEST_RETRY,
        };
        (next <= now || stranded) && !mutation::is_off(Mechanism::Rotation)
    }

    fn until_next(&self, now: SystemTime) -> Duration {
        let wanted = self.wanted.load();
        let next = wanted.values().map(|entry| entry.progress().next).min();
        let wait = next.map_or(LONGEST_SLEEP, |at| at.duration_since(now).unwrap_or_default());
        wait.min(LONGEST_SLEEP)
    }

    /// Asks for a certificate and puts it in force; on failure the old one stays until it runs out.
    async fn renew(&self, entry: &Entry, when: When) -> Result<(), IdentitiesError> {
        let _issuing = entry.issuing.lock().await;
        let now = SystemTime::now();
        let done_meanwhile = match when {
            When::Invalid => entry.tls.valid_at(now),
            When::Due => !Self::is_due(entry, now),
        };
        if done_meanwhile {
            return Ok(());
        }
        let outcome = self.issue(entry.tls.id()).await;
        let result = self.settle(entry, outcome);
        self.changed.notify_one();
        result
    }

    async fn issue(&self, id: &SpiffeId) -> Result<Credential, IssueError> {
        let (issuer, id, lifetime) = (Arc::clone(&self.issuer), id.clone(), self.lifetime);
        let work = tokio::task::spawn_blocking(move || {
            let certificate = issuer.issue(&id, lifetime)?;
            Credential::new(&id, &certificate, SystemTime::now())
        });
        match tokio::time::timeout(ISSUE_TIMEOUT, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(IssueError::Unavailable(
                "it panicked or the agent is stopping".to_owned(),
            )),
            Err(_) => {
                let message = format!("no answer within {} s", ISSUE_TIMEOUT.as_secs());
                Err(IssueError::Unavailable(message))
            }
        }
    }

    fn settle(&self, entry: &Entry, outcome: Result<Credential, IssueError>) -> Result<(), IdentitiesError> {
        let id = entry.tls.id();
        match outcome {
            Ok(credential) => {
                self.refresh_bundle();
                let leaf = &credential.leaf;
                let next = schedule::renewal(credential.issued, leaf.not_after, rand::random());
                tracing::info!(identity = %id, serial = %leaf.serial, not_after = %timestamp(leaf.not_after), "certificate issued");
                entry.tls.install(credential);
                *entry.progress() = Progress {
                    next,
                    failures: 0,
                    last_error: None,
                };
                Ok(())
            }
            Err(error) => {
                let mut progress = entry.progress();
                progress.failures = progress.failures.saturating_add(1);
                let wait = schedule::retry(progress.failures, self.lifetime, rand::random());
                progress.next = SystemTime::now() + wait;
                progress.last_error = Some(error.to_string());
                tracing::warn!(identity = %id, failures = progress.failures, retry_in = ?wait, %error, "no certificate");
                Err(error.into())
            }
        }
    }

    /// Takes over the issuer's bundle. A changed one ends the sessions of all identities: they were proven to the old one.
    fn refresh_bundle(&self) {
        match self.trust.replace_bundle(self.issuer.trust_bundle()) {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!("the trust bundle has changed");
                for entry in self.wanted.load().values() {
                    entry.tls.shared.sessions.forget_all();
                }
            }
            Err(error) => {
                tracing::error!(%error, "the issuer's trust bundle cannot be read; the old one stays")
            }
        }
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.wanted.load().keys()).finish()
    }
}

/// Under which condition a renewal is still needed once it is its turn.
#[derive(Clone, Copy)]
enum When {
    Invalid,
    Due,
}

/// How a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateState {
    /// None was issued yet.
    Pending,
    /// Valid, and its renewal is in order.
    Valid,
    /// Valid, but the last attempt to renew it failed.
    RenewalFailing,
    /// Run out: connections of this identity are refused.
    Expired,
}

/// One line of `meshctl certs`.
#[derive(Clone, Debug, Serialize)]
pub struct CertificateStatus {
    /// Whose.
    pub identity: SpiffeId,
    /// Serial number in hex; `None` while there is no certificate.
    pub serial: Option<String>,
    /// Start of validity.
    pub not_before: Option<Timestamp>,
    /// End of validity.
    pub not_after: Option<Timestamp>,
    /// How it stands.
    pub state: CertificateState,
    /// When the next renewal, or the next attempt, is due.
    pub next_rotation: Timestamp,
    /// What the last attempt failed with, if it failed.
    pub last_error: Option<String>,
    /// Who issues it.
    pub issuer: String,
}

impl CertificateStatus {
    fn of(entry: &Entry, issuer: &str, now: SystemTime) -> Self {
        let progress = entry.progress().clone();
        let credential = entry.tls.shared.slot.load();
        let leaf = credential.as_ref().map(|credential| &credential.leaf);
        let state = match leaf {
            None => CertificateState::Pending,
            Some(leaf) if !leaf.valid_at(now) => CertificateState::Expired,
            Some(_) if progress.last_error.is_some() => CertificateState::RenewalFailing,
            Some(_) => CertificateState::Valid,
        };
        Self {
            identity: entry.tls.id().clone(),
            serial: leaf.map(|leaf| leaf.serial.clone()),
            not_before: leaf.map(|leaf| timestamp(leaf.not_before)),
            not_after: leaf.map(|leaf| timestamp(leaf.not_after)),
            state,
            next_rotation: timestamp(progress.next),
            last_error: progress.last_error,
            issuer: issuer.to_owned(),
        }
    }
}

/// For display; a time that the type cannot hold shows as its nearest end.
fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::try_from(at).unwrap_or(Timestamp::MAX)
}
