//! The only two ways into mutual TLS: dialling somebody we name, and accepting somebody who must name himself.
//! Whatever comes back from here has proven an identity, on this very handshake, resumed or not.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_common::mutation::{self, Mechanism};
use mesh_core::model::SpiffeId;
use rustls::CommonState;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::leaf::Leaf;
use super::peer::{PeerError, peer_identity, reason};
use super::tls::{ALPN, WorkloadTls};
use super::{expectation, verify::Trust};

/// A handshake that takes longer is given up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Proves `tls.id()` to the server at `address`, reached over `io`, which must prove to be `expected`. Returns the proven id.
///
/// With TLS 1.3 the server judges our certificate after this returns: its refusal shows as an error of the first read.
///
/// # Errors
/// See [`PeerError`]; `io` is dropped then.
pub async fn connect<Io>(
    tls: &WorkloadTls,
    expected: &SpiffeId,
    address: SocketAddr,
    io: Io,
) -> Result<(client::TlsStream<Io>, SpiffeId), PeerError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let whom = || format!("HBONE server {address}, expected to be {expected}");
    own_certificate(tls)?;
    let name = expectation::server_name(expected, address, tls.shared.sessions.epoch())?;
    let connecting = TlsConnector::from(Arc::clone(&tls.client)).connect(name.clone(), io);
    let stream = in_time(HANDSHAKE_TIMEOUT, connecting)
        .await
        .map_err(|error| error.about(&whom()))?;
    match proven(&tls.shared.trust, stream.get_ref().1, Some(expected)) {
        Ok(id) => Ok((stream, id)),
        Err(error) => {
            // A resumed session may rest on a certificate that has run out since: the next dial proves itself afresh.
            tls.shared.sessions.forget(&name);
            Err(error.about(&whom()))
        }
    }
}

/// Proves `tls.id()` to a client on `io`, which must prove its own identity. Returns it.
///
/// # Errors
/// See [`PeerError`]; `io` is dropped then.
pub async fn accept<Io>(tls: &WorkloadTls, io: Io) -> Result<(server::TlsStream<Io>, SpiffeId), PeerError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    own_certificate(tls)?;
    let accepting = TlsAcceptor::from(Arc::clone(&tls.server)).accept(io);
    let stream = in_time(HANDSHAKE_TIMEOUT, accepting)
        .await
        .map_err(|error| error.about("HBONE client"))?;
    let id =
        proven(&tls.shared.trust, stream.get_ref().1, None).map_err(|error| error.about("HBONE client"))?;
    Ok((stream, id))
}

fn own_certificate(tls: &WorkloadTls) -> Result<(), PeerError> {
    if tls.valid_at(SystemTime::now()) {
        return Ok(());
    }
    let message = format!(
        "we have no valid certificate for {} (see `meshctl certs`)",
        tls.id()
    );
    Err(PeerError::new(reason::NO_OWN_CERTIFICATE, message))
}

async fn in_time<T>(limit: Duration, handshake: impl Future<Output = io::Result<T>>) -> Result<T, PeerError> {
    let limit = match mutation::is_off(Mechanism::HandshakeTimeout) {
        false => limit,
        true => Duration::from_secs(86_400),
    };
    match tokio::time::timeout(limit, handshake).await {
        Ok(done) => done.map_err(|error| PeerError::from(&error)),
        Err(_) => {
            let message = format!("no TLS handshake within {limit:?}; does HBONE answer there?");
            Err(PeerError::new(reason::HANDSHAKE_TIMEOUT, message))
        }
    }
}

/// Who is at the other end of a finished handshake. rustls does not call verifiers on resumption: so everything but the chain's
/// signatures is checked here, every time; the chain is covered because sessions are forgotten when the bundle changes.
fn proven(trust: &Trust, tls: &CommonState, expected: Option<&SpiffeId>) -> Result<SpiffeId, PeerError> {
    if tls.alpn_protocol() != Some(ALPN) {
        return Err(PeerError::new(reason::ALPN, "it did not agree on ALPN h2"));
    }
    if let Some(id) = mutated(trust, tls) {
        return Ok(id);
    }
    let id = peer_identity(tls.peer_certificates(), SystemTime::now())?;
    trust.check_domain(&id)?;
    match expected {
        Some(expected) if *expected != id && !mutation::is_off(Mechanism::ExpectedId) => {
            let message = format!("it proved to be {id}");
            Err(PeerError::new(reason::UNEXPECTED_IDENTITY, message))
        }
        _ => Ok(id),
    }
}

/// In a test build that has switched these checks off: whom the certificate names, whatever else is wrong, and somebody without one.
fn mutated(trust: &Trust, tls: &CommonState) -> Option<SpiffeId> {
    let first = tls.peer_certificates().and_then(<[_]>::first);
    match first {
        Some(der) if mutation::is_off(Mechanism::Recheck) => Leaf::parse(der).ok().map(|leaf| leaf.identity),
        None if mutation::is_off(Mechanism::ClientCertificate) => trust.nobody(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_peer_is_given_up() {
        let silent = std::future::pending::<io::Result<()>>();
        let given_up = in_time(Duration::from_millis(10), silent);
        let error = tokio::time::timeout(Duration::from_secs(10), given_up)
            .await
            .expect("the silent peer is waited for")
            .unwrap_err();
        assert_eq!(error.reason, reason::HANDSHAKE_TIMEOUT);
    }
}
