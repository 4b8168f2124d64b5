use std::io;

use super::*;

#[test]
fn the_command_line_is_consistent_and_documents_its_exit_codes() {
    use clap::CommandFactory;
    let mut command = Cli::command();
    command.clone().debug_assert();
    assert!(command.render_long_help().to_string().contains("Exit codes:"));
    let run = command.find_subcommand_mut("run").unwrap();
    let help = run.render_long_help().to_string();
    for flag in [
        "--config-dir",
        "--node-name",
        "--state-dir",
        "--admin-socket",
        "Exit codes:",
    ] {
        assert!(help.contains(flag), "{flag}");
    }
}

#[test]
fn classes_of_failure_have_exit_codes_of_their_own() {
    let in_use = |kind: io::ErrorKind| {
        AppError::Http(HttpError::Bind {
            what: "metrics",
            address: "[::]:15020".parse().unwrap(),
            source: kind.into(),
        })
    };
    let owned = AppError::Socket(SocketError::Owned {
        path: "/run/a.sock".into(),
        pid: Some(1),
    });
    let capabilities = AppError::Capture(CaptureError::Capabilities {
        missing: vec!["CAP_BPF"],
    });
    for (error, exit) in [
        (AppError::NoConfiguration, Exit::Settings),
        (owned, Exit::Conflict),
        (in_use(io::ErrorKind::AddrInUse), Exit::Conflict),
        (in_use(io::ErrorKind::PermissionDenied), Exit::Settings),
        (capabilities, Exit::Host),
        (
            AppError::Capture(CaptureError::Locked {
                path: "/sys/fs/bpf/x".into(),
            }),
            Exit::Conflict,
        ),
    ] {
        assert_eq!(class(&error), exit, "{error}");
    }
}

#[test]
fn a_thread_of_the_log_that_cannot_be_started_is_no_fault_of_the_settings() {
    let thread = LoggingError::Thread(io::ErrorKind::WouldBlock.into());
    assert_eq!(logging_class(&thread), Exit::Failure);
    let file = LoggingError::File {
        path: "/nonexistent/access.log".into(),
        source: io::ErrorKind::NotFound.into(),
    };
    assert_eq!(logging_class(&file), Exit::Settings);
}

#[test]
fn a_settings_file_that_is_not_there_is_named_and_has_the_settings_code() {
    let cli = Cli::try_parse_from(["mesh-agent", "run", "--settings", "/nonexistent/settings.yaml"]).unwrap();
    let Command::Run(args) = cli.command else {
        panic!("another command");
    };
    let failed = serve(&args).unwrap_err();
    assert_eq!(failed.exit, Exit::Settings);
    assert!(
        failed.message.contains("/nonexistent/settings.yaml"),
        "{}",
        failed.message
    );
}
