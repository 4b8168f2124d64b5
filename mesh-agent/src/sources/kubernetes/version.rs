//! Which version the API server is of, for `meshctl check`. Whoever may talk to a server may ask that; nothing depends on it.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::Shared;
use super::request::Requests;
use super::trouble::Trouble;
use crate::sources::{KindBoard, ServerStatus};

/// How often it is asked again: servers are upgraded.
const AGAIN: Duration = Duration::from_secs(600);
/// How often where it did not answer.
const RETRY: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    git_version: String,
}

/// Keeps what `board` says of the server true.
pub(super) async fn watch(requests: Requests, board: KindBoard, shared: Arc<Shared>) {
    let mut known = None;
    loop {
        let (status, wait) = match ask(&requests).await {
            Ok(version) => {
                known = Some(version);
                (None, AGAIN)
            }
            Err(trouble) => (Some(trouble.to_string()), RETRY),
        };
        board.set_server(ServerStatus {
            address: requests.server(),
            version: known.clone(),
            problem: status,
        });
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shared.look.notified() => {}
        }
    }
}

async fn ask(requests: &Requests) -> Result<String, Trouble> {
    let bytes = requests.get("/version").await?;
    let version: Version = serde_json::from_slice(&bytes)
        .map_err(|error| Trouble::Malformed(format!("its version: {error}")))?;
    Ok(version.git_version)
}
