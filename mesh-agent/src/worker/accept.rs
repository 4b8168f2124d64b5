//! Accept loops: one per pod, role and worker.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use mesh_common::{HBONE_PORT, Role};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

use crate::capture::Listener;
use crate::tunnel::{AppStream, Place, PodContext};
use crate::{inbound, outbound};

/// First and longest pause after an accept that failed for want of something.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Sets what accepted connections inherit of their listener; on each of them it would be five system calls.
pub(super) fn prepare(context: &PodContext, listener: &Listener) {
    context.path.legs.watch(&listener.socket);
    if let Err(error) = SockRef::from(&listener.socket).set_tcp_nodelay(true) {
        tracing::warn!(pod = %context.pod.uid, role = ?listener.role, %error, "small writes to the pod may be late");
    }
}

/// Accepts until the pod is retired or the worker drains.
pub(super) async fn run(context: Arc<PodContext>, listener: Listener) {
    let role = listener.role;
    let listener = match listener
        .socket
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(listener.socket))
    {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(pod = %context.pod.uid, ?role, %error, "a listener cannot be polled: its connections are refused");
            return;
        }
    };
    let mut pause = PAUSE.0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = context.drain.cancelled() => return finish(&context, role, listener),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, client)) => {
                pause = PAUSE.0;
                start(&context, role, tcp, client);
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                tracing::warn!(pod = %context.pod.uid, ?role, %error, ?pause, "accept failed: pausing (are descriptors used up?)");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

/// Takes what is in the accept queue: these connections stand already, and closing the listener would reset them.
fn finish(context: &Arc<PodContext>, role: Role, listener: TcpListener) {
    let Ok(listener) = listener.into_std() else {
        return;
    };
    loop {
        match listener.accept() {
            Ok((tcp, client)) => {
                let nonblocking = tcp.set_nonblocking(true).and_then(|()| TcpStream::from_std(tcp));
                if let Ok(tcp) = nonblocking {
                    start(context, role, tcp, client);
                }
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock && is_passing(&error) => {}
            Err(_) => return,
        }
    }
}

/// Whether the failure is that of one connection, not of the listener.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, TimedOut, WouldBlock};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted | TimedOut | WouldBlock
    ) || matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EPROTO | libc::ENETDOWN | libc::EHOSTUNREACH)
    )
}

/// Gives a connection its task, within the pod's budget.
fn start(context: &Arc<PodContext>, role: Role, tcp: TcpStream, client: SocketAddr) {
    let place = match context.budget.take(Place::Connection) {
        Ok(place) => place,
        Err(over) => {
            // Ever more rarely: a flood of connections is not to be one of lines.
            if over.refused.is_power_of_two() {
                tracing::warn!(pod = %context.pod.uid, ?role, limit = over.limit, refused = over.refused,
                    "the pod's connection budget on this worker is used up: reset");
            }
            if role == Role::Outbound {
                outbound::forget(context, &tcp, client);
            }
            drop(AppStream::new(tcp));
            return;
        }
    };
    let (tasks, stop) = (&context.tasks, context.stop.clone());
    let context = Arc::clone(context);
    // A task for each role: one for all of them would take as much room as the largest.
    match role {
        Role::Outbound => tasks.spawn(stop, holding(place, outbound::handle(context, tcp, client))),
        Role::Inbound => tasks.spawn(stop, holding(place, inbound::plaintext::handle(context, tcp))),
        Role::Tunnel => tasks.spawn(
            stop,
            holding(place, inbound::tunnel::handle(context, tcp, HBONE_PORT)),
        ),
    }
}

/// Does `work` and keeps its place for as long.
fn holding<T: Send + 'static>(
    place: T,
    work: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    work.map(move |()| drop(place))
}
