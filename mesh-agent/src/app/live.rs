//! Settings while the agent runs: what SIGHUP puts into force, and what it leaves as it was, in so many words.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use tracing::{info, warn};

use crate::settings::{AccessLog, Settings, SettingsError};
use crate::sources::Publisher;
use crate::telemetry::logging::Logging;

/// The settings in force, and where they come from.
pub(super) struct Live<'a> {
    settings: RefCell<Settings>,
    drain: Cell<Duration>,
    reload: &'a dyn Fn() -> Result<Settings, SettingsError>,
    logging: &'a Logging,
}

impl<'a> Live<'a> {
    pub(super) fn new(
        settings: &Settings,
        reload: &'a dyn Fn() -> Result<Settings, SettingsError>,
        logging: &'a Logging,
    ) -> Self {
        Self {
            settings: RefCell::new(settings.clone()),
            drain: Cell::new(settings.drain),
            reload,
            logging,
        }
    }

    /// How long connections may finish.
    pub(super) fn drain(&self) -> Duration {
        self.drain.get()
    }

    /// SIGHUP: opens the access log anew, reads the settings file, and has the configuration looked at now.
    pub(super) fn on_hangup(&self, publisher: &Publisher) {
        publisher.look_now();
        match self.logging.reopen() {
            Ok(()) => info!("SIGHUP: opened the access log anew, looking at the configuration"),
            Err(error) => warn!(%error, "SIGHUP: the access log goes on in the old file"),
        }
        match (self.reload)() {
            Ok(wanted) => self.take(&wanted),
            Err(error) => warn!(%error, "SIGHUP: the settings stay as they were"),
        }
    }

    fn take(&self, wanted: &Settings) {
        let mut settings = self.settings.borrow_mut();
        let mut taken = Vec::new();
        if settings.drain != wanted.drain {
            self.drain.set(wanted.drain);
            settings.drain = wanted.drain;
            taken.push("drain");
        }
        if settings.log_filter != wanted.log_filter {
            match self.logging.set_filter(&wanted.log_filter) {
                Ok(()) => {
                    settings.log_filter.clone_from(&wanted.log_filter);
                    taken.push("log");
                }
                Err(error) => warn!(%error, "SIGHUP: the log filter stays as it was"),
            }
        }
        if let (AccessLog::File(now), AccessLog::File(then)) = (&settings.access_log, &wanted.access_log)
            && now != then
        {
            match self.logging.move_to(then) {
                Ok(()) => {
                    settings.access_log.clone_from(&wanted.access_log);
                    taken.push("access-log-file");
                }
                Err(error) => warn!(%error, "SIGHUP: the access log goes on in the old file"),
            }
        }
        let left = settings.differences(wanted);
        if !taken.is_empty() {
            info!("SIGHUP: in force now: {}", taken.join(", "));
        }
        if !left.is_empty() {
            warn!(
                "SIGHUP: not in force before a restart or an upgrade: {}",
                left.join(", ")
            );
        }
    }
}
