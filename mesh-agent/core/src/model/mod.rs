//! What the mesh knows things by: identities, workloads, services, endpoints, modes. Values only.

mod authorization;
mod cidr;
mod exclusions;
mod identity;
mod mtls;
mod object;
mod service;
mod sharing;
mod workload;

pub use authorization::{Action, AuthorizationPolicy, Clause, Matcher, Pattern, Rule, Test, ip_block};
pub use cidr::{Cidr, CidrError};
pub use exclusions::Exclusions;
pub use identity::{IdentityError, SpiffeId, TrustDomain};
pub use mtls::{MtlsMode, PeerAuthentication, Scope};
pub use object::{
    EndpointSlice, IpFamily, Namespace, Node, Object, ObjectRef, Pod, PortSpec, ServiceSpec, SliceEndpoint,
    TargetPort, Wish, Wishes,
};
pub use service::{Distribution, Endpoint, ExternalAddress, ExternalKind, Service, ServicePort, ServiceRef};
pub(crate) use sharing::Pool;
pub use sharing::Sharing;
pub use workload::{Enrolment, Location, Owner, Workload, WorkloadUid};
