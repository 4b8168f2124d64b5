//! What the agent is a part of, in a cluster: its DaemonSet. An agent that is ended because its DaemonSet was deleted has no successor, so
//! it takes everything with it. Only the API server's word that it is gone counts, never a question that was not answered.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{AsyncBufReadExt, TryStreamExt};
use http::Request;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::settings::{DaemonSet, Settings};
use crate::sources::kubernetes::connect;

/// Between two looks at a server that does not answer.
const AGAIN: Duration = Duration::from_secs(5);

/// Whether the agent's DaemonSet has been deleted.
#[derive(Clone, Debug, Default)]
pub(super) struct Belonging {
    over: Arc<AtomicBool>,
}

impl Belonging {
    /// Whether it has.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Watches it, where the settings say which it is, until it is deleted or `stop`.
    pub(super) async fn watch(self, settings: Settings, stop: CancellationToken) {
        let Some(daemon_set) = settings.kubernetes.as_ref().and_then(|k| k.daemon_set.clone()) else {
            return;
        };
        let kubeconfig = settings.kubernetes.and_then(|kubernetes| kubernetes.kubeconfig);
        loop {
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look(kubeconfig.as_ref(), &daemon_set) => looked,
            };
            if self.is_over() {
                info!(%daemon_set, "the DaemonSet is being deleted: this agent will take everything with it when it is ended");
                return;
            }
            // An end of the watch is usual; what it says is for those who look for trouble.
            if let Err(error) = looked {
                debug!(%error, %daemon_set, "the DaemonSet is not watched");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    /// A list and a watch. Returns when it is over, or the watch has ended.
    async fn look(&self, kubeconfig: Option<&PathBuf>, of: &DaemonSet) -> Result<(), String> {
        let client = connect(kubeconfig).map_err(|error| error.to_string())?;
        let path = format!(
            "/apis/apps/v1/namespaces/{}/daemonsets?fieldSelector=metadata.name%3D{}",
            of.namespace, of.name
        );
        let get = |path: &str| {
            Request::get(path)
                .body(Vec::new())
                .map_err(|error| error.to_string())
        };
        let list = client
            .request::<Value>(get(&path)?)
            .await
            .map_err(|error| error.to_string())?;
        let items = list.get("items").and_then(Value::as_array);
        match items.map(Vec::as_slice) {
            // Its agents run, and it is not there.
            Some([]) => return self.end(),
            Some([one, ..]) if is_going(one) => return self.end(),
            Some(_) => {}
            None => return Err("the API server's answer is no list".to_owned()),
        }
        let version = list
            .pointer("/metadata/resourceVersion")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let watch = format!("{path}&watch=true&resourceVersion={version}");
        let stream = client
            .request_stream(get(&watch)?)
            .await
            .map_err(|error| error.to_string())?;
        let mut lines = stream.lines();
        while let Some(line) = lines.try_next().await.map_err(|error| error.to_string())? {
            let event: Value = serde_json::from_str(&line).map_err(|error| error.to_string())?;
            let object = event.get("object");
            match event.get("type").and_then(Value::as_str) {
                Some("DELETED") => return self.end(),
                Some("MODIFIED" | "ADDED") if object.is_some_and(is_going) => return self.end(),
                Some("ERROR") => return Err("the watch has to begin anew".to_owned()),
                _ => {}
            }
        }
        Ok(())
    }

    fn end(&self) -> Result<(), String> {
        self.over.store(true, Ordering::Relaxed);
        Ok(())
    }
}

fn is_going(object: &Value) -> bool {
    object
        .pointer("/metadata/deletionTimestamp")
        .is_some_and(Value::is_string)
}
