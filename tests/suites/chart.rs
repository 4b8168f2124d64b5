//! The Helm chart and the manifests that are made from it: what Helm and kustomize make of them, whether an API server would take that, and
//! whether the agent takes its settings. Needs neither root nor a cluster.

#[path = "chart/documents.rs"]
mod documents;
#[path = "chart/rights.rs"]
mod rights;
#[path = "chart/stage.rs"]
mod stage;
#[path = "chart/values.rs"]
mod values;
