//! Requests and what they are answered: the part of the server that knows its API.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::resources::{self, DEFINITIONS, Resource};
use super::selectors::Selector;
use super::store::{Key, Refusal, Store, merge};
use super::watch;
use super::{Shared, lock};

/// An answer's body: whole, or as it comes.
pub(super) enum Answer {
    Whole(Full<Bytes>),
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Answer::Whole(body) => Pin::new(body).poll_frame(cx),
            Answer::Stream(lines) => lines
                .poll_recv(cx)
                .map(|line| line.map(|line| Ok(Frame::data(line)))),
        }
    }
}

/// The parameters that count here.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let pair = |part: &str| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(key), decode(value))
        };
        Self(
            text.split('&')
                .filter(|part| !part.is_empty())
                .map(pair)
                .collect(),
        )
    }

    pub(super) fn get(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    pub(super) fn is(&self, name: &str) -> bool {
        matches!(self.get(name), "1" | "true")
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex: String = rest.by_ref().take(2).map(char::from).collect();
                bytes.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let bearer = request
        .headers()
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.strip_prefix("Bearer "))
        .map(|token| token.trim().to_owned());
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let body = body
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let path = parts.uri.path().to_owned();
    let content_type = parts
        .headers
        .get("content-type")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let answered = match admit(&shared, bearer.as_deref()) {
        Ok(()) => route(&shared, &parts.method, &path, &query, content_type, &body),
        Err(refusal) => Err(refusal),
    };
    Ok(answered.unwrap_or_else(|refusal| refused(&refusal)))
}

/// Who asks, and whether the server has time.
fn admit(shared: &Shared, bearer: Option<&str>) -> Result<(), Refusal> {
    let mut faults = lock(&shared.faults);
    if !bearer.is_some_and(|token| faults.tokens.iter().any(|good| good == token)) {
        return Err(Refusal::new(401, "Unauthorized", "Unauthorized"));
    }
    if faults.busy > 0 {
        faults.busy -= 1;
        let message = "Too many requests, please try again later.";
        let mut refusal = Refusal::new(429, "TooManyRequests", message);
        refusal.details = json!({"retryAfterSeconds": 1});
        return Err(refusal);
    }
    Ok(())
}

fn refused(refusal: &Refusal) -> Response<Answer> {
    if refusal.reason.is_empty() {
        let mut answer = Response::new(Answer::Whole(Full::from("404 page not found\n")));
        *answer.status_mut() = StatusCode::NOT_FOUND;
        let plain = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
        answer.headers_mut().insert("content-type", plain);
        return answer;
    }
    let mut answer = json_answer(refusal.code, &refusal.status());
    if let Some(after) = refusal.details["retryAfterSeconds"].as_u64() {
        answer.headers_mut().insert("retry-after", after.into());
    }
    answer
}

fn json_answer(code: u16, value: &Value) -> Response<Answer> {
    let mut answer = Response::new(Answer::Whole(Full::from(value.to_string())));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = hyper::header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert("content-type", json);
    answer
}

/// What a path means.
struct Target {
    resource: Resource,
    version: String,
    namespace: Option<String>,
    name: Option<String>,
    status: bool,
}

fn target(store: &Store, path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest != ["status"] => {
            (Some((*namespace).to_owned()), rest)
        }
        rest => (None, rest),
    };
    let (plural, name, status) = match rest {
        [plural] => (*plural, None, false),
        [plural, name] => (*plural, Some((*name).to_owned()), false),
        [plural, name, "status"] => (*plural, Some((*name).to_owned()), true),
        _ => return None,
    };
    let found = resources::all(store)
        .into_iter()
        .find(|r| r.group == group && r.plural == plural && r.versions.iter().any(|v| v == version))?;
    // Without a status apart there is no such path.
    if status && !found.status {
        return None;
    }
    Some(Target {
        resource: found,
        version: version.to_owned(),
        namespace,
        name,
        status,
    })
}

fn route(
    shared: &Arc<Shared>,
    method: &Method,
    path: &str,
    query: &Query,
    content_type: &str,
    body: &[u8],
) -> Result<Response<Answer>, Refusal> {
    let mut store = lock(&shared.store);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if *method == Method::GET
        && let Some(found) = resources::discovery(&store, &parts)
    {
        return Ok(json_answer(200, &found));
    }
    if *method == Method::GET && parts == ["version"] {
        let version = json!({
            "major": "1", "minor": "33", "gitVersion": "v1.33.1", "gitTreeState": "clean", "platform": "linux/amd64",
        });
        return Ok(json_answer(200, &version));
    }
    // Without a reason: the plain text that the server has for paths that it does not know.
    let target = target(&store, path).ok_or_else(|| Refusal::new(404, "", ""))?;
    let verb = match (method, query.is("watch"), &target.name) {
        (&Method::GET, true, _) => "watch",
        (&Method::GET, false, None) => "list",
        (&Method::GET, false, Some(_)) => "get",
        (&Method::POST, ..) => "create",
        (&Method::PUT, ..) => "update",
        (&Method::PATCH, ..) => "patch",
        (&Method::DELETE, ..) => "delete",
        _ => {
            return Err(Refusal::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method",
            ));
        }
    };
    authorize(shared, &target, verb)?;
    match verb {
        "watch" => {
            drop(store);
            let lines = watch::begin(shared, &target.resource, &target.version, target.namespace, query)?;
            let mut answer = Response::new(Answer::Stream(lines));
            let json = hyper::header::HeaderValue::from_static("application/json");
            answer.headers_mut().insert("content-type", json);
            Ok(answer)
        }
        "list" => list(&mut store, &target, query),
        _ => {
            let (code, object) = change(&mut store, &target, verb, content_type, body)?;
            Ok(json_answer(code, &object))
        }
    }
}

fn authorize(shared: &Shared, target: &Target, verb: &str) -> Result<(), Refusal> {
    let plural = &match target.status {
        true => format!("{}/status", target.resource.plural),
        false => target.resource.plural.clone(),
    };
    if !lock(&shared.faults).forbidden.iter().any(|name| name == plural) {
        return Ok(());
    }
    let group = &target.resource.group;
    let message = format!(
        "{plural}{}{group} is forbidden: User \"system:serviceaccount:mesh-system:mesh-agent\" cannot {verb} resource {plural:?} in API \
         group {group:?} at the cluster scope",
        if group.is_empty() { "" } else { "." },
    );
    let mut refusal = Refusal::new(403, "Forbidden", message);
    refusal.details = json!({"group": group, "kind": plural});
    Err(refusal)
}

fn list(store: &mut Store, target: &Target, query: &Query) -> Result<Response<Answer>, Refusal> {
    let resource = &target.resource;
    check_version(store, query.get("resourceVersion"))?;
    let selector = Selector::parse(query.get("labelSelector"), query.get("fieldSelector"))?;
    let limit: usize = query.get("limit").parse().unwrap_or(0);
    let (version, start, all) = match query.get("continue") {
        "" => {
            let mut found = store.list(&resource.key(), target.namespace.as_deref());
            found.retain(|object| selector.matches(object));
            (store.version(), 0, found)
        }
        token => {
            let (version, start) = page_token(token)?;
            let kept = store.kept(version).cloned().ok_or_else(expired_page)?;
            (version, start, kept)
        }
    };
    // resourceVersion 0 is answered from memory, where the limit does not count.
    let limit = if query.get("resourceVersion") == "0" {
        0
    } else {
        limit
    };
    let end = if limit == 0 {
        all.len()
    } else {
        all.len().min(start + limit)
    };
    let mut meta = json!({"resourceVersion": version.to_string()});
    let items: Vec<Value> = all
        .get(start..end)
        .unwrap_or_default()
        .iter()
        .map(|object| item(object, resource, &target.version))
        .collect();
    if end < all.len() {
        meta["remainingItemCount"] = (all.len() - end).into();
        let version = if start == 0 { store.keep(all) } else { version };
        meta["continue"] = format!("v{version:x}x{end:x}").into();
        meta["resourceVersion"] = version.to_string().into();
    }
    let kind = format!("{}List", resource.kind);
    let api_version = resource.api_version(&target.version);
    let whole = json!({"kind": kind, "apiVersion": api_version, "metadata": meta, "items": items});
    Ok(json_answer(200, &whole))
}

/// An element of a list: built-in ones leave their kind to the list, custom ones say it.
fn item(object: &Value, resource: &Resource, version: &str) -> Value {
    let mut item = object.clone();
    if resource.group.contains("istio") {
        name_kind(&mut item, resource, version);
    } else if let Some(fields) = item.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    item
}

/// Writes down what an object is, in this version.
pub(super) fn name_kind(object: &mut Value, resource: &Resource, version: &str) {
    object["kind"] = resource.kind.clone().into();
    object["apiVersion"] = resource.api_version(version).into();
}

fn page_token(token: &str) -> Result<(u64, usize), Refusal> {
    let parse = || {
        let (version, start) = token.strip_prefix('v')?.split_once('x')?;
        Some((
            u64::from_str_radix(version, 16).ok()?,
            usize::from_str_radix(start, 16).ok()?,
        ))
    };
    let message = "invalid continue token: continue key is not valid";
    parse().ok_or_else(|| Refusal::new(400, "BadRequest", message))
}

fn expired_page() -> Refusal {
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the \
                   continue parameter";
    Refusal::new(410, "Expired", message)
}

/// A version that is not there yet.
pub(super) fn check_version(store: &Store, version: &str) -> Result<(), Refusal> {
    let asked: u64 = version.parse().unwrap_or(0);
    if asked <= store.version() {
        return Ok(());
    }
    let message = format!(
        "Timeout: Too large resource version: {asked}, current: {}",
        store.version()
    );
    let mut refusal = Refusal::new(504, "Timeout", message);
    refusal.details = json!({
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    });
    Err(refusal)
}

fn change(
    store: &mut Store,
    target: &Target,
    verb: &str,
    content_type: &str,
    body: &[u8],
) -> Result<(u16, Value), Refusal> {
    let resource = &target.resource;
    let bad = |error: serde_json::Error| Refusal::new(400, "BadRequest", error.to_string());
    let document: Value = match body {
        [] => Value::Null,
        bytes => serde_json::from_slice(bytes).map_err(bad)?,
    };
    let named = target
        .name
        .clone()
        .or_else(|| document["metadata"]["name"].as_str().map(str::to_owned))
        .or_else(|| {
            Some(format!(
                "{}{}",
                document["metadata"]["generateName"].as_str()?,
                store.version()
            ))
        })
        .ok_or_else(|| {
            Refusal::new(
                422,
                "Invalid",
                "metadata.name: Required value: name or generateName is required",
            )
        })?;
    let namespace = target.namespace.clone().unwrap_or_default();
    let key: Key = (resource.key(), namespace.clone(), named.clone());
    let done = match verb {
        "get" => store.get(&key)?,
        "delete" => {
            if resource.key() == DEFINITIONS {
                let definition = store.get(&key)?;
                let of = |pointer: &str| {
                    definition
                        .pointer(pointer)
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .to_owned()
                };
                store.clear(&format!("{}/{}", of("/spec/group"), of("/spec/names/plural")));
            }
            store.delete(&key)?
        }
        "create" => {
            check(resource, &document)?;
            require_namespace(store, resource, &namespace)?;
            let mut object = document;
            object["metadata"]["name"] = named.into();
            if resource.namespaced {
                object["metadata"]["namespace"] = namespace.into();
            }
            if resource.plural == "services" && object["spec"]["clusterIP"].is_null() {
                let ip = format!(
                    "10.96.{}.{}",
                    store.version() / 250 % 250,
                    store.version() % 250 + 1
                );
                object["spec"]["clusterIP"] = ip.clone().into();
                object["spec"]["clusterIPs"] = json!([ip]);
            }
            store.create(key, object)?
        }
        "update" => store.update(&key, |object| {
            check(resource, &document)?;
            if resource.must_be_conditional() && !document["metadata"]["resourceVersion"].is_string() {
                let message = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
                return Err(Refusal::new(422, "Invalid", message));
            }
            unchanged_since(object, &document)?;
            let status = object["status"].clone();
            if target.status {
                object["status"] = document["status"].clone();
            } else {
                *object = document.clone();
                object["status"] = status;
            }
            Ok(())
        })?,
        _ => {
            if content_type != "application/merge-patch+json" {
                let message = "the body of the request was in an unknown format - accepted media types include: \
                               application/merge-patch+json";
                return Err(Refusal::new(415, "UnsupportedMediaType", message));
            }
            store.update(&key, |object| {
                unchanged_since(object, &document)?;
                let status = object["status"].clone();
                if target.status {
                    merge(&mut object["status"], &document["status"]);
                } else {
                    merge(object, &document);
                    if resource.status {
                        object["status"] = status;
                    }
                }
                check(resource, object)
            })?
        }
    };
    let mut object = (*done).clone();
    name_kind(&mut object, resource, &target.version);
    Ok((if verb == "create" { 201 } else { 200 }, object))
}

/// Whoever names a version, or a uid, means that one and no other.
fn unchanged_since(object: &Value, document: &Value) -> Result<(), Refusal> {
    let differs = |key: &str| {
        let asked = &document["metadata"][key];
        asked.is_string() && *asked != object["metadata"][key]
    };
    if differs("uid") || differs("resourceVersion") {
        let message =
            "the object has been modified; please apply your changes to the latest version and try again";
        return Err(Refusal::new(409, "Conflict", message));
    }
    Ok(())
}

/// Nothing can be made where there is no namespace.
fn require_namespace(store: &Store, resource: &Resource, namespace: &str) -> Result<(), Refusal> {
    let always = ["default", "kube-system", "kube-public", "kube-node-lease"];
    if !resource.namespaced || always.contains(&namespace) {
        return Ok(());
    }
    let key = ("/namespaces".to_owned(), String::new(), namespace.to_owned());
    store.get(&key).map(drop)
}

/// What a real server refuses, and tests must not count on.
fn check(resource: &Resource, object: &Value) -> Result<(), Refusal> {
    if resource.plural == "leases" {
        return check_lease(&object["spec"]);
    }
    if resource.plural != "endpointslices" {
        return Ok(());
    }
    let endpoints = object["endpoints"].as_array().into_iter().flatten();
    let addresses = endpoints.flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten());
    let mut texts = addresses.filter_map(Value::as_str);
    match texts.find(|text| text.starts_with("127.") || *text == "::1") {
        Some(text) => {
            let message = format!(
                "endpoints[0].addresses[0]: Invalid value: {text:?}: may not be in the loopback range"
            );
            Err(Refusal::new(422, "Invalid", message))
        }
        None => Ok(()),
    }
}

fn check_lease(spec: &Value) -> Result<(), Refusal> {
    let invalid = |message: &str| Err(Refusal::new(422, "Invalid", message));
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|n| n <= 0) {
        return invalid("spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0");
    }
    if spec["leaseTransitions"].as_i64().is_some_and(|n| n < 0) {
        return invalid("spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0");
    }
    for key in ["acquireTime", "renewTime"] {
        let text = spec[key].as_str();
        if text.is_some_and(|text| !text.contains('.') || !text.ends_with('Z')) {
            return Err(Refusal::new(
                400,
                "BadRequest",
                format!("parsing time {text:?} as MicroTime"),
            ));
        }
    }
    Ok(())
}
