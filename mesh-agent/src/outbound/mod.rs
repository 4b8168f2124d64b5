//! One captured connection of a local pod: what it asked for, what `plan` says, and carrying it there. Never decides by itself, and never
//! reaches anything for a pod that the pod could not reach.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method, Request, Uri};
use mesh_common::mutation::{self, Mechanism};
use mesh_core::model::Workload;
use mesh_core::plan::{self, Outbound, Reason, Refusal, Transport};
use mesh_core::snapshot::Snapshot;
use tokio::net::TcpStream;

use crate::affinity::Client;
use crate::telemetry::connections::{ConnectionInfo, Reporter, ResponseFlag, Security};
use crate::tunnel::copy::{self, Carriage, CopyError, Early, Side};
use crate::tunnel::{
    Account, AppStream, Carried, Carrying, PodContext, PoolKey, Pressure, Slot, StreamGuard, TunnelError,
    Unprocessed, dial, headers, in_two_parts,
};

/// How often a stream is tried in all, each time on another connection: when the one at hand turns out to be closing, or when the peer says
/// that it did not process the stream.
const ATTEMPTS: usize = 3;

/// Carries a connection that was accepted from a process in the pod, whose address is `client`. Whatever fails resets it.
pub fn handle(
    context: Arc<PodContext>,
    tcp: TcpStream,
    client: SocketAddr,
) -> impl Future<Output = ()> + Send + 'static {
    in_two_parts(set_up(context, AppStream::new(tcp), client))
}

async fn set_up(context: Arc<PodContext>, app: AppStream, client: SocketAddr) -> Option<Carrying> {
    let Ok((client, local)) = app.addresses() else {
        forget(&context, app.tcp(), client); // Reset before we looked.
        return None;
    };
    match asked_for(&context, client, local) {
        Ok((source, requested)) => open(&context, app, client, &source, requested).await,
        Err(refused) => {
            refused.log(&context, client, local);
            None
        }
    }
}

/// Takes the hand-off of a connection that is not carried, which nobody else would. `client` is what `accept` said: a socket that was
/// reset in the accept queue does not know its peer any more.
pub fn forget(context: &PodContext, tcp: &TcpStream, client: SocketAddr) {
    let Ok(local) = tcp.local_addr() else { return };
    if mutation::is_off(Mechanism::HandoffTakenBack) {
        return;
    }
    if let Err(error) = context.path.flows.take_destination(&context.pod, client, local) {
        tracing::warn!(pod = %context.pod.uid, %client, %error, "a hand-off could not be taken back");
    }
}

/// A connection that never became one.
struct Unplanned {
    source: Option<Arc<Workload>>,
    flag: ResponseFlag,
    reason: &'static str,
    message: String,
}

impl Unplanned {
    fn log(self, context: &PodContext, client: SocketAddr, requested: SocketAddr) {
        let mut connection = context.path.log.open(ConnectionInfo {
            reporter: Reporter::Source,
            security: Security::None,
            source_address: client,
            source: self.source,
            source_identity: Some(context.pod.identity.clone()),
            requested_address: requested,
            destination_address: requested,
            destination: None,
            destination_identity: None,
            service: None,
        });
        connection.fail(self.flag, self.reason, self.message);
    }
}

/// Who asks, and for what.
fn asked_for(
    context: &PodContext,
    client: SocketAddr,
    local: SocketAddr,
) -> Result<(Arc<Workload>, SocketAddr), Unplanned> {
    let source = context.path.snapshots.load().workload(&context.pod.uid).cloned();
    let unknown = |source, message| Unplanned {
        source,
        flag: ResponseFlag::UnknownFlow,
        reason: "unknown_flow",
        message,
    };
    let requested = match context.path.flows.take_destination(&context.pod, client, local) {
        Ok(Some(requested)) => SocketAddr::new(requested.ip().to_canonical(), requested.port()),
        Ok(None) => {
            let message = format!(
                "{client} reached the outbound listener without being captured: refused (see `meshctl bpf`)"
            );
            return Err(unknown(source, message));
        }
        Err(error) => return Err(unknown(source, error.to_string())),
    };
    match source {
        Some(source) => Ok((source, requested)),
        None => Err(Unplanned {
            source: None,
            flag: ResponseFlag::Deny,
            reason: Reason::UnknownWorkload.as_str(),
            message: format!(
                "pod {} is not (or no longer) known: its connection to {requested} is refused",
                context.pod.uid
            ),
        }),
    }
}

/// Plans the connection and opens its way.
async fn open(
    context: &Arc<PodContext>,
    app: AppStream,
    client: SocketAddr,
    source: &Arc<Workload>,
    requested: SocketAddr,
) -> Option<Carrying> {
    let snapshot = context.path.snapshots.load();
    let planned = plan_for(context, &snapshot, client, source, requested).and_then(reachable);
    drop(snapshot);
    let info = info(context, client, source, requested, planned.as_ref().ok());
    let mut connection = Carried::new(context.path.log.open(info));
    let account = context.account(&connection);
    let opened = match planned {
        Ok(outbound) => forward(context, app, client, source, &outbound, &account).await,
        Err(refusal) => Err(Failure::Refused(refusal)),
    };
    match opened {
        Ok(way) => Some(way.carrying(connection, account)),
        Err(failure) => {
            failure.mark(&mut connection);
            None
        }
    }
}

/// How a connection that is set up is carried.
enum Way {
    /// Over a stream, which has a place on its tunnel for as long.
    Tunnel(Carriage, StreamGuard),
    /// To another socket.
    Socket(AppStream, AppStream),
}

impl Way {
    fn carrying(self, mut connection: Carried, account: Arc<Account>) -> Carrying {
        match self {
            Way::Tunnel(mut carriage, place) => Box::pin(async move {
                let outcome = carriage.carry().await;
                // The socket closes as it should before the connection counts as closed.
                drop((carriage, place));
                mark(outcome, &mut connection);
            }),
            Way::Socket(mut app, mut server) => Box::pin(async move {
                let outcome = copy::splice(&mut app, &mut server, &account).await;
                drop((app, server));
                mark(outcome, &mut connection);
            }),
        }
    }
}

/// How it ended.
fn mark(outcome: Result<(), CopyError>, connection: &mut Carried) {
    match outcome {
        Ok(()) => connection.ended(),
        Err(error) => Failure::Copy(error).mark(connection),
    }
}

/// What `plan` says, given the endpoint that the client had before where the service wants it to stay there.
fn plan_for(
    context: &PodContext,
    snapshot: &Snapshot,
    client: SocketAddr,
    source: &Workload,
    requested: SocketAddr,
) -> Result<Outbound, Refusal> {
    let plan = |previous| plan::outbound(snapshot, source, requested, previous, rand::random());
    let Some(session) = plan::session(snapshot, requested) else {
        return plan(None);
    };
    let client = Client {
        pod: context.pod.uid.clone(),
        address: client.ip().to_canonical(),
    };
    context
        .path
        .affinity
        .decide(session, client, Instant::now(), |previous| {
            let outbound = plan(previous)?;
            Ok((outbound.address, outbound))
        })
}

/// The agent dials nothing for a pod that means the node, or the pod's own loopback.
fn reachable(outbound: Outbound) -> Result<Outbound, Refusal> {
    let ip: IpAddr = outbound.address.ip().to_canonical();
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return Err(Refusal::new(
            Reason::ForbiddenDestination,
            format!(
                "{} is no address that a pod's connection is forwarded to",
                outbound.address
            ),
        ));
    }
    Ok(outbound)
}

fn info(
    context: &PodContext,
    client: SocketAddr,
    source: &Arc<Workload>,
    requested: SocketAddr,
    planned: Option<&Outbound>,
) -> ConnectionInfo {
    let expected = planned.and_then(|p| match &p.transport {
        Transport::Tunnel { expected, .. } => Some(expected.clone()),
        Transport::Passthrough | Transport::Hairpin => None,
    });
    ConnectionInfo {
        reporter: Reporter::Source,
        security: if expected.is_some() {
            Security::MutualTls
        } else {
            Security::None
        },
        source_address: client,
        source: Some(Arc::clone(source)),
        source_identity: Some(context.pod.identity.clone()),
        requested_address: requested,
        destination_address: planned.map_or(requested, |p| p.address),
        destination: planned.and_then(|p| p.destination.clone()),
        destination_identity: expected,
        service: planned.and_then(|p| p.service.clone()),
    }
}

/// Why a planned connection failed.
enum Failure {
    Refused(Refusal),
    Tunnel(TunnelError),
    Copy(CopyError),
}

impl Failure {
    fn mark(self, connection: &mut Carried) {
        match self {
            Failure::Refused(refusal) => {
                connection.refuse(&refusal);
            }
            Failure::Tunnel(error) => error.mark(connection),
            Failure::Copy(error) => connection.fail(error.flag(), error.reason(), error.to_string()),
        }
    }
}

impl From<TunnelError> for Failure {
    fn from(error: TunnelError) -> Self {
        Failure::Tunnel(error)
    }
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        Failure::Copy(error)
    }
}

async fn forward(
    context: &Arc<PodContext>,
    app: AppStream,
    client: SocketAddr,
    source: &Workload,
    outbound: &Outbound,
    account: &Arc<Account>,
) -> Result<Way, Failure> {
    match &outbound.transport {
        Transport::Tunnel { .. } => {
            let (key, request) = tunnel_request(context, client, source, outbound)?;
            tunnel(context, app, &key, &request, account).await
        }
        Transport::Passthrough | Transport::Hairpin => {
            let dialled = async { Ok(dial(context, outbound.address, |_| Ok(())).await?) };
            let server = AppStream::new(unless_aborted(&app, dialled).await?);
            Ok(Way::Socket(app, server))
        }
    }
}

/// Runs `work` unless the application gives up first.
async fn unless_aborted<T>(
    app: &AppStream,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        outcome = work => outcome,
        error = copy::aborted(app, Side::Client) => Err(error.into()),
    }
}

/// The connections that may carry it, and the CONNECT.
fn tunnel_request(
    context: &PodContext,
    client: SocketAddr,
    source: &Workload,
    outbound: &Outbound,
) -> Result<(PoolKey, Request<()>), Failure> {
    let (Transport::Tunnel { gateway, expected }, Some(destination)) =
        (&outbound.transport, &outbound.destination)
    else {
        return Err(Failure::Refused(Refusal::new(
            Reason::UnknownWorkload,
            format!(
                "no workload is known behind {}: no tunnel leads there",
                outbound.address
            ),
        )));
    };
    let key = PoolKey {
        source: context.pod.uid.clone(),
        source_identity: context.pod.identity.clone(),
        source_address: context
            .pod
            .addresses
            .iter()
            .copied()
            .find(|ip| ip.is_ipv4() == gateway.is_ipv4()),
        expected: expected.clone(),
        gateway: *gateway,
        destination: destination.uid.clone(),
    };
    let request = connect(client, source, outbound).map_err(|e| {
        Failure::Refused(Refusal::new(
            Reason::WrongAuthority,
            format!("no CONNECT can be written for {}: {e}", outbound.address),
        ))
    })?;
    Ok((key, request))
}

/// The CONNECT with its informative headers.
fn connect(client: SocketAddr, source: &Workload, outbound: &Outbound) -> Result<Request<()>, http::Error> {
    let uri = Uri::builder().authority(outbound.address.to_string()).build()?;
    let mut request = Request::builder().method(Method::CONNECT).uri(uri).body(())?;
    let service = outbound.service.as_ref().map(|s| s.hostname.as_str());
    let informative: &mut HeaderMap = request.headers_mut();
    if let Some(value) = headers::forwarded(client, service) {
        informative.insert(http::header::FORWARDED, value);
    }
    if let Some(value) = headers::baggage(source) {
        informative.insert("baggage", value);
    }
    Ok(request)
}

/// Opens a stream for the connection; another one, with all that the application has sent, when the first one was not processed.
async fn tunnel(
    context: &Arc<PodContext>,
    mut app: AppStream,
    key: &PoolKey,
    request: &Request<()>,
    account: &Arc<Account>,
) -> Result<Way, Failure> {
    let mut early = Early::default();
    let mut refused = Vec::new();
    let mut attempt = 1;
    loop {
        let slot = unless_aborted(&app, slot(context, key, &refused)).await?;
        let why = match slot.open(request.clone()).await {
            Ok(mut stream) => match copy::answered(&mut app, &mut stream, &mut early, account).await {
                Ok(recv) => {
                    let carriage = Carriage {
                        app,
                        side: Side::Client,
                        early: early.left(),
                        send: stream.send,
                        recv,
                        pressure: stream.pressure,
                        account: Arc::clone(account),
                    };
                    return Ok(Way::Tunnel(carriage, stream.guard));
                }
                Err(error) => match stream.unprocessed(&error) {
                    Some(why) if attempt < ATTEMPTS && key.is_current(&context.path.snapshots.load()) => {
                        refused.push(stream.pressure);
                        why
                    }
                    _ => return Err(error.into()),
                },
            },
            // Nothing was sent.
            Err(_) if attempt < ATTEMPTS => Unprocessed::Unwritten,
            Err(error) => {
                return Err(Failure::Tunnel(TunnelError::Http2 {
                    address: key.gateway,
                    why: error.to_string(),
                }));
            }
        };
        attempt += 1;
        context.path.log.retried(why.as_str());
        tracing::debug!(gateway = %key.gateway, why = why.as_str(), attempt, "a stream was not processed: tried again");
    }
}

async fn slot(context: &Arc<PodContext>, key: &PoolKey, refused: &[Arc<Pressure>]) -> Result<Slot, Failure> {
    Ok(context.pool.slot(context, key, refused).await?)
}
