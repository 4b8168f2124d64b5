//! A connection from off the pod that did not come through a tunnel.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::plan::{self, Inbound, Reason, Refusal};
use tokio::net::TcpStream;

use super::deliver;
use crate::telemetry::connections::{ConnectionInfo, Reporter, ResponseFlag, Security};
use crate::tunnel::copy::{self, Side};
use crate::tunnel::{AppStream, Carried, PodContext};

/// Carries a plaintext connection to the pod, where its policy permits it; resets it where not.
pub async fn handle(context: Arc<PodContext>, tcp: TcpStream) {
    let app = AppStream::new(tcp);
    let Ok((client, local)) = app.addresses() else {
        return; // Reset before we looked.
    };
    let mut connection = Carried::new(context.path.log.open(info(&context, client, local)));
    match permit(&context, client, local) {
        Ok(permit) => carry(&context, app, permit, client, &mut connection).await,
        Err(refusal) => connection.fail(ResponseFlag::Deny, refusal.reason.as_str(), refusal.message),
    }
}

async fn carry(
    context: &PodContext,
    app: AppStream,
    permit: plan::Permit,
    client: SocketAddr,
    connection: &mut Carried,
) {
    let delivered = tokio::select! {
        biased;
        delivered = deliver(context, permit, client) => delivered,
        error = copy::aborted(&app, Side::Client) => {
            return connection.fail(error.flag(), error.reason(), error.to_string());
        }
    };
    let outcome = match delivered {
        Ok(server) => copy::splice(app, server, &context.account(connection)).await,
        Err(error) => return error.mark(connection),
    };
    match outcome {
        Ok(()) => connection.ended(),
        Err(error) => connection.fail(error.flag(), error.reason(), error.to_string()),
    }
}

fn permit(context: &PodContext, client: SocketAddr, local: SocketAddr) -> Result<plan::Permit, Refusal> {
    if !context.pod.addresses.contains(&local.ip()) {
        return Err(Refusal::new(
            Reason::ForbiddenDestination,
            format!(
                "{local} is not an address of pod {}: {client} is refused",
                context.pod.uid
            ),
        ));
    }
    let inbound = Inbound {
        client: client.ip(),
        identity: None,
        address: local,
    };
    plan::inbound(&context.path.snapshots.load(), &context.pod.uid, &inbound)
}

fn info(context: &PodContext, client: SocketAddr, local: SocketAddr) -> ConnectionInfo {
    let snapshot = context.path.snapshots.load();
    ConnectionInfo {
        reporter: Reporter::Destination,
        security: Security::None,
        source_address: client,
        source: snapshot.workload_by_address(client.ip()).cloned(),
        source_identity: None,
        requested_address: local,
        destination_address: local,
        destination: snapshot.workload(&context.pod.uid).cloned(),
        destination_identity: Some(context.pod.identity.clone()),
        service: snapshot.service_behind(local, None).cloned(),
    }
}
