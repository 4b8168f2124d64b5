//! Which sources the configuration comes from under given settings.

use std::path::Path;

use tokio::runtime::Handle;

use crate::settings::{Kubernetes, PodPlacement, Settings, StatusWriting};
use crate::sources::kubernetes::{self, KubernetesOptions};
use crate::sources::{ConfigurationSource, FileSource, KubernetesSource};

/// The sources in order of precedence: of two objects with one name, the one from the first of these holds.
pub(super) fn of(
    settings: &Settings,
    sandboxes: &Path,
    control: &Handle,
) -> Vec<Box<dyn ConfigurationSource>> {
    let mut sources: Vec<Box<dyn ConfigurationSource>> = Vec::new();
    if let Some(dir) = &settings.config_dir {
        sources.push(Box::new(FileSource::new(dir)));
    }
    sources.push(Box::new(FileSource::new(sandboxes)));
    if let Some(kubernetes) = &settings.kubernetes {
        let options = KubernetesOptions {
            kubeconfig: kubernetes.kubeconfig.clone(),
            node_name: settings.node_name.clone(),
            placement: kubernetes.pod_placement == PodPlacement::Annotations,
            state_dir: settings.state_dir.clone(),
            status_namespace: status_namespace(kubernetes),
        };
        sources.push(Box::new(KubernetesSource::new(options, control.clone())));
    }
    sources
}

/// Where the Lease is by which one agent is chosen to write status conditions.
fn status_namespace(settings: &Kubernetes) -> Option<String> {
    let found = match &settings.status {
        StatusWriting::Off => return None,
        StatusWriting::In(namespace) => Some(namespace.clone()),
        StatusWriting::Auto => match &settings.daemon_set {
            Some(daemon_set) => Some(daemon_set.namespace.clone()),
            None => kubernetes::own_namespace(),
        },
    };
    if found.is_none() {
        tracing::info!(
            "no status conditions are written: the agents' namespace is not known (kubernetes.status names one, or off)"
        );
    }
    found
}
