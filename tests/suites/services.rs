//! Services as clients know them: which pod answers, at which of a service's addresses, and whom a client meets when pods change.

#[path = "services/affinity.rs"]
mod affinity;
#[path = "services/fronts.rs"]
mod fronts;
#[path = "services/replaced.rs"]
mod replaced;
