//! What people call the two ends of a connection, and what that means in a snapshot.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::ExplainError;
use crate::model::{Service, SpiffeId, Workload};
use crate::snapshot::Snapshot;

/// A client.
pub(super) struct Source {
    /// Its workload, where the mesh knows one.
    pub(super) workload: Option<Arc<Workload>>,
    /// The identity that it proves.
    pub(super) identity: Option<SpiffeId>,
    /// Its addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// Whether its agent plans its connections.
    pub(super) captured: bool,
    /// What was guessed.
    pub(super) notes: Vec<String>,
}

impl Source {
    pub(super) fn named(snapshot: &Snapshot, text: &str) -> Result<Self, ExplainError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::at(snapshot, address.to_canonical()));
        }
        if text.starts_with("spiffe://") {
            let identity = text
                .parse()
                .map_err(|_| ExplainError::UnknownSource(text.to_owned()))?;
            return Ok(Self::proving(snapshot, identity));
        }
        let unknown = || ExplainError::UnknownSource(text.to_owned());
        let (namespace, name) = text.split_once('/').ok_or_else(unknown)?;
        if let Some(workload) = pod(snapshot, namespace, name) {
            return Ok(Self::of(workload));
        }
        let domain = snapshot.settings().trust_domain.clone();
        let identity = SpiffeId::new(domain, namespace, name).map_err(|_| unknown())?;
        let source = Self::proving(snapshot, identity);
        // A service account is known by the pods that have it.
        if source.workload.is_some() {
            Ok(source)
        } else {
            Err(unknown())
        }
    }

    fn at(snapshot: &Snapshot, address: IpAddr) -> Self {
        match snapshot.workload_by_address(address) {
            Some(workload) => Self::of(Arc::clone(workload)),
            None => Self {
                workload: None,
                identity: None,
                addresses: vec![address],
                captured: false,
                notes: vec![format!(
                    "no workload is known at {address}: it has an address and no identity"
                )],
            },
        }
    }

    fn of(workload: Arc<Workload>) -> Self {
        let captured = workload.enrolment.is_enrolled();
        let mut notes = Vec::new();
        if !captured {
            notes.push(format!(
                "Pod {}/{} is not enrolled: it has an address and no identity",
                workload.namespace, workload.name
            ));
        }
        Self {
            identity: captured.then(|| workload.identity.clone()),
            addresses: workload.addresses.clone(),
            captured,
            workload: Some(workload),
            notes,
        }
    }

    fn proving(snapshot: &Snapshot, identity: SpiffeId) -> Self {
        let mut having: Vec<&Arc<Workload>> = snapshot
            .workloads()
            .filter(|workload| workload.identity == identity && workload.enrolment.is_enrolled())
            .collect();
        having.sort_by(|a, b| a.uid.cmp(&b.uid));
        let Some(first) = having.first() else {
            return Self {
                workload: None,
                addresses: Vec::new(),
                captured: false,
                notes: vec![format!(
                    "no enrolled pod has {identity}: rules about source addresses are asked for 0.0.0.0 or ::"
                )],
                identity: Some(identity),
            };
        };
        let mut source = Self::of(Arc::clone(first));
        if having.len() > 1 {
            source.notes.push(format!(
                "{} pods have {identity}; this is about {}/{}",
                having.len(),
                first.namespace,
                first.name
            ));
        }
        source
    }
}

/// A destination.
pub(super) struct Target {
    /// The service, where it is one.
    pub(super) service: Option<Arc<Service>>,
    /// The address and port that a client asks for.
    pub(super) address: SocketAddr,
}

impl Target {
    pub(super) fn named(snapshot: &Snapshot, text: &str) -> Result<Self, ExplainError> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::at(
                snapshot,
                SocketAddr::new(address.ip().to_canonical(), address.port()),
            ));
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(text).parse::<IpAddr>() {
            return Self::without_port(snapshot, text, address.to_canonical());
        }
        let with_port = text
            .rsplit_once(':')
            .map(|(name, port)| (name, port.parse::<u16>()));
        let (name, port) = match with_port {
            Some((name, Ok(port))) => (name, Some(port)),
            Some((_, Err(_))) => return Err(ExplainError::UnknownDestination(text.to_owned())),
            None => (text, None),
        };
        if let Some((namespace, pod_name)) = name.split_once('/') {
            let workload = pod(snapshot, namespace, pod_name)
                .ok_or_else(|| ExplainError::UnknownDestination(text.to_owned()))?;
            return of_pod(&workload, name, port);
        }
        let service =
            service(snapshot, name).ok_or_else(|| ExplainError::UnknownDestination(text.to_owned()))?;
        of_service(service, name, port)
    }

    fn at(snapshot: &Snapshot, address: SocketAddr) -> Self {
        let at_vip = snapshot.service_by_vip(address.ip());
        let service = at_vip.or_else(|| snapshot.service_by_external(address));
        Self {
            service: service.cloned(),
            address,
        }
    }

    fn without_port(snapshot: &Snapshot, text: &str, address: IpAddr) -> Result<Self, ExplainError> {
        if let Some(service) = snapshot.service_by_vip(address) {
            let mut target = of_service(Arc::clone(service), text, None)?;
            target.address.set_ip(address);
            return Ok(target);
        }
        let known = snapshot
            .workload_by_address(address)
            .map(|workload| declared(workload));
        let known = known.unwrap_or_default();
        let port = only(text, &known)?;
        Ok(Self {
            service: None,
            address: SocketAddr::new(address, port),
        })
    }
}

fn of_pod(workload: &Workload, name: &str, port: Option<u16>) -> Result<Target, ExplainError> {
    let port = match port {
        Some(port) => port,
        None => only(name, &declared(workload))?,
    };
    let address = workload.addresses.first();
    let address = address.ok_or_else(|| ExplainError::NoAddress(format!("Pod {name}")))?;
    Ok(Target {
        service: None,
        address: SocketAddr::new(*address, port),
    })
}

fn of_service(service: Arc<Service>, name: &str, port: Option<u16>) -> Result<Target, ExplainError> {
    let port = match port {
        Some(port) => port,
        None => {
            let known: Vec<u16> = service.ports.iter().map(|port| port.port).collect();
            only(name, &known)?
        }
    };
    // A headless one has no address of its own: its endpoints are addressed.
    let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let endpoint = || {
        let all = service.endpoints.get(&port)?;
        Some(all.first()?.address)
    };
    let address = match service.vips.first() {
        Some(vip) => SocketAddr::new(*vip, port),
        None => endpoint().unwrap_or(SocketAddr::new(nowhere, port)),
    };
    Ok(Target {
        service: Some(service),
        address,
    })
}

/// The one port that there is.
fn only(destination: &str, known: &[u16]) -> Result<u16, ExplainError> {
    if let [port] = known {
        return Ok(*port);
    }
    let known: Vec<String> = known.iter().map(ToString::to_string).collect();
    Err(ExplainError::NoPort {
        destination: destination.to_owned(),
        known: if known.is_empty() {
            "none that is declared".to_owned()
        } else {
            known.join(", ")
        },
    })
}

/// The ports that a pod's containers declare.
fn declared(workload: &Workload) -> Vec<u16> {
    let mut ports: Vec<u16> = workload.ports.values().copied().collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn pod(snapshot: &Snapshot, namespace: &str, name: &str) -> Option<Arc<Workload>> {
    let named = |workload: &&Arc<Workload>| workload.namespace == namespace && workload.name == name;
    snapshot
        .workloads()
        .filter(named)
        .max_by_key(|workload| workload.ready)
        .cloned()
}

/// By its host name, or as much of it as clients need.
fn service(snapshot: &Snapshot, name: &str) -> Option<Arc<Service>> {
    let named = |service: &&Arc<Service>| {
        let short = format!("{}.{}", service.name.name, service.name.namespace);
        service.hostname == name || short == name || format!("{short}.svc") == name
    };
    snapshot.services().find(named).cloned()
}
