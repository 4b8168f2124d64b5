//! A connection from off the pod that did not come through a tunnel.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::plan::{self, Reason, Refusal};
use tokio::net::TcpStream;

use super::admit::admit;
use super::deliver;
use crate::telemetry::connections::{ConnectionInfo, Reporter, Security};
use crate::tunnel::copy::{self, Side};
use crate::tunnel::{AppStream, Carried, Facts, PodContext};

/// Carries a plaintext connection to the pod, where its policy permits it; resets it where not.
pub async fn handle(context: Arc<PodContext>, tcp: TcpStream) {
    let app = AppStream::new(tcp);
    let Ok((client, local)) = app.addresses() else {
        return; // Reset before we looked.
    };
    let mut connection = Carried::new(context.path.log.open(info(&context, client, local)));
    if let Err(refusal) = own_address(&context, client, local) {
        connection.refuse(&refusal);
        return;
    }
    let facts = Facts {
        client: client.ip(),
        identity: None,
        address: local,
    };
    let (mut stands, admitted) = admit(&context, facts);
    let permit = match admitted {
        Ok(permit) => permit,
        Err(refusal) => {
            connection.refuse(&refusal);
            return;
        }
    };
    connection.admitted(permit.judgement());
    let revoked = {
        // In place: `select!` would keep room for a second one.
        let mut carried = std::pin::pin!(carry(&context, app, permit, client, &mut connection));
        tokio::select! {
            biased;
            () = &mut carried => None,
            refusal = stands.revoked() => Some(refusal),
        }
    };
    if let Some(refusal) = revoked {
        connection.revoke(&refusal);
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

/// The listener's namespace may have addresses that are not the pod's.
fn own_address(context: &PodContext, client: SocketAddr, local: SocketAddr) -> Result<(), Refusal> {
    if context.pod.addresses.contains(&local.ip()) {
        return Ok(());
    }
    let message = format!(
        "{local} is not an address of pod {}: {client} is refused",
        context.pod.uid
    );
    Err(Refusal::new(Reason::ForbiddenDestination, message))
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
