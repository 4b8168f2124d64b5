//! Sets up logging: the agent's own lines on standard output, filtered by `tracing`'s directives, and the access log among them or in a
//! file. Lines are written by threads of their own: whoever logs never waits for a reader that is slow.

mod lines;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use thiserror::Error;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt, LevelFilter, ParseError, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry};

use self::lines::{LineSender, Lines};
use super::access_log::TARGET;
use crate::BPF_LOG_TARGET;
use crate::settings::{AccessLog, LogFormat};

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum LoggingError {
    /// The filter does not parse.
    #[error(
        "the log filter {filter:?} does not parse: {source} (expected directives such as info,access=off)"
    )]
    Filter {
        /// As given.
        filter: String,
        /// What the parser says.
        #[source]
        source: ParseError,
    },
    /// The access log cannot be opened.
    #[error("the access log {path} cannot be opened: {source}; see --access-log-file")]
    File {
        /// Where it is to be.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// No thread could be started.
    #[error("no thread for the log could be started: {0}")]
    Thread(#[source] io::Error),
    /// The filter cannot be exchanged.
    #[error("the log filter cannot be exchanged: {0}")]
    Reload(#[source] reload::Error),
    /// Logging was set up before.
    #[error("logging is set up already: {0}")]
    Again(#[from] TryInitError),
}

/// The running log. Dropping it writes what is queued; lines after that are lost.
pub struct Logging {
    file: Option<Arc<AccessFile>>,
    filter: reload::Handle<EnvFilter, Registry>,
    _lines: Vec<Lines>,
}

impl Logging {
    /// Starts logging for the process.
    ///
    /// # Errors
    /// See [`LoggingError`].
    pub fn start(format: LogFormat, filter: &str, access: &AccessLog) -> Result<Self, LoggingError> {
        let (filter, handle) = reload::Layer::new(parse(filter)?);
        let (standard, to_standard) = Lines::start("log", io::stdout()).map_err(LoggingError::Thread)?;
        let mut lines = vec![standard];
        let among = *access == AccessLog::Stdout;
        let filter = filter.or(filter_fn(is_bpf).with_max_level_hint(LevelFilter::DEBUG));
        let own =
            layer(format, to_standard).with_filter(filter.and(filter_fn(move |m| among || !is_access(m))));
        let registry = tracing_subscriber::registry().with(own);
        let file = match access {
            AccessLog::Off | AccessLog::Stdout => {
                registry.try_init()?;
                None
            }
            AccessLog::File(path) => {
                let file = Arc::new(AccessFile::open(path)?);
                let (queued, sender) =
                    Lines::start("access-log", Appender(file.clone())).map_err(LoggingError::Thread)?;
                lines.push(queued);
                registry
                    .with(layer(format, sender).with_filter(filter_fn(is_access)))
                    .try_init()?;
                Some(file)
            }
        };
        Ok(Self {
            file,
            filter: handle,
            _lines: lines,
        })
    }

    /// Logs by another filter from now on.
    ///
    /// # Errors
    /// When it does not parse; the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), LoggingError> {
        let filter = parse(filter)?;
        self.filter.reload(filter).map_err(LoggingError::Reload)
    }

    /// Writes the access log to another file from now on. Only where it goes to a file already.
    ///
    /// # Errors
    /// When it cannot be opened; the old one goes on.
    pub fn move_to(&self, path: &Path) -> Result<(), LoggingError> {
        self.file.as_ref().map_or(Ok(()), |file| file.move_to(path))
    }

    /// Opens the access log's file anew, for whoever rotates it by renaming. Nothing happens without a file.
    ///
    /// # Errors
    /// When it cannot be opened; the old one goes on.
    pub fn reopen(&self) -> Result<(), LoggingError> {
        self.file.as_ref().map_or(Ok(()), |file| file.reopen())
    }
}

/// Lines of the BPF programs, which come only when somebody has asked for them: shown whatever the filter says.
fn is_bpf(metadata: &Metadata<'_>) -> bool {
    metadata.target() == BPF_LOG_TARGET
}

fn is_access(metadata: &Metadata<'_>) -> bool {
    metadata.target() == TARGET
}

fn layer<S>(format: LogFormat, sender: LineSender) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(sender);
    match format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    }
}

/// What the client of the API server says of each failed request is said by those who asked, with what it was for.
const QUIET: &str = "kube_client::client::builder=off";

fn parse(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::builder()
        .parse(format!("{QUIET},{filter}"))
        .map_err(|source| LoggingError::Filter {
            filter: filter.to_owned(),
            source,
        })
}

/// The access log's file.
struct AccessFile {
    path: ArcSwap<PathBuf>,
    file: ArcSwap<File>,
}

impl AccessFile {
    fn open(path: &Path) -> Result<Self, LoggingError> {
        let file = append(path)?;
        Ok(Self {
            path: ArcSwap::from_pointee(path.to_owned()),
            file: ArcSwap::from_pointee(file),
        })
    }

    fn reopen(&self) -> Result<(), LoggingError> {
        self.file.store(Arc::new(append(&self.path.load())?));
        Ok(())
    }

    fn move_to(&self, path: &Path) -> Result<(), LoggingError> {
        self.file.store(Arc::new(append(path)?));
        self.path.store(Arc::new(path.to_owned()));
        Ok(())
    }
}

fn append(path: &Path) -> Result<File, LoggingError> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640);
    options.open(path).map_err(|source| LoggingError::File {
        path: path.to_owned(),
        source,
    })
}

/// Writes to whichever file is open now.
struct Appender(Arc<AccessFile>);

impl io::Write for Appender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&**self.0.file.load()).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LineSender {
    type Writer = LineSender;

    fn make_writer(&'a self) -> Self::Writer {
        self.clone()
    }
}

/// Names the registry that layers are built for.
const _: fn(LogFormat, LineSender) -> Box<dyn Layer<Registry> + Send + Sync> = layer::<Registry>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_does_not_parse_is_named() {
        let error = parse("info,access=loud").unwrap_err().to_string();
        assert!(error.contains("access=loud"), "{error}");
        assert!(parse("info,access=off").is_ok());
    }

    #[test]
    fn the_access_log_goes_on_in_a_new_file_after_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let (path, rotated) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let file = Arc::new(AccessFile::open(&path).unwrap());
        let (lines, mut sender) = Lines::start("test", Appender(file.clone())).unwrap();
        let mut write = |line: &str| io::Write::write_all(&mut sender, line.as_bytes()).unwrap();
        write("before\n");
        lines.flush();
        std::fs::rename(&path, &rotated).unwrap();
        file.reopen().unwrap();
        write("after\n");
        drop(lines);
        assert_eq!(std::fs::read_to_string(&rotated).unwrap(), "before\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after\n");
    }

    #[test]
    fn an_access_log_in_a_directory_that_is_not_there_is_named() {
        let error = AccessFile::open(Path::new("/nonexistent/access.log"))
            .err()
            .unwrap();
        assert!(error.to_string().contains("/nonexistent/access.log"), "{error}");
    }
}
