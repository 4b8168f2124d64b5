//! HBONE connections from other agents: who they are, and the connections that they carry.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use mesh_core::model::SpiffeId;
use mesh_core::plan::{self, Permit, Reason, Refusal};
use tokio::io::BufReader;
use tokio::net::TcpStream;

use super::admit::admit;
use super::{deliver, while_let_in};
use crate::identity;
use crate::telemetry::connections::{ConnectionInfo, HandshakeRole, Reporter, ResponseFlag, Security};
use crate::tunnel::copy::{Carriage, CopyError, Side};
use crate::tunnel::{
    AppStream, Carried, Carrying, Facts, OverBudget, Place, PlaceGuard, PodContext, Pressure, READ_BUFFER,
    Stands, StreamGuard, TunnelError, accept_http2, headers, in_two_parts,
};

/// The other agent, on behalf of the workload that it proved to be.
struct Peer {
    address: SocketAddr,
    identity: SpiffeId,
}

/// Serves a connection that was accepted on the pod's tunnel listener. `port` is the one that tunnels are addressed to.
pub async fn handle(context: Arc<PodContext>, tcp: TcpStream, port: u16) {
    // A peer that is refused before TLS is no application: it need not be reset, and learns nothing.
    let (Ok(peer), Ok(local)) = (tcp.peer_addr(), tcp.local_addr()) else {
        return;
    };
    if local.port() != port || !context.pod.addresses.contains(&local.ip().to_canonical()) {
        tracing::debug!(%peer, %local, pod = %context.pod.uid, "a tunnel to an address that is not the pod's: closed");
        return;
    }
    let outcome = shake(&context, tcp, peer.ip().to_canonical()).await;
    context.path.log.handshake(
        HandshakeRole::Server,
        outcome.as_ref().map(|_| ()).map_err(|(reason, _)| *reason),
    );
    let (io, identity) = match outcome {
        Ok(shaken) => shaken,
        Err((reason, message)) => {
            tracing::debug!(%peer, pod = %context.pod.uid, reason, message, "a tunnel's TLS handshake failed");
            return;
        }
    };
    let peer = Arc::new(Peer {
        address: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
        identity,
    });
    let pressure = Arc::new(Pressure::default());
    let serve = |request, respond, alive| {
        let stream = Stream {
            context: Arc::clone(&context),
            peer: Arc::clone(&peer),
            pressure: Arc::clone(&pressure),
            alive,
        };
        context
            .tasks
            .spawn(context.stop.clone(), stream.serve(request, respond));
    };
    let served = accept_http2(io, context.drain.clone(), &context.budget, &pressure, serve);
    if let Err(error) = served.await {
        let reason = error.reason();
        context.path.log.tunnel_ended(HandshakeRole::Server, reason);
        tracing::info!(peer = %peer.address, identity = %peer.identity, pod = %context.pod.uid, reason, %error, "a tunnel was cut");
    }
}

type TlsStream = tokio_rustls::server::TlsStream<BufReader<TcpStream>>;

/// The TLS handshake under the pod's own identity.
async fn shake(
    context: &PodContext,
    tcp: TcpStream,
    client: IpAddr,
) -> Result<(TlsStream, SpiffeId), (&'static str, String)> {
    let _turn = context.budget.take(Place::Handshake).map_err(|over| {
        let message = format!(
            "{} handshakes with pod {} are under way, its limit",
            over.limit, context.pod.uid
        );
        (over.place.reason(), message)
    })?;
    let _of_client = context.handshakes.take(client).ok_or_else(|| {
        let message = format!(
            "{} handshakes of {client} with pod {} are under way, its limit",
            context.path.limits.handshakes_per_client, context.pod.uid
        );
        ("client_handshake_budget", message)
    })?;
    let tls = context
        .path
        .identities
        .tls(&context.pod.identity)
        .ok_or_else(|| {
            let error = TunnelError::NoCertificate(context.pod.identity.clone());
            (error.reason(), error.to_string())
        })?;
    // Gives up by itself when the peer is slow.
    identity::accept(&tls, BufReader::with_capacity(READ_BUFFER, tcp))
        .await
        .map_err(|e| (e.reason, e.message))
}

/// One stream of a tunnel.
struct Stream {
    context: Arc<PodContext>,
    peer: Arc<Peer>,
    pressure: Arc<Pressure>,
    /// Keeps the connection from being taken for an idle one.
    alive: StreamGuard,
}

/// A CONNECT that is refused.
struct Rejected {
    status: StatusCode,
    flag: ResponseFlag,
    reason: &'static str,
    message: String,
    /// Where `plan` refuses it.
    refusal: Option<Refusal>,
}

impl Rejected {
    /// The status that says why `plan` refuses it.
    fn by(refusal: Refusal) -> Self {
        let status = match refusal.reason {
            Reason::UnknownWorkload | Reason::ForbiddenDestination => StatusCode::SERVICE_UNAVAILABLE,
            Reason::WrongAuthority => StatusCode::BAD_REQUEST,
            _ => StatusCode::UNAUTHORIZED,
        };
        Self {
            status,
            flag: ResponseFlag::Deny,
            reason: refusal.reason.as_str(),
            message: String::new(),
            refusal: Some(refusal),
        }
    }

    /// Marks the connection, and gives the answer.
    fn mark(self, connection: &mut Carried) -> Response<()> {
        let Some(refusal) = self.refusal else {
            connection.fail(self.flag, self.reason, self.message);
            return answer(self.status);
        };
        let id = connection.refuse(&refusal);
        let mut response = answer(self.status);
        if let Ok(value) = HeaderValue::from_str(id.as_str()) {
            response.headers_mut().insert(headers::REFUSAL, value);
        }
        response
    }
}

impl Stream {
    fn serve(
        self,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> impl Future<Output = ()> + Send + 'static {
        in_two_parts(self.set_up(request, respond))
    }

    async fn set_up(
        self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<Carrying> {
        let forwarded = request.headers().get(http::header::FORWARDED);
        let client = headers::real_client(self.peer.address, forwarded);
        let asked = forwarded.and_then(|value| headers::forwarded_host(value.as_bytes()));
        let address = self.authority(&request);
        let info = self.info(client, address.as_ref().ok().copied(), asked);
        let mut connection = Carried::new(self.context.path.log.open(info));
        let place = self.context.budget.take(Place::Stream);
        let opened = match (place, address) {
            (Ok(place), Ok(address)) => self
                .open(address, client, &mut respond, &mut connection)
                .await
                .map(|opened| opened.map(|(stands, app)| (place, stands, app))),
            (Err(over), _) => Err(over_budget(&self.context, over)),
            (_, Err(rejected)) => Err(rejected),
        };
        match opened {
            Ok(Some((place, stands, app))) => {
                self.carrying(place, stands, app, request.into_body(), respond, connection)
            }
            Ok(None) => None,
            Err(rejected) => {
                let response = rejected.mark(&mut connection);
                // Fails only when the stream is gone.
                let _ = respond.send_response(response, true);
                None
            }
        }
    }

    /// Asks the policy and connects to the application; `None` when the peer gave up meanwhile.
    async fn open(
        &self,
        address: SocketAddr,
        client: SocketAddr,
        respond: &mut SendResponse<Bytes>,
        connection: &mut Carried,
    ) -> Result<Option<(Stands, AppStream)>, Rejected> {
        let (mut stands, permit) = self.admit(address)?;
        let judgement = permit.judgement().clone();
        let delivered = tokio::select! {
            biased;
            delivered = self.deliver(permit, client, respond, connection) => delivered,
            // Refused before it was let in: that is all that is counted.
            refusal = stands.revoked() => return Err(Rejected::by(refusal)),
        };
        connection.admitted(&judgement);
        Ok(delivered?.map(|app| (stands, app)))
    }

    /// Answers, and says what is left to do: to carry the connection for as long as it is let in.
    fn carrying(
        self,
        place: PlaceGuard,
        mut stands: Stands,
        app: AppStream,
        body: RecvStream,
        mut respond: SendResponse<Bytes>,
        mut connection: Carried,
    ) -> Option<Carrying> {
        let send = match respond.send_response(answer(StatusCode::OK), false) {
            Ok(send) => send,
            Err(error) => {
                let error = CopyError::from(error);
                connection.fail(error.flag(), error.reason(), error.to_string());
                return None;
            }
        };
        let mut carriage = Carriage {
            app,
            side: Side::Server,
            early: None,
            send,
            recv: body,
            pressure: self.pressure,
            account: self.context.account(&connection),
        };
        let alive = self.alive;
        Some(Box::pin(async move {
            let end = {
                let carry = pin!(carriage.carry());
                while_let_in(carry, &mut stands).await
            };
            // The socket closes as it should before the connection counts as closed.
            drop((carriage, stands, place, alive));
            end.mark(&mut connection);
        }))
    }

    /// The address that the CONNECT asks for.
    fn authority<B>(&self, request: &Request<B>) -> Result<SocketAddr, Rejected> {
        let bad = |reason, message| Rejected {
            status: StatusCode::BAD_REQUEST,
            flag: ResponseFlag::Deny,
            reason,
            message,
            refusal: None,
        };
        let extended = request.extensions().get::<h2::ext::Protocol>().is_some();
        if request.method() != Method::CONNECT || extended {
            return Err(bad(
                "not_connect",
                format!(
                    "{} asked for {}, not for CONNECT",
                    self.peer.identity,
                    request.method()
                ),
            ));
        }
        let Some(authority) = request.uri().authority() else {
            return Err(bad(
                "wrong_authority",
                format!("{} sent a CONNECT without an authority", self.peer.identity),
            ));
        };
        plan::hbone_authority(authority.as_str(), &self.context.pod.addresses).map_err(Rejected::by)
    }

    /// Asks the policy.
    fn admit(&self, address: SocketAddr) -> Result<(Stands, Permit), Rejected> {
        let facts = Facts {
            client: self.peer.address.ip(),
            identity: Some(self.peer.identity.clone()),
            address,
        };
        let (stands, admitted) = admit(&self.context, facts);
        Ok((stands, admitted.map_err(Rejected::by)?))
    }

    /// Connects to the application; `None` when the peer gave up meanwhile.
    async fn deliver(
        &self,
        permit: Permit,
        client: SocketAddr,
        respond: &mut SendResponse<Bytes>,
        connection: &mut Carried,
    ) -> Result<Option<AppStream>, Rejected> {
        tokio::select! {
            biased;
            reset = poll_fn(|cx| respond.poll_reset(cx)) => {
                let error = reset.map_or_else(CopyError::from, CopyError::StreamReset);
                connection.fail(error.flag(), error.reason(), error.to_string());
                Ok(None)
            }
            delivered = deliver(&self.context, permit, client) => match delivered {
                Ok(app) => Ok(Some(app)),
                Err(error) => Err(Rejected {
                    status: StatusCode::SERVICE_UNAVAILABLE,
                    flag: error.flag(),
                    reason: error.reason(),
                    message: error.to_string(),
                    refusal: None,
                }),
            },
        }
    }

    fn info(&self, client: SocketAddr, address: Option<SocketAddr>, asked: Option<&str>) -> ConnectionInfo {
        let snapshot = self.context.path.snapshots.load();
        let pod = &self.context.pod;
        // Without an authority that means the pod, what was asked for is the tunnel itself.
        let fallback = || {
            SocketAddr::new(
                pod.addresses.first().copied().unwrap_or(client.ip()),
                mesh_common::HBONE_PORT,
            )
        };
        let address = address.unwrap_or_else(fallback);
        let source = snapshot.workload_by_address(client.ip());
        ConnectionInfo {
            reporter: Reporter::Destination,
            security: Security::MutualTls,
            source_address: client,
            // The address is a hint; it names a workload only if the proven identity is that workload's.
            source: source.filter(|w| w.identity == self.peer.identity).cloned(),
            source_identity: Some(self.peer.identity.clone()),
            requested_address: address,
            destination_address: address,
            destination: snapshot.workload(&pod.uid).cloned(),
            destination_identity: Some(pod.identity.clone()),
            service: snapshot.service_behind(address, asked).cloned(),
        }
    }
}

fn over_budget(context: &PodContext, over: OverBudget) -> Rejected {
    Rejected {
        status: StatusCode::SERVICE_UNAVAILABLE,
        flag: ResponseFlag::Deny,
        reason: over.place.reason(),
        message: format!(
            "pod {} has used up its {} budget on this worker, {}: see `meshctl workloads`",
            context.pod.uid,
            over.place.as_str(),
            over.limit
        ),
        refusal: None,
    }
}

fn answer(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if status != StatusCode::OK {
        response
            .headers_mut()
            .insert(http::header::SERVER, HeaderValue::from_static("mesh-agent"));
    }
    response
}
