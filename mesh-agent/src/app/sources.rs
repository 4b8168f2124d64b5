//! Which sources the configuration comes from under given settings.

use std::path::Path;

use tokio::runtime::Handle;

use crate::settings::{PodPlacement, Settings};
use crate::sources::kubernetes::KubernetesOptions;
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
        };
        sources.push(Box::new(KubernetesSource::new(options, control.clone())));
    }
    sources
}
