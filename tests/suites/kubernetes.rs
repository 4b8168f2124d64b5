//! The API of a Kubernetes cluster as the source of configuration: the one that `KUBECONFIG` names, or else a server of our own.

#[path = "kubernetes/advice.rs"]
mod advice;
#[path = "kubernetes/away.rs"]
mod away;
#[path = "kubernetes/believe.rs"]
mod believe;
#[path = "kubernetes/faults.rs"]
mod faults;
#[path = "kubernetes/follow.rs"]
mod follow;
#[path = "kubernetes/nodes.rs"]
mod nodes;
#[path = "kubernetes/stage.rs"]
mod stage;
#[path = "kubernetes/status.rs"]
mod status;
