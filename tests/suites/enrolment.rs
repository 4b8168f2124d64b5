//! What surrounds enrolment: who is refused, what passes uncaptured by permission (probes of the kubelet, exclusions), and what is older.

#[path = "enrolment/exclusions.rs"]
mod exclusions;
#[path = "enrolment/older.rs"]
mod older;
#[path = "enrolment/probes.rs"]
mod probes;
#[path = "enrolment/refusals.rs"]
mod refusals;
#[path = "enrolment/shared.rs"]
mod shared;
#[path = "enrolment/stage.rs"]
mod stage;
