//! Any text as the query of the admin API: what is accepted as a filter is written so that it reads the same.
#![no_main]

use axum::extract::Query;
use axum::http::Uri;
use libfuzzer_sys::fuzz_target;
use mesh_agent::admin::client::connections_target;
use mesh_agent::admin::document::ConnectionFilter;

fn read(target: &str) -> Option<ConnectionFilter> {
    let uri: Uri = target.parse().ok()?;
    Query::<ConnectionFilter>::try_from_uri(&uri).ok().map(|query| query.0)
}

fuzz_target!(|input: (&str, Option<String>, Option<String>)| {
    let (query, workload, namespace) = input;
    let asked = ConnectionFilter { workload, namespace, ..ConnectionFilter::default() };
    assert_eq!(read(&connections_target(&asked)), Some(asked), "what meshctl asks for is what the agent reads");
    if let Some(filter) = read(&format!("/connections?{query}")) {
        assert_eq!(read(&connections_target(&filter)), Some(filter));
    }
});
