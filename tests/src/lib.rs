//! End-to-end tests: the harness that builds nodes and pods out of namespaces and cgroups, runs agents and programs in them, and
//! observes them from outside. The suites are in `tests/suites`; the demo uses the same harness.

// Says of which version the API's types are, which kube needs to know.
use k8s_openapi as _;

pub mod apiserver;
pub mod harness;
pub mod stream;
