use super::*;

fn cli(args: &[&str]) -> Cli {
    Cli::try_parse_from(std::iter::once("meshctl").chain(args.iter().copied())).unwrap()
}

#[test]
fn the_command_line_is_consistent_and_documents_its_exit_codes() {
    use clap::CommandFactory;
    let mut command = Cli::command();
    command.clone().debug_assert();
    assert!(command.render_long_help().to_string().contains("Exit codes:"));
}

#[test]
fn flags_stand_before_and_behind_the_command() {
    let before = cli(&["--socket", "/tmp/a.sock", "-o", "json", "status"]);
    let behind = cli(&["status", "-o", "json", "--socket", "/tmp/a.sock"]);
    assert_eq!((before.output, &before.socket), (behind.output, &behind.socket));
    assert_eq!(before.output, Output::Json);
}

#[test]
fn connections_take_filters() {
    let Command::Connections(args) = cli(&["connections", "--workload", "order", "-n", "shop"]).command
    else {
        panic!("another command");
    };
    assert_eq!(
        (args.workload.as_deref(), args.namespace.as_deref()),
        (Some("order"), Some("shop"))
    );
}

#[test]
fn explain_takes_two_ends_and_mtls_a_question() {
    let Command::Explain(args) = cli(&["explain", "shop/order", "payment.shop:80"]).command else {
        panic!("another command");
    };
    assert_eq!(
        (args.source.as_str(), args.destination.as_str()),
        ("shop/order", "payment.shop:80")
    );
    assert!(Cli::try_parse_from(["meshctl", "explain", "shop/order"]).is_err());
    assert!(Cli::try_parse_from(["meshctl", "mtls"]).is_err());
    assert!(matches!(cli(&["mtls", "readiness"]).command, Command::Mtls(_)));
}

#[tokio::test]
async fn an_absent_agent_has_an_exit_code_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    for command in [
        "status",
        "workloads",
        "connections",
        "policies",
        "refusals",
        "services",
        "certs",
        "bpf",
        "config",
    ] {
        assert_eq!(
            run(cli(&["--socket", socket.to_str().unwrap(), command])).await,
            Exit::NoAgent,
            "{command}"
        );
    }
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_given_up_on() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let exit = run(cli(&[
        "--socket",
        socket.to_str().unwrap(),
        "--timeout",
        "0",
        "status",
    ]))
    .await;
    assert_eq!(exit, Exit::NoAgent);
}

#[test]
fn a_check_without_an_agent_keeps_the_hosts_findings_and_says_so() {
    let host = Checks {
        checks: vec![Check {
            name: "kernel".into(),
            level: Level::Fail,
            detail: "5.4".into(),
            hint: None,
        }],
        limits: vec!["UDP".into()],
    };
    let hung = CtlError::Timeout {
        path: "/a.sock".into(),
        seconds: 10,
    };
    assert!(
        without_agent(&hung, Checks::default()).failed(),
        "an agent that hangs"
    );
    let error = CtlError::Client(ClientError::Absent {
        path: "/a.sock".into(),
    });
    let checks = without_agent(&error, host);
    assert!(checks.failed());
    assert_eq!(checks.checks[1].level, Level::Warn);
    assert!(checks.checks[1].detail.contains("/a.sock"));
}
