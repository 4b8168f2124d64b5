//! One line per closed connection, through the tracing target `access`, in the shape of the ambient peers' L4 access log.
//!
//! Fields that are not known are absent. `bytes_sent` are the server's bytes (the response), `bytes_recv` the client's, as in
//! Istio's metrics. `error` and `response_flags` stand only on connections that failed, `refusal` (an id) on those that were refused.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use mesh_common::HBONE_PORT;
use tracing::field::{DisplayValue, display};

use super::connections::{ConnectionInfo, Failure, Live, Reporter, Security};

/// The tracing target, for filters: `--log info,access=off`.
pub(super) const TARGET: &str = "access";

/// Writes the line of a connection that has just closed.
pub(super) fn write(live: &Live, failure: Option<&Failure>) {
    let line = Line::of(&live.info);
    let received = live.counts.received.load(Ordering::Relaxed);
    let sent = live.counts.sent.load(Ordering::Relaxed);
    let duration = format!("{}ms", live.age().as_millis());
    macro_rules! line {
        ($level:expr, $text:expr $(, $extra:tt = $value:expr)*) => {
            tracing::event!(
                target: TARGET,
                $level,
                src.addr = %live.info.source_address,
                src.workload = line.source_workload,
                src.namespace = line.source_namespace,
                src.identity = line.source_identity,
                dst.addr = %line.destination_address,
                dst.hbone_addr = line.hbone_address,
                dst.service = line.service,
                dst.workload = line.destination_workload,
                dst.namespace = line.destination_namespace,
                dst.identity = line.destination_identity,
                direction = line.direction,
                bytes_sent = sent,
                bytes_recv = received,
                duration = duration.as_str(),
                $($extra = $value,)*
                $text
            )
        };
    }
    match failure {
        None => line!(tracing::Level::INFO, "connection complete"),
        Some(failure) => line!(
            tracing::Level::WARN,
            "connection failed",
            error = failure.message.as_str(),
            reason = failure.reason,
            refusal = failure.refusal.as_ref().map(|id| id.as_str()),
            response_flags = failure.flag.as_str()
        ),
    }
}

/// The facts of a line that are derived from what the connection was opened with.
struct Line<'a> {
    source_workload: Option<&'a str>,
    source_namespace: Option<&'a str>,
    source_identity: Option<DisplayValue<&'a mesh_core::model::SpiffeId>>,
    /// Where the packets go: podIP:15008 through a tunnel, else the application's address.
    destination_address: SocketAddr,
    /// The application's address behind the tunnel.
    hbone_address: Option<DisplayValue<SocketAddr>>,
    service: Option<&'a str>,
    destination_workload: Option<&'a str>,
    destination_namespace: Option<&'a str>,
    destination_identity: Option<DisplayValue<&'a mesh_core::model::SpiffeId>>,
    direction: &'static str,
}

impl<'a> Line<'a> {
    fn of(info: &'a ConnectionInfo) -> Self {
        let tunnelled = info.security == Security::MutualTls;
        let mut destination_address = info.destination_address;
        if tunnelled {
            destination_address.set_port(HBONE_PORT);
        }
        Self {
            source_workload: info.source.as_ref().map(|w| w.name.as_str()),
            source_namespace: info.source.as_ref().map(|w| w.namespace.as_str()),
            source_identity: info.source_identity.as_ref().map(display),
            destination_address,
            hbone_address: tunnelled.then(|| display(info.destination_address)),
            service: info.service.as_ref().map(|s| s.hostname.as_str()),
            destination_workload: info.destination.as_ref().map(|w| w.name.as_str()),
            destination_namespace: info.destination.as_ref().map(|w| w.namespace.as_str()),
            destination_identity: info.destination_identity.as_ref().map(display),
            direction: match info.reporter {
                Reporter::Source => "outbound",
                Reporter::Destination => "inbound",
            },
        }
    }
}
