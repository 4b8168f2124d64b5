//! A connection from off the pod that did not come through a tunnel.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use mesh_core::plan::{Reason, Refusal};
use tokio::net::TcpStream;

use super::admit::admit;
use super::{deliver, while_let_in};
use crate::telemetry::connections::{ConnectionInfo, Reporter, Security};
use crate::tunnel::copy::{self, Side};
use crate::tunnel::{AppStream, Carried, Carrying, Facts, PodContext, Stands, in_two_parts};

/// Carries a plaintext connection to the pod, where its policy permits it; resets it where not.
pub fn handle(context: Arc<PodContext>, tcp: TcpStream) -> impl Future<Output = ()> + Send + 'static {
    in_two_parts(set_up(context, AppStream::new(tcp)))
}

async fn set_up(context: Arc<PodContext>, app: AppStream) -> Option<Carrying> {
    // Reset before we looked, if it has no addresses.
    let (client, local) = app.addresses().ok()?;
    let mut connection = Carried::new(context.path.log.open(info(&context, client, local)));
    if let Err(refusal) = own_address(&context, client, local) {
        connection.refuse(&refusal);
        return None;
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
            return None;
        }
    };
    let judgement = permit.judgement().clone();
    let delivered = tokio::select! {
        biased;
        delivered = deliver(&context, permit, client) => Ok(delivered),
        error = copy::aborted(&app, Side::Client) => Err(error),
        refusal = stands.revoked() => {
            // Refused before it was let in: that is all that is counted.
            connection.refuse(&refusal);
            return None;
        }
    };
    connection.admitted(&judgement);
    match delivered {
        Ok(Ok(server)) => Some(carrying(&context, app, server, stands, connection)),
        Ok(Err(error)) => {
            error.mark(&mut connection);
            None
        }
        Err(error) => {
            connection.fail(error.flag(), error.reason(), error.to_string());
            None
        }
    }
}

/// Carries it for as long as it is let in.
fn carrying(
    context: &PodContext,
    mut app: AppStream,
    mut server: AppStream,
    mut stands: Stands,
    mut connection: Carried,
) -> Carrying {
    let account = context.account(&connection);
    Box::pin(async move {
        let end = {
            let carry = pin!(copy::splice(&mut app, &mut server, &account));
            while_let_in(carry, &mut stands).await
        };
        // The sockets close as they should before the connection counts as closed.
        drop((app, server, stands));
        end.mark(&mut connection);
    })
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
