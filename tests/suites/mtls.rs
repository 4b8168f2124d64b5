//! Mutual TLS on the wire: who is believed, what is seen, and an independent peer in both roles.

#[path = "mtls/client_role.rs"]
mod client_role;
#[path = "mtls/policy.rs"]
mod policy;
#[path = "mtls/rotation.rs"]
mod rotation;
#[path = "mtls/server_role.rs"]
mod server_role;
#[path = "mtls/sight.rs"]
mod sight;
#[path = "mtls/wire.rs"]
mod wire;
