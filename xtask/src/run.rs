//! Runs other programs and says how it goes: what is being done, that it still goes on, how long it took.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a silent step says that it is still at it.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Announces a step, does it, says how long it took; on standard error, so that what a verb is run for can be piped.
pub(crate) fn step<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {title}");
    let start = Instant::now();
    let outcome = work();
    let word = if outcome.is_ok() { "done" } else { "FAILED" };
    eprintln!("    {title}: {word} in {}", seconds(start.elapsed()));
    outcome
}

/// Runs `command` with our terminal as its own.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", words(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", words(command));
    }
    Ok(())
}

/// Runs `command` silently: a line now and then says that it goes on, and what it printed is shown only when it fails.
pub(crate) fn quietly(title: &str, command: &mut Command) -> Result<()> {
    let start = Instant::now();
    let (finished, wait) = mpsc::channel::<()>();
    let title = title.to_owned();
    let heart = std::thread::spawn(move || {
        while wait.recv_timeout(HEARTBEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("    … {title}: {} so far", seconds(start.elapsed()));
        }
    });
    let output = command.stdin(Stdio::null()).output();
    drop(finished);
    let _ = heart.join();
    let output = output.with_context(|| format!("cannot run {}", words(command)))?;
    if !output.status.success() {
        let _ = std::io::stderr().write_all(&output.stdout);
        let _ = std::io::stderr().write_all(&output.stderr);
        bail!("{} ended with {}", words(command), output.status);
    }
    Ok(())
}

/// Runs `command` and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    printed(command, output)
}

/// Runs `command` with `input` as its standard input, and returns what it printed.
pub(crate) fn output_of(command: &mut Command, input: &[u8]) -> Result<String> {
    let mut answer = || {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read to the end says so by how it ends.
            let _ = stdin.write_all(input);
        }
        child.wait_with_output()
    };
    let output = answer();
    printed(command, output)
}

fn printed(command: &Command, output: std::io::Result<Output>) -> Result<String> {
    let output = output.with_context(|| format!("cannot run {}", words(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", words(command), output.status, said.trim());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed something that is not UTF-8", words(command)))
}

/// Runs a `cargo test`, shows what it prints, and puts libtest's summary lines into `summaries`, also when it fails.
pub(crate) fn tests(command: &mut Command, summaries: &mut Vec<String>) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", words(command)))?;
    let stdout = child
        .stdout
        .take()
        .context("a child without the stdout we asked for")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if line.starts_with("test result:") {
            summaries.push(line.into_owned());
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} ended with {status}", words(command));
    }
    Ok(())
}

/// A program of tests that cargo has built.
pub(crate) struct TestProgram {
    /// The target's name: the crate's for unit tests, the suite's for suites.
    pub(crate) name: String,
    /// Its file.
    pub(crate) file: PathBuf,
    /// Its package's directory, in which cargo would run it.
    pub(crate) directory: PathBuf,
}

/// The test programs that `command`, a `cargo test --no-run`, makes.
pub(crate) fn test_programs(command: &mut Command) -> Result<Vec<TestProgram>> {
    let text = output(command.args(["--message-format", "json"]))?;
    let mut programs = Vec::new();
    for line in text.lines() {
        let message: serde_json::Value =
            serde_json::from_str(line).context("cargo printed something that is not JSON")?;
        let executable = message["executable"].as_str();
        let manifest = message["manifest_path"].as_str().map(Path::new);
        let directory = manifest.and_then(Path::parent);
        let is_test = message["profile"]["test"] == true;
        if let (true, Some(file), Some(directory)) = (is_test, executable, directory) {
            programs.push(TestProgram {
                name: message["target"]["name"].as_str().unwrap_or_default().to_owned(),
                file: file.into(),
                directory: directory.to_owned(),
            });
        }
    }
    Ok(programs)
}

/// The program's file, if it is on the PATH or in one of the directories of root's.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether we may do what only root may.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A duration as a person wants it.
pub(crate) fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(100) {
        format!("{:.1} s", duration.as_secs_f32())
    } else {
        format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60)
    }
}

/// The command as one could type it.
pub(crate) fn words(command: &Command) -> String {
    let program = command.get_program();
    let is_cargo = Path::new(program).file_name().is_some_and(|name| name == "cargo");
    let mut words = vec![if is_cargo {
        "cargo".to_owned()
    } else {
        program.to_string_lossy().into_owned()
    }];
    words.extend(command.get_args().map(|argument| {
        let argument = argument.to_string_lossy();
        if argument
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_=./:@,+".contains(c))
            && !argument.is_empty()
        {
            argument.into_owned()
        } else {
            format!("'{}'", argument.replace('\'', r"'\''"))
        }
    }));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn a_command_is_shown_as_one_could_type_it() {
        let mut command = Command::new("cargo");
        command.args(["build", "--config", "a.b=\"c d\"", ""]);
        assert_eq!(super::words(&command), "cargo build --config 'a.b=\"c d\"' ''");
    }

    #[test]
    fn the_summaries_of_a_failing_run_are_kept() {
        let mut kept = Vec::new();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo noise; echo 'test result: FAILED. 1 passed; 1 failed'; exit 3",
        ]);
        let error = super::tests(&mut command, &mut kept).unwrap_err();
        assert_eq!(kept, ["test result: FAILED. 1 passed; 1 failed"]);
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }

    #[test]
    fn long_durations_are_given_in_minutes() {
        assert_eq!(super::seconds(Duration::from_millis(1530)), "1.5 s");
        assert_eq!(super::seconds(Duration::from_secs(150)), "2 min 30 s");
    }
}
