//! A small Kubernetes API server for tests: lists in pages, watches with bookmarks and streamed lists, versions and their expiry,
//! discovery and CustomResourceDefinitions, merge patches and status, selectors, and the answers 401, 403, 404, 409, 410, 422, 429 and
//! 504 in the words of a real one. TLS and bearer tokens, on a port of loopback.
//!
//! It knows of each mechanism what a client can see, and runs no controller: what a test needs, it writes.

mod answer;
mod resources;
mod selectors;
mod store;
mod watch;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use self::store::Store;

/// The name in its certificate.
pub const SERVER_NAME: &str = "kubernetes.default.svc";

/// What the server does other than well.
struct Faults {
    /// Accepted bearer tokens.
    tokens: Vec<String>,
    /// Resources that nobody may touch.
    forbidden: Vec<String>,
    /// So many requests are answered 429.
    busy: u32,
    /// Whether lists are sent as streams.
    streams: bool,
}

struct Shared {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running server; it ends on drop.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    dir: PathBuf,
    _runtime: Runtime,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl ApiServer {
    /// A server without objects. Its kubeconfig, certificate and token are files in `dir`.
    ///
    /// # Errors
    /// When there is no port, or the files cannot be written.
    pub fn start(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("apiserver")
            .enable_all()
            .build()?;
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![SERVER_NAME.to_owned(), "127.0.0.1".to_owned()])?;
        let certificate = params.self_signed(&key)?;
        std::fs::write(dir.join("ca.crt"), certificate.pem())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the API server")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let server = Self {
            shared: Arc::new(Shared {
                store: Mutex::new(Store::new()),
                faults: Mutex::new(Faults {
                    tokens: Vec::new(),
                    forbidden: Vec::new(),
                    busy: 0,
                    streams: false,
                }),
            }),
            address,
            dir: dir.to_owned(),
            _runtime: runtime,
        };
        server.set_token("first")?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": {
                "server": format!("https://{address}"), "certificate-authority": dir.join("ca.crt"),
            }}],
            "users": [{"name": "agent", "user": {"tokenFile": dir.join("token")}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "agent"}}],
        });
        std::fs::write(server.kubeconfig(), config.to_string())?;
        let shared = server.shared.clone();
        server
            ._runtime
            .spawn(serve(listener, TlsAcceptor::from(Arc::new(tls)), shared));
        Ok(server)
    }

    /// The file that says how to reach it.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// From now on this token is accepted, and no other; it is in the token file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_token(&self, token: &str) -> Result<()> {
        let new = self.dir.join("token.new");
        std::fs::write(&new, token)?;
        std::fs::rename(new, self.dir.join("token"))?;
        lock(&self.shared.faults).tokens = vec![token.to_owned()];
        Ok(())
    }

    /// Accepts this token, too.
    pub fn accept_also(&self, token: &str) {
        lock(&self.shared.faults).tokens.push(token.to_owned());
    }

    /// These resources (`authorizationpolicies`, say) are nobody's to touch.
    pub fn forbid(&self, resources: &[&str]) {
        lock(&self.shared.faults).forbidden = resources.iter().map(|name| (*name).to_owned()).collect();
    }

    /// The next requests are answered 429.
    pub fn throttle(&self, requests: u32) {
        lock(&self.shared.faults).busy = requests;
    }

    /// Whether lists are sent as streams.
    pub fn stream_lists(&self, streams: bool) {
        lock(&self.shared.faults).streams = streams;
    }

    /// Makes an object, or gives it this shape, without a request: for clusters of tens of thousands, and to know when it happened.
    ///
    /// # Errors
    /// When there is no such kind.
    pub fn put(&self, object: Value) -> Result<()> {
        self.fill([object])
    }

    /// As [`put`](Self::put), for many.
    ///
    /// # Errors
    /// When one of them is of no known kind.
    pub fn fill(&self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        let mut store = lock(&self.shared.store);
        let kinds = resources::all(&store);
        for object in objects {
            let text = |pointer: &str| {
                object
                    .pointer(pointer)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            let (api, kind) = (text("/apiVersion"), text("/kind"));
            let resource = kinds
                .iter()
                .find(|r| r.kind == kind && r.versions.iter().any(|version| r.api_version(version) == api))
                .with_context(|| format!("the server knows no {kind} of {api}"))?;
            let key = (
                resource.key(),
                text("/metadata/namespace"),
                text("/metadata/name"),
            );
            store.put(key, object);
        }
        Ok(())
    }

    /// Forgets what has happened so far: watches that want to go on from there are told 410, and so are pages of lists.
    pub fn compact(&self) {
        lock(&self.shared.store).compact();
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, shared) = (tls.clone(), shared.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let service = service_fn(move |request| answer::answer(shared.clone(), request));
            let http = hyper::server::conn::http1::Builder::new();
            drop(http.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}
