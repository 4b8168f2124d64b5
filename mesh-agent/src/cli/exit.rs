//! Exit codes: one per class of failure, so that a unit file or a script can tell them apart.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// As asked.
    Success = 0,
    /// A fault without a class of its own.
    Failure = 1,
    /// The command line does not parse (clap's code).
    Usage = 2,
    /// The settings or the configuration directory are wrong.
    Settings = 3,
    /// The kernel or the host lacks what capture needs.
    Host = 4,
    /// Another agent is there: its socket, a port, or its programs.
    Conflict = 5,
    /// The CA or the state directory cannot be used.
    Identity = 6,
    /// No agent answers.
    NoAgent = 7,
    /// A check failed.
    CheckFailed = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// For `mesh-agent --help`.
pub const AGENT_CODES: &str = "\
Exit codes:
  0  stopped as asked
  1  a fault without a class of its own
  2  the command line does not parse
  3  the settings or the configuration directory are wrong
  4  the kernel or the host lacks what capture needs (see `mesh-agent check`)
  5  another agent is there: it has the admin socket, a port, or the pods
  6  the CA or the state directory cannot be used
  8  a check failed (`mesh-agent check`)";

/// For `mesh-agent sandbox --help`.
pub const SANDBOX_HELP: &str = "\
Example:
  mesh-agent sandbox --name shop --service shop:80:8000 -- python3 -m http.server 8000
  mesh-agent sandbox --name order -- curl http://shop/

Exit codes: the command's; 128 and the number of the signal that ended it; 125 no sandbox could be made; 126 the command cannot be
executed; 127 there is no such command.";

/// For `meshctl --help`.
pub const CTL_CODES: &str = "\
Exit codes:
  0  answered; for `check`: nothing failed; for `analyze`: no errors
  1  the agent refused, or its answer is not understood; for `analyze`: there are errors (with --strict: or warnings)
  2  the command line does not parse
  3  the documents or settings for `analyze` cannot be read
  7  no agent answers on the socket
  8  a check failed";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_help_texts_is_a_code_of_the_type() {
        let codes = [
            Exit::Success,
            Exit::Failure,
            Exit::Usage,
            Exit::Settings,
            Exit::Host,
            Exit::Conflict,
            Exit::Identity,
            Exit::NoAgent,
            Exit::CheckFailed,
        ];
        let known: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
        for line in AGENT_CODES
            .lines()
            .chain(CTL_CODES.lines())
            .filter(|l| l.starts_with("  "))
        {
            let code: u8 = line.split_whitespace().next().unwrap().parse().unwrap();
            assert!(known.contains(&code), "{line}");
        }
    }
}
