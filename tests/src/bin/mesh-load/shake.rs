//! TLS handshakes at a steady rate: TLS 1.3, ALPN h2, a client certificate, nothing resumed.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_tests::harness::LoadReport;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

use crate::pulse::Pulse;
use crate::wire::{self, within};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to connect.
    to: SocketAddr,
    /// The chain to present, PEM.
    #[arg(long)]
    cert: PathBuf,
    /// Its key, PEM.
    #[arg(long)]
    key: PathBuf,
    /// Handshakes per second.
    #[arg(long, default_value_t = 500)]
    rate: u64,
    /// For how long, seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How long one may take, milliseconds.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

pub(crate) async fn run(args: Args) -> Result<LoadReport> {
    let connector = TlsConnector::from(Arc::new(config(&args)?));
    let pulse = Pulse::new();
    let set = LocalSet::new();
    let limit = Duration::from_millis(args.timeout);
    let work = async {
        for number in 0u64.. {
            let due = Duration::from_secs_f64(number as f64 / args.rate.max(1) as f64);
            if due.as_secs_f64() >= args.seconds {
                return;
            }
            tokio::time::sleep(due.saturating_sub(pulse.elapsed())).await;
            let (connector, pulse, to) = (connector.clone(), pulse.clone(), args.to);
            tokio::task::spawn_local(async move {
                let began = Instant::now();
                let outcome = within(limit, handshake(&connector, to, limit)).await;
                pulse.count("handshake", began, &outcome);
            });
        }
    };
    set.run_until(work).await;
    set.await;
    Ok(pulse.finish())
}

async fn handshake(connector: &TlsConnector, to: SocketAddr, limit: Duration) -> io::Result<()> {
    let tcp = wire::open(to, limit).await?;
    let name = ServerName::IpAddress(to.ip().into());
    let tls = connector.connect(name, tcp).await?;
    // Gone without a word, as the worst of clients.
    wire::abort(tls.into_inner().0)
}

fn config(args: &Args) -> Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = CertificateDer::pem_file_iter(&args.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read {}", args.cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(&args.key)
        .with_context(|| format!("cannot read {}", args.key.display()))?;
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Who the server is does not matter to a load.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
