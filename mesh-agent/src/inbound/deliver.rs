//! The last step to the application.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use mesh_core::plan::Permit;

use crate::tunnel::{AppStream, PodContext, TunnelError, delivery_source, dial, from_source};

/// Connects to the application that `permit` names, from within its pod; the application sees `client` as its peer.
///
/// # Errors
/// When the permit is for another pod, the kernel cannot be told of the client, or the application does not answer.
pub async fn deliver(
    context: &PodContext,
    permit: Permit,
    client: SocketAddr,
) -> Result<AppStream, TunnelError> {
    let address = permit.address();
    if permit.destination().uid != context.pod.uid {
        let why = format!(
            "the permit is for {}, this pod is {}",
            permit.destination().uid,
            context.pod.uid
        );
        return Err(TunnelError::Socket { address, why });
    }
    let tcp = dial(context, address, |socket| {
        from_source(socket, delivery_source(client, address.ip()))?;
        context
            .path
            .flows
            .announce_delivery(socket.as_fd(), client)
            .map_err(io::Error::other)
    })
    .await?;
    Ok(AppStream::new(tcp))
}
