//! How the API server is reached: where, and with which credentials. Read anew when the server does not accept them, or cannot be
//! reached where they lead. No message of this module holds a credential.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use kube::client::AuthError;
use kube::config::{Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;

use super::lock;

/// Shortest time between two readings of the credentials.
const RENEWAL: Duration = Duration::from_secs(1);
/// How long a connection to the server may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Why no API server can be asked.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The kubeconfig is not what it must be.
    #[error("the kubeconfig {origin} cannot be used: {why}; see --kubeconfig and KUBECONFIG")]
    Kubeconfig {
        /// What names it.
        origin: String,
        /// What is wrong.
        why: String,
    },
    /// A pod's credentials are not there.
    #[error(
        "the pod's service account cannot be used: {0}; is automountServiceAccountToken off? Outside of a pod give --kubeconfig"
    )]
    ServiceAccount(String),
    /// Nothing leads to one.
    #[error("no API server to follow: give --kubeconfig FILE or KUBECONFIG, or run in a pod of the cluster")]
    Nowhere,
    /// What was read does not make a client.
    #[error("the API server at {server} cannot be asked: {why}")]
    Client {
        /// Where it is.
        server: String,
        /// What is wrong.
        why: String,
    },
}

/// The way to the API server.
pub(super) struct Access {
    kubeconfig: Option<PathBuf>,
    origin: String,
    current: Mutex<Current>,
}

struct Current {
    client: Client,
    server: String,
    generation: u64,
    read: Instant,
}

impl Access {
    /// Reads the configuration; asks nobody. To be called within the runtime that the requests run on.
    pub(super) fn open(kubeconfig: Option<PathBuf>) -> Result<Self, AccessError> {
        let (origin, config) = read(kubeconfig.as_ref())?;
        let (client, server) = client(config)?;
        Ok(Self {
            kubeconfig,
            origin,
            current: Mutex::new(Current {
                client,
                server,
                generation: 0,
                read: Instant::now(),
            }),
        })
    }

    /// What the configuration was read from.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// Where the server is.
    pub(super) fn server(&self) -> String {
        lock(&self.current).server.clone()
    }

    /// A client, and which one it is.
    pub(super) fn client(&self) -> (Client, u64) {
        let current = lock(&self.current);
        (current.client.clone(), current.generation)
    }

    /// Client number `generation` was of no use: reads the configuration anew, unless that has been done since. What cannot be read
    /// leaves everything as it is.
    pub(super) fn renew(&self, generation: u64) {
        let mut current = lock(&self.current);
        if current.generation != generation || current.read.elapsed() < RENEWAL {
            return;
        }
        current.read = Instant::now();
        let made = read(self.kubeconfig.as_ref()).and_then(|(_, config)| client(config));
        match made {
            Ok((client, server)) => {
                if server != current.server {
                    tracing::info!(target: "mesh_agent::kubernetes", server, "the API server has moved");
                }
                current.client = client;
                current.server = server;
                current.generation += 1;
            }
            Err(error) => {
                tracing::warn!(target: "mesh_agent::kubernetes", %error, "the way to the API server stays as it was");
            }
        }
    }
}

/// A client of the server that `kubeconfig` names, or else `KUBECONFIG`, or else a pod's service account. To be called within the runtime
/// that the requests run on.
///
/// # Errors
/// When nothing of that can be used. No credential is in the words.
pub fn connect(kubeconfig: Option<&PathBuf>) -> Result<Client, AccessError> {
    let (_, config) = read(kubeconfig)?;
    Ok(client(config)?.0)
}

fn read(kubeconfig: Option<&PathBuf>) -> Result<(String, Config), AccessError> {
    let (origin, found) = match kubeconfig {
        Some(path) => (path.display().to_string(), Kubeconfig::read_from(path).map(Some)),
        None => ("KUBECONFIG".to_owned(), Kubeconfig::from_env()),
    };
    let wrong = |error: KubeconfigError| AccessError::Kubeconfig {
        origin: origin.clone(),
        why: explain(&error),
    };
    if let Some(kubeconfig) = found.map_err(wrong)? {
        let config = Config::try_from(kubeconfig).map_err(wrong)?;
        return Ok((origin, config));
    }
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
        return Err(AccessError::Nowhere);
    }
    let config = Config::incluster_env().map_err(|error| AccessError::ServiceAccount(chain(&error)))?;
    Ok(("the pod's service account".to_owned(), config))
}

fn client(mut config: Config) -> Result<(Client, String), AccessError> {
    let server = config.cluster_url.to_string();
    config.connect_timeout = Some(CONNECT);
    // Waiting and trying again is the followers' affair: they know what it is for.
    config.default_retry = false;
    match Client::try_from(config) {
        Ok(client) => Ok((client, server)),
        Err(error) => Err(AccessError::Client {
            why: chain(&error),
            server,
        }),
    }
}

/// What is wrong with a kubeconfig. A parser's words may quote the file, and with it a credential.
fn explain(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::Parse(error) => match error.location() {
            Some(at) => format!(
                "it is no kubeconfig in YAML: line {}, column {}",
                at.line(),
                at.column()
            ),
            None => "it is no kubeconfig in YAML".to_owned(),
        },
        other => chain(other),
    }
}

/// An error and what is behind it, without what a credential plugin has printed.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let (words, last) = match error.downcast_ref::<AuthError>() {
            Some(auth) => (auth_words(auth), true),
            None => (error.to_string(), false),
        };
        if !text.contains(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
        next = if last { None } else { error.source() };
    }
    text
}

/// Whether the way failed before the server was asked, because of a credential.
pub(super) fn is_credential(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<AuthError>() {
            return true;
        }
        next = error.source();
    }
    false
}

fn auth_words(error: &AuthError) -> String {
    match error {
        AuthError::AuthExecRun { cmd, status, .. } => {
            format!("the credential plugin {cmd} has failed with {status}")
        }
        AuthError::AuthExecParse(_) => "the credential plugin's answer cannot be read".to_owned(),
        AuthError::ParseTokenKey(_) => "the credential provider's answer cannot be read".to_owned(),
        AuthError::InvalidBearerToken(_) => "the bearer token holds characters that none can have".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_that_is_none_is_told_without_its_words() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, "users:\n- name: a\n  user: {token: sesame\n").unwrap();
        let Err(error) = Access::open(Some(path.clone())).map(drop) else {
            panic!("it was read");
        };
        let error = error.to_string();
        assert!(
            error.contains(&*path.to_string_lossy()) && error.contains("line"),
            "{error}"
        );
        assert!(!error.contains("sesame"), "{error}");
        let missing = Access::open(Some(dir.path().join("none"))).map(drop).unwrap_err();
        assert!(missing.to_string().contains("No such file"), "{missing}");
    }
}
