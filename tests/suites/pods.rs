//! How pods are found on Kubernetes: by what the kernel and the container runtime show, laid out as kubelets lay it out. The tests play the
//! kubelet's part.

#[path = "pods/cni.rs"]
mod cni;
#[path = "pods/containerd.rs"]
mod containerd;
#[path = "pods/cri.rs"]
mod cri;
#[path = "pods/doubts.rs"]
mod doubts;
#[path = "pods/found.rs"]
mod found;
#[path = "pods/lives.rs"]
mod lives;
#[path = "pods/messages.rs"]
mod messages;
#[path = "pods/stage.rs"]
mod stage;
