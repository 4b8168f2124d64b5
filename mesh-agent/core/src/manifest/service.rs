//! v1 Service and discovery.k8s.io/v1 EndpointSlice.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::check;
use super::report::{Invalid, NoticeKind, Path, Remarks};
use crate::model::{
    Distribution, EndpointSlice, ExternalAddress, ExternalKind, IpFamily, PortSpec, ServiceRef, ServiceSpec,
    SliceEndpoint, TargetPort,
};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// How long a client keeps its endpoint where the document does not say, and the longest that it may say, seconds.
const AFFINITY: (u32, u32) = (10_800, 86_400);

/// A Service from the document.
///
/// # Errors
/// When a name, address, family or port cannot be what it says.
pub fn service(document: &core::Service, remarks: &mut Remarks) -> Result<ServiceSpec, Invalid> {
    let name = ServiceRef {
        namespace: check::namespace(&document.metadata)?.into(),
        name: check::name(&document.metadata)?.into(),
    };
    let empty = core::ServiceSpec::default();
    let spec = document.spec.as_ref().unwrap_or(&empty);
    let external_name = spec.type_.as_deref() == Some("ExternalName");
    if external_name {
        remarks.add(
            Path::of("spec.type"),
            NoticeKind::Ignored,
            "an ExternalName service is a DNS alias: the mesh carries nothing to it",
        );
    }
    let vips = vips(spec, external_name, remarks)?;
    Ok(ServiceSpec {
        name,
        created: document
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second()),
        external: external(document, spec, &vips, remarks)?,
        source_ranges: source_ranges(spec, remarks)?,
        affinity: affinity(spec, &vips, remarks)?,
        vips,
        ports: ports(spec, remarks)?,
        selector: spec.selector.clone().unwrap_or_default(),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        node_local: node_local(spec)?,
        distribution: distribution(spec, remarks),
        external_name,
        families: families(spec)?,
    })
}

/// `spec.sessionAffinity` and its configuration, in seconds.
fn affinity(
    spec: &core::ServiceSpec,
    vips: &[IpAddr],
    remarks: &mut Remarks,
) -> Result<Option<u32>, Invalid> {
    let config = spec.session_affinity_config.as_ref();
    let written = config
        .and_then(|c| c.client_ip.as_ref())
        .and_then(|c| c.timeout_seconds);
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => {
            if written.is_some() {
                let message =
                    "spec.sessionAffinityConfig has no effect without spec.sessionAffinity: ClientIP";
                remarks.add(
                    Path::of("spec.sessionAffinityConfig"),
                    NoticeKind::Ignored,
                    message,
                );
            }
            return Ok(None);
        }
        Some("ClientIP") => {}
        Some(other) => {
            let path = Path::of("spec.sessionAffinity");
            let message = format!("{path} is {other:?}: expected ClientIP or None");
            return Err(Invalid::at(path, message));
        }
    }
    let (usual, longest) = AFFINITY;
    let seconds = match written.map(u32::try_from) {
        None => usual,
        Some(Ok(seconds)) if (1..=longest).contains(&seconds) => seconds,
        Some(_) => {
            let path = Path::of("spec.sessionAffinityConfig.clientIP.timeoutSeconds");
            let written = written.unwrap_or_default();
            let message = format!("{path} is {written}: expected 1 to {longest} seconds");
            return Err(Invalid::at(path, message));
        }
    };
    if vips.is_empty() {
        let message = "spec.sessionAffinity has no effect on a service without an address: its clients choose among its pods themselves";
        remarks.add(Path::of("spec.sessionAffinity"), NoticeKind::Ignored, message);
    }
    Ok(Some(seconds))
}

/// `spec.externalIPs` and `status.loadBalancer.ingress`. As for kube-proxy, they belong to a service that has a ClusterIP of their family.
fn external(
    document: &core::Service,
    spec: &core::ServiceSpec,
    vips: &[IpAddr],
    remarks: &mut Remarks,
) -> Result<Vec<ExternalAddress>, Invalid> {
    let mut found = Vec::new();
    for (i, text) in spec.external_ips.iter().flatten().enumerate() {
        let path = Path::of("spec.externalIPs").index(i);
        let address = check::address(text, path.clone())?;
        found.push((path, address, ExternalKind::ExternalIp));
    }
    found.extend(load_balancer(document, spec, remarks));
    let mut kept = Vec::new();
    for (path, address, kind) in found {
        if vips.iter().any(|vip| IpFamily::of(*vip) == IpFamily::of(address)) {
            let external = ExternalAddress { address, kind };
            if !kept.contains(&external) {
                kept.push(external);
            }
        } else {
            let message =
                format!("{path} {address} has no effect: the service has no clusterIP of its family");
            remarks.add(path, NoticeKind::Ignored, message);
        }
    }
    Ok(kept)
}

/// The addresses of the load balancer that stand for the service on every node (ipMode VIP, KEP-1860). What a controller wrote into the
/// status costs the address, not the service.
fn load_balancer(
    document: &core::Service,
    spec: &core::ServiceSpec,
    remarks: &mut Remarks,
) -> Vec<(Path, IpAddr, ExternalKind)> {
    let status = document.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = status.and_then(|s| s.ingress.as_ref()).into_iter().flatten();
    let typed = spec.type_.as_deref() == Some("LoadBalancer");
    let mut found = Vec::new();
    for (i, entry) in ingress.enumerate() {
        let path = Path::of("status.loadBalancer.ingress").index(i);
        let Some(text) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) else {
            continue; // A host name: clients look it up and reach whatever it means.
        };
        let mut ignore = |message: String| remarks.add(path.clone(), NoticeKind::Ignored, message);
        match entry.ip_mode.as_deref() {
            None | Some("" | "VIP") if typed => match check::address(text, path.clone().key("ip")) {
                Ok(address) => found.push((path, address, ExternalKind::LoadBalancer)),
                Err(invalid) => ignore(format!("{}: ignored", invalid.message)),
            },
            // The load balancer wants to see these connections: they go there as they are.
            Some("Proxy") if typed => {}
            Some(other) if typed => ignore(format!(
                "{path}.ipMode is {other:?}: expected VIP or Proxy; the address is ignored"
            )),
            _ => ignore(format!(
                "{path} has no effect: the service is not of type LoadBalancer"
            )),
        }
    }
    found
}

fn source_ranges(spec: &core::ServiceSpec, remarks: &mut Remarks) -> Result<Vec<IpNet>, Invalid> {
    let mut found = Vec::new();
    for (i, text) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        let path = Path::of("spec.loadBalancerSourceRanges").index(i);
        match text.trim().parse::<IpNet>() {
            Ok(range) => found.push(range.trunc()),
            Err(_) => {
                let message = format!(
                    "{path} {text:?} is no address range: expected one such as 10.0.0.0/8 or fd00::/8"
                );
                return Err(Invalid::at(path, message));
            }
        }
    }
    if !found.is_empty() && spec.type_.as_deref() != Some("LoadBalancer") {
        let message = "spec.loadBalancerSourceRanges has no effect: the service is not of type LoadBalancer";
        remarks.add(
            Path::of("spec.loadBalancerSourceRanges"),
            NoticeKind::Ignored,
            message,
        );
    }
    Ok(found)
}

fn node_local(spec: &core::ServiceSpec) -> Result<bool, Invalid> {
    match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => Ok(false),
        Some("Local") => Ok(true),
        Some(other) => {
            let path = Path::of("spec.internalTrafficPolicy");
            let message = format!("{path} is {other:?}: expected Cluster or Local");
            Err(Invalid::at(path, message))
        }
    }
}

/// A preference that nobody here knows costs its preference, not the service: that is how the field is meant to grow.
fn distribution(spec: &core::ServiceSpec, remarks: &mut Remarks) -> Distribution {
    match spec.traffic_distribution.as_deref() {
        None | Some("") => Distribution::Even,
        Some("PreferClose" | "PreferSameZone") => Distribution::SameZone,
        Some("PreferSameNode") => Distribution::SameNode,
        Some(other) => {
            let message = format!(
                "spec.trafficDistribution {other:?} means nothing here: expected PreferSameZone, PreferClose or PreferSameNode"
            );
            remarks.add(Path::of("spec.trafficDistribution"), NoticeKind::Ignored, message);
            Distribution::Even
        }
    }
}

fn vips(
    spec: &core::ServiceSpec,
    external_name: bool,
    remarks: &mut Remarks,
) -> Result<Vec<IpAddr>, Invalid> {
    let listed = spec.cluster_ips.iter().flatten().enumerate();
    let listed = listed.map(|(i, text)| (text, Path::of("spec.clusterIPs").index(i)));
    let single = spec
        .cluster_ip
        .iter()
        .map(|text| (text, Path::of("spec.clusterIP")));
    let mut found = Vec::new();
    let mut headless = false;
    for (text, path) in listed.chain(single) {
        match text.as_str() {
            "" => {}
            "None" => headless = true,
            text => {
                let address = check::address(text, path)?;
                if !found.contains(&address) {
                    found.push(address);
                }
            }
        }
    }
    if headless && !found.is_empty() {
        let message = "spec.clusterIP is None beside an address: expected one or the other";
        return Err(Invalid::at(Path::of("spec.clusterIP"), message));
    }
    if !headless && found.is_empty() && !external_name {
        remarks.add(
            Path::of("spec"),
            NoticeKind::Ignored,
            "the service has no spec.clusterIP, so nobody can address it; without an API server that assigns one, write one \
             (or None for a headless service)",
        );
    }
    Ok(found)
}

fn ports(spec: &core::ServiceSpec, remarks: &mut Remarks) -> Result<Vec<PortSpec>, Invalid> {
    let mut found: Vec<PortSpec> = Vec::new();
    for (i, entry) in spec.ports.iter().flatten().enumerate() {
        let path = Path::of("spec.ports").index(i);
        let number = check::port(entry.port.into(), path.clone().key("port"))?;
        if !check::is_tcp(entry.protocol.as_deref()) {
            continue;
        }
        let target = match &entry.target_port {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
            Some(IntOrString::Int(target)) => {
                TargetPort::Number(check::port((*target).into(), path.clone().key("targetPort"))?)
            }
            Some(IntOrString::String(target)) if target.is_empty() => TargetPort::Number(number),
            Some(IntOrString::String(target)) => TargetPort::Name(target.clone()),
        };
        if found.iter().any(|other| other.port == number) {
            let message = format!("port {number}/TCP stands in spec.ports already: this one is ignored");
            remarks.add(path.key("port"), NoticeKind::Conflict, message);
            continue;
        }
        found.push(PortSpec {
            name: entry.name.clone().unwrap_or_default(),
            port: number,
            target,
            app_protocol: entry.app_protocol.clone(),
        });
    }
    Ok(found)
}

fn families(spec: &core::ServiceSpec) -> Result<Option<Vec<IpFamily>>, Invalid> {
    let Some(written) = spec.ip_families.as_ref().filter(|families| !families.is_empty()) else {
        return Ok(None);
    };
    let read = |(i, text): (usize, &String)| match text.as_str() {
        "IPv4" => Ok(IpFamily::V4),
        "IPv6" => Ok(IpFamily::V6),
        other => Err(Invalid::at(
            Path::of("spec.ipFamilies").index(i),
            format!("spec.ipFamilies[{i}] is {other:?}: expected IPv4 or IPv6"),
        )),
    };
    written
        .iter()
        .enumerate()
        .map(read)
        .collect::<Result<_, _>>()
        .map(Some)
}

/// An EndpointSlice from the document.
///
/// # Errors
/// When a name, address, port or the address type cannot be what it says.
pub fn endpoint_slice(
    document: &discovery::EndpointSlice,
    remarks: &mut Remarks,
) -> Result<EndpointSlice, Invalid> {
    let meta = &document.metadata;
    let service = meta
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SERVICE_NAME))
        .cloned();
    if service.is_none() {
        remarks.add(
            Path::of("metadata.labels"),
            NoticeKind::Ignored,
            format!("without the label {SERVICE_NAME} the EndpointSlice belongs to no service"),
        );
    }
    let endpoints = match document.address_type.as_str() {
        "IPv4" => endpoints(document, IpFamily::V4)?,
        "IPv6" => endpoints(document, IpFamily::V6)?,
        "FQDN" => {
            let message = "addressType FQDN: endpoints that are host names are not used";
            remarks.add(Path::of("addressType"), NoticeKind::Ignored, message);
            Vec::new()
        }
        other => {
            let message = format!("addressType is {other:?}: expected IPv4 or IPv6");
            return Err(Invalid::at(Path::of("addressType"), message));
        }
    };
    let mut ports = Vec::new();
    for (i, entry) in document.ports.iter().flatten().enumerate() {
        let Some(number) = entry.port else { continue };
        if check::is_tcp(entry.protocol.as_deref()) {
            let number = check::port(number.into(), Path::of("ports").index(i).key("port"))?;
            ports.push((entry.name.clone().unwrap_or_default(), number));
        }
    }
    Ok(EndpointSlice {
        namespace: check::namespace(meta)?,
        name: check::name(meta)?,
        service,
        ports,
        endpoints,
    })
}

fn endpoints(document: &discovery::EndpointSlice, family: IpFamily) -> Result<Vec<SliceEndpoint>, Invalid> {
    let mut found = Vec::new();
    for (i, entry) in document.endpoints.iter().enumerate() {
        // The API gives addresses beyond the first no meaning.
        let path = Path::of("endpoints").index(i).key("addresses").index(0);
        let Some(text) = entry.addresses.first() else {
            return Err(Invalid::at(
                path,
                format!("endpoints[{i}] has no address: expected one"),
            ));
        };
        let address = check::address(text, path.clone())?;
        if IpFamily::of(address) != family {
            let kind = &document.address_type;
            let message = format!("{path} {text} is not of the slice's addressType {kind}");
            return Err(Invalid::at(path, message));
        }
        let conditions = entry.conditions.as_ref();
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let hints = entry.hints.as_ref();
        let zones = hints.and_then(|h| h.for_zones.as_ref()).into_iter().flatten();
        let nodes = hints.and_then(|h| h.for_nodes.as_ref()).into_iter().flatten();
        found.push(SliceEndpoint {
            address,
            ready,
            serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
            node: entry.node_name.as_deref().map(Into::into),
            zone: entry.zone.as_deref().map(Into::into),
            for_nodes: nodes.map(|node| node.name.clone()).collect(),
            for_zones: zones.map(|zone| zone.name.clone()).collect(),
        });
    }
    Ok(found)
}
