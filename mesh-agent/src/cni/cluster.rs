//! The plugin's question to the API server, when the agent is away: one Pod and its Namespace, with the credentials that the agent has
//! left for it.

use std::path::PathBuf;
use std::time::Duration;

use http::Request;
use kube::Client;
use tokio::time::timeout;

use super::talk::PodName;
use crate::sources::kubernetes::connect;

/// How long the server may take, in all.
const LIMIT: Duration = Duration::from_secs(4);

/// The documents of the pod and of its namespace, as JSON.
///
/// # Errors
/// Says what is in the way. No credential is in it.
pub(super) fn documents(kubeconfig: &PathBuf, pod: &PodName) -> Result<(String, String), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let asked = runtime.block_on(async { timeout(LIMIT, ask(kubeconfig, pod)).await });
    runtime.shutdown_background();
    asked.unwrap_or_else(|_| {
        Err(format!(
            "the API server does not answer within {} s",
            LIMIT.as_secs()
        ))
    })
}

async fn ask(kubeconfig: &PathBuf, pod: &PodName) -> Result<(String, String), String> {
    let client = connect(Some(kubeconfig)).map_err(|error| error.to_string())?;
    let namespace = format!("/api/v1/namespaces/{}", pod.namespace);
    let pod = get(&client, &format!("{namespace}/pods/{}", pod.name)).await?;
    Ok((pod, get(&client, &namespace).await?))
}

async fn get(client: &Client, path: &str) -> Result<String, String> {
    let request = Request::get(path)
        .body(Vec::new())
        .map_err(|error| format!("{path} cannot be asked for: {error}"))?;
    client
        .request_text(request)
        .await
        .map_err(|error| format!("the API server does not give {path}: {error}"))
}
