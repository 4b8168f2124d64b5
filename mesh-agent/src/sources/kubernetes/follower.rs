//! Follows one kind: a full list, then a watch from where the list ended, and again whenever the server cannot go on from there.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mesh_core::manifest::{Kind, Notice, NoticeKind};
use rand::Rng;
use serde::Deserialize;
use serde_json::Value;
use tokio::task::block_in_place;

use super::access::Access;
use super::discovery::{self, Served};
use super::holdings::Holdings;
use super::page;
use super::request::{Requests, Stream, with_query};
use super::trouble::{Status, Trouble};
use super::{Shared, lock};
use crate::sources::KindState;

/// Objects on a page of a list, at first.
const PAGE: usize = 500;
/// Pages that grow beyond this are given up for a list in one piece.
const MAX_PAGE: usize = 32_000;
/// A watch is asked for this long, and up to half as long again: clients that begin together do not end together.
const WATCH_SECONDS: u64 = 240;
/// A watch that ends sooner without a word is not asked for again at once.
const SHORT: Duration = Duration::from_secs(1);
/// What fails after so long has worked before.
const LONG: Duration = Duration::from_secs(10);
/// First and longest wait before another attempt.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How long the server may stay away at the start until what an earlier run kept is put in force, and how long if it just takes its time.
const STORED_AFTER: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// How often a server that has not come as far as we have is asked again, until it is taken to have been restored.
const BEHIND: u32 = 3;

/// The task of one kind.
pub(super) struct Follower {
    kind: &'static Kind,
    index: usize,
    shared: Arc<Shared>,
    requests: Requests,
    holdings: Arc<Mutex<Holdings>>,
    /// The version that the server has it in.
    version: Option<&'static str>,
    /// Where a watch goes on; `None` before a full list.
    resume: Option<String>,
    /// Whether the server sends lists as streams.
    streams: bool,
    /// Objects on a page; 0 for all of them.
    page: usize,
    behind: u32,
    /// What is wrong, as it was logged.
    told: Option<String>,
    noted: bool,
}

/// How an attempt has ended.
enum End {
    /// Go on at once.
    Again,
    /// Nothing to do for a while.
    Idle,
}

/// An event of a watch.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    what: String,
    object: Value,
}

impl Follower {
    pub(super) fn new(
        kind: &'static Kind,
        index: usize,
        shared: Arc<Shared>,
        access: Arc<Access>,
        holdings: Arc<Mutex<Holdings>>,
    ) -> Self {
        Self {
            kind,
            index,
            shared,
            requests: Requests::new(access),
            holdings,
            version: None,
            resume: None,
            streams: true,
            page: PAGE,
            behind: 0,
            told: None,
            noted: false,
        }
    }

    /// Follows the kind for ever.
    pub(super) async fn run(mut self) {
        let holdings = self.holdings.clone();
        let loaded = tokio::task::spawn_blocking(move || lock(&holdings).load()).await;
        if loaded.is_err() {
            tracing::error!(target: "mesh_agent::kubernetes", "reading what was kept has panicked: it is not used");
        }
        let stored = fall_back(self.kind, self.index, self.shared.clone(), self.holdings.clone());
        tokio::join!(stored, self.follow());
    }

    async fn follow(&mut self) {
        let mut waits = Waits::default();
        loop {
            let (began, lists) = (Instant::now(), self.resume.is_none());
            match self.attempt().await {
                // A watch is due.
                Ok(End::Again) if lists && self.resume.is_some() && began.elapsed() <= SHORT => {}
                Ok(End::Again) if began.elapsed() > SHORT => waits.reset(),
                Ok(_) => self.wait(waits.next(None)).await,
                Err(trouble) => {
                    self.trouble(&trouble);
                    if began.elapsed() > LONG {
                        waits.reset();
                    }
                    self.wait(waits.next(trouble.wait())).await;
                }
            }
        }
    }

    async fn wait(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.shared.look.notified() => {}
        }
    }

    /// One list or watch, to its end.
    async fn attempt(&mut self) -> Result<End, Trouble> {
        let version = match self.version {
            Some(version) => version,
            None => match discovery::served(&self.requests, self.kind).await? {
                Served::In(version) => {
                    self.found(version);
                    version
                }
                Served::Not(why) => {
                    self.absent(&why);
                    return Ok(End::Idle);
                }
            },
        };
        let ended = match self.resume.clone() {
            Some(from) => self.watch(version, &from).await,
            None if self.streams => self.streamed_list(version).await,
            None => self.paged_list(version).await,
        };
        self.after(ended)
    }

    /// What an end means for the next attempt.
    fn after(&mut self, ended: Result<(), Trouble>) -> Result<End, Trouble> {
        match &ended {
            Ok(()) => self.behind = 0,
            Err(Trouble::Expired(_)) => self.resume = None,
            Err(Trouble::Busy { behind: true, .. }) => {
                self.behind += 1;
                if self.behind >= BEHIND {
                    self.resume = None;
                }
            }
            // Its definition may have gone, or lost this version.
            Err(Trouble::NotFound(_)) => {
                self.version = None;
                self.resume = None;
            }
            Err(_) => {}
        }
        ended.map(|()| End::Again)
    }

    fn path(&self, version: &str) -> String {
        match self.kind.group {
            "" => format!("/api/{version}/{}", self.kind.plural),
            group => format!("/apis/{group}/{version}/{}", self.kind.plural),
        }
    }

    /// Lists page by page.
    async fn paged_list(&mut self, version: &'static str) -> Result<(), Trouble> {
        let mut listing = lock(&self.holdings).begin();
        let limit = self.page.to_string();
        let mut next = String::new();
        let resource_version = loop {
            let mut query = Vec::new();
            if self.page > 0 {
                query.push(("limit", limit.as_str()));
            }
            if !next.is_empty() {
                query.push(("continue", next.as_str()));
            }
            let bytes = match self.requests.get(&with_query(&self.path(version), &query)).await {
                // A token that is too old, or that nobody understands any more.
                Err(Trouble::Expired(message) | Trouble::Refused { status: 400, message })
                    if !next.is_empty() =>
                {
                    self.page = if self.page > MAX_PAGE { 0 } else { self.page * 4 };
                    return Err(Trouble::Expired(message));
                }
                other => other?,
            };
            let meta = block_in_place(|| {
                let mut holdings = lock(&self.holdings);
                page::read(&bytes, |document| {
                    holdings.listed(&mut listing, document, version)
                })
            });
            let meta = meta.map_err(|error| Trouble::Malformed(error.to_string()))?;
            self.shared.board.heard(self.index);
            if meta.next.is_empty() {
                break meta.resource_version;
            }
            next = meta.next;
        };
        block_in_place(|| lock(&self.holdings).commit(listing));
        self.resume = Some(resource_version);
        self.listed();
        Ok(())
    }

    /// Lists by a watch that begins with what is there, and goes on with that watch.
    async fn streamed_list(&mut self, version: &'static str) -> Result<(), Trouble> {
        let timeout = watch_seconds();
        let query = [
            ("watch", "1"),
            ("sendInitialEvents", "true"),
            ("resourceVersionMatch", "NotOlderThan"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", timeout.as_str()),
        ];
        let mut stream = match self
            .requests
            .stream(&with_query(&self.path(version), &query))
            .await
        {
            Err(Trouble::Refused { status, .. }) => {
                tracing::debug!(
                    target: "mesh_agent::kubernetes",
                    kind = self.kind.name, status, "the API server sends no lists as streams: listing by pages"
                );
                self.streams = false;
                return self.paged_list(version).await;
            }
            other => other?,
        };
        let mut listing = lock(&self.holdings).begin();
        loop {
            let Some(event) = self.event(&mut stream).await? else {
                // It took the request without knowing what it asks for.
                self.streams = false;
                return Err(Trouble::Malformed(
                    "a streamed list has ended before its end".to_owned(),
                ));
            };
            match event.what.as_str() {
                "ADDED" | "MODIFIED" => lock(&self.holdings).listed(&mut listing, event.object, version),
                "BOOKMARK" if is_end_of_list(&event.object) => {
                    block_in_place(|| lock(&self.holdings).commit(listing));
                    self.resume = resource_version(&event.object);
                    break;
                }
                _ => {}
            }
        }
        self.listed();
        self.events(&mut stream, version).await
    }

    async fn watch(&mut self, version: &'static str, from: &str) -> Result<(), Trouble> {
        let timeout = watch_seconds();
        let query = [
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", from),
            ("timeoutSeconds", timeout.as_str()),
        ];
        let mut stream = self
            .requests
            .stream(&with_query(&self.path(version), &query))
            .await?;
        self.shared
            .board
            .update(self.index, |status| status.watch_restarts += 1);
        self.well();
        self.events(&mut stream, version).await
    }

    /// Takes events to the end of the watch.
    async fn events(&mut self, stream: &mut Stream, version: &'static str) -> Result<(), Trouble> {
        while let Some(event) = self.event(stream).await? {
            if let Some(version) = resource_version(&event.object) {
                self.resume = Some(version);
            }
            match event.what.as_str() {
                "ADDED" | "MODIFIED" => lock(&self.holdings).put(event.object, version),
                "DELETED" => lock(&self.holdings).delete(&event.object),
                _ => {}
            }
        }
        Ok(())
    }

    /// The next event; an ERROR among them is trouble.
    async fn event(&mut self, stream: &mut Stream) -> Result<Option<Event>, Trouble> {
        let Some(line) = stream.next().await? else {
            return Ok(None);
        };
        self.shared.board.heard(self.index);
        let malformed = |error: serde_json::Error| Trouble::Malformed(error.to_string());
        let event: Event = serde_json::from_slice(&line).map_err(malformed)?;
        if event.what == "ERROR" {
            let status: Status = serde_json::from_value(event.object).map_err(malformed)?;
            return Err(status.trouble());
        }
        Ok(Some(event))
    }

    fn found(&mut self, version: &'static str) {
        self.version = Some(version);
        let api_version = self.kind.api_version(version);
        self.shared
            .board
            .update(self.index, |status| status.api_version = Some(api_version));
    }

    /// A full list is in force.
    fn listed(&mut self) {
        self.page = PAGE;
        self.behind = 0;
        self.shared.board.update(self.index, |status| status.lists += 1);
        self.well();
    }

    fn well(&mut self) {
        self.shared.board.heard(self.index);
        self.shared.board.update(self.index, |status| {
            status.state = KindState::Watching;
            (status.problem, status.reason) = (None, None);
        });
        if self.told.take().is_some() {
            tracing::info!(
                target: "mesh_agent::kubernetes",
                kind = self.kind.name, "followed at the API server again"
            );
        }
        if std::mem::take(&mut self.noted) {
            self.shared.note(self.kind.name, None);
        }
    }

    fn absent(&mut self, why: &str) {
        let mut holdings = lock(&self.holdings);
        let before = self.told.as_deref() == Some(why);
        if !before {
            block_in_place(|| holdings.clear());
            tracing::info!(target: "mesh_agent::kubernetes", kind = self.kind.name, "skipped: {why}");
            self.told = Some(why.to_owned());
        }
        drop(holdings);
        self.shared.board.heard(self.index);
        self.shared.board.update(self.index, |status| {
            status.state = KindState::Absent;
            status.api_version = None;
            (status.problem, status.reason) = (None, None);
        });
        self.note(
            NoticeKind::UnknownKind,
            format!("{why}: it is skipped until that changes"),
        );
    }

    fn trouble(&mut self, trouble: &Trouble) {
        let text = trouble.to_string();
        let said = lock(&self.holdings).is_said();
        self.shared.board.update(self.index, |status| {
            *status.errors.entry(trouble.reason().to_owned()).or_default() += 1;
            if status.state == KindState::Watching && !matches!(trouble, Trouble::Expired(_)) {
                status.state = KindState::Lost;
            }
            status.problem = Some(text.clone());
            status.reason = Some(trouble.reason().to_owned());
        });
        if matches!(trouble, Trouble::Forbidden(_)) && said {
            self.note(
                NoticeKind::Ignored,
                format!("what was known of it stays in force as it was: {text}"),
            );
        }
        if self.told.as_deref() == Some(&text) {
            return;
        }
        let kind = self.kind.name;
        match trouble {
            Trouble::Expired(_) => {
                tracing::info!(target: "mesh_agent::kubernetes", kind, "{text}");
            }
            _ if said => {
                tracing::warn!(target: "mesh_agent::kubernetes", kind, "{text}; what is known stays in force");
            }
            _ => {
                tracing::warn!(target: "mesh_agent::kubernetes", kind, "{text}; nothing is in force before it is known")
            }
        }
        self.told = Some(text);
    }

    fn note(&mut self, kind: NoticeKind, message: String) {
        self.noted = true;
        let notice = Notice {
            origin: None,
            object: None,
            kind,
            message: format!("kubernetes: {}: {message}", self.kind.name),
        };
        self.shared.note(self.kind.name, Some(notice));
    }
}

/// Puts what an earlier run kept in force when the server stays away.
async fn fall_back(kind: &Kind, index: usize, shared: Arc<Shared>, holdings: Arc<Mutex<Holdings>>) {
    if !lock(&holdings).is_stored() {
        return;
    }
    let since = Instant::now();
    loop {
        tokio::time::sleep(STORED_AFTER.0 / 4).await;
        let mut holdings = lock(&holdings);
        if holdings.is_said() {
            return;
        }
        let failing = shared
            .board
            .read()
            .get(index)
            .is_some_and(|status| status.problem.is_some());
        let patience = if failing { STORED_AFTER.0 } else { STORED_AFTER.1 };
        if since.elapsed() >= patience {
            tracing::warn!(
                target: "mesh_agent::kubernetes",
                kind = kind.name, "the API server does not say: what an earlier run has kept is in force"
            );
            shared
                .board
                .update(index, |status| status.state = KindState::Stored);
            shared.board.kept(index, holdings.kept_for());
            block_in_place(|| holdings.say());
            return;
        }
    }
}

/// Longer and longer waits, none of them alike.
#[derive(Default)]
struct Waits {
    attempts: u32,
}

impl Waits {
    fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The next one; `asked` is what the server wants at least.
    fn next(&mut self, asked: Option<Duration>) -> Duration {
        let (first, longest) = WAITS;
        let usual = first.saturating_mul(1 << self.attempts.min(16)).min(longest);
        self.attempts = self.attempts.saturating_add(1);
        let least = asked.unwrap_or_default();
        least + usual.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}

fn watch_seconds() -> String {
    rand::rng()
        .random_range(WATCH_SECONDS..=WATCH_SECONDS * 3 / 2)
        .to_string()
}

fn resource_version(object: &Value) -> Option<String> {
    let version = object.pointer("/metadata/resourceVersion")?.as_str()?;
    (!version.is_empty()).then(|| version.to_owned())
}

/// Whether a bookmark ends the list with which a watch begins.
fn is_end_of_list(bookmark: &Value) -> bool {
    let annotations = bookmark.pointer("/metadata/annotations");
    annotations
        .and_then(|annotations| annotations.get("k8s.io/initial-events-end"))
        .and_then(Value::as_str)
        == Some("true")
}
