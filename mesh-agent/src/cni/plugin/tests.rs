use super::*;

fn answered(command: &str, arguments: &str, input: &str) -> Result<Option<Value>, Fault> {
    let environment = |key: &str| match key {
        "CNI_COMMAND" => command.to_owned(),
        "CNI_ARGS" => arguments.to_owned(),
        "CNI_NETNS" => "/proc/self/ns/net".to_owned(),
        _ => "c".to_owned(),
    };
    answer(&environment, input.as_bytes())
}

const POD: &str = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=order;K8S_POD_UID=u";

fn configuration(more: &str) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","name":"n","type":"mesh-agent-cni","socket":"/nonexistent/s","waitMs":1,"prevResult":{{"ips":[]}}{more}}}"#
    )
}

#[test]
fn without_agent_server_and_table_a_pod_does_not_start_unless_its_namespace_is_excluded() {
    let fault = answered("ADD", POD, &configuration("")).unwrap_err();
    assert_eq!(fault.code, Fault::LATER);
    assert!(
        fault.message.contains("not known") && fault.message.contains("Is mesh-agent running"),
        "{}",
        fault.message
    );
    let passed = answered("ADD", POD, &configuration(r#","excludeNamespaces":["shop"]"#)).unwrap();
    assert_eq!(passed, Some(serde_json::json!({ "ips": [] })));
    // No pod of Kubernetes.
    assert!(answered("ADD", "IgnoreUnknown=1", &configuration("")).is_ok());
}

#[test]
fn what_goes_is_let_go_and_the_node_stays_ready_without_an_agent() {
    for command in ["DEL", "GC", "STATUS"] {
        assert_eq!(answered(command, POD, &configuration("")), Ok(None), "{command}");
    }
    assert_eq!(
        answered("CHECK", POD, &configuration("")).unwrap_err().code,
        Fault::LATER
    );
    let versions = answered("VERSION", "", r#"{"cniVersion":"0.4.0"}"#)
        .unwrap()
        .unwrap();
    assert_eq!(versions["cniVersion"], "0.4.0");
}
