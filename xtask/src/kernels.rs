//! `cargo xtask e2e kernels`: what depends on the kernel's version, on Debian's older kernels under qemu. No KVM is needed: the guest is
//! emulated, boots a kernel out of a Debian package, and sees the host's root directory read-only, so the same programs run in it.

mod image;
mod packages;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::project::Project;
use crate::run::{self, TestProgram};

use packages::Kernel;

/// The name by which `cargo xtask e2e` knows this.
pub(crate) const NAME: &str = "kernels";

/// The series of kernels that are tried.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// Tests of the capture suite that need nothing but ip(8), ss(8) and our own programs, and no time to be kept on an emulated processor.
const CORE: &[&str] = &[
    "a_pod_reaches_pods_of_its_node_and_of_another_in_both_families",
    "a_service_address_leads_to_its_pod_in_both_families_and_from_v4_mapped_sockets",
    "both_ends_see_the_addresses_they_would_see_without_a_mesh",
    "loopback_and_the_pods_own_addresses_are_left_alone",
    "agent_ports_of_a_pod_are_refused_from_outside_and_from_inside",
    "a_destination_outside_the_mesh_is_reached_in_plaintext_from_the_pods_own_address",
    "a_pod_outside_the_mesh_is_not_captured_and_reaches_permissive_pods_as_itself",
    "a_server_that_speaks_first_is_heard",
    "a_reset_by_the_client_reaches_the_server_as_a_reset",
    "a_clean_stop_leaves_no_program_no_map_no_link_and_no_pin",
    "while_the_agent_is_dead_connections_are_refused_and_nothing_goes_in_plaintext",
    "a_process_in_the_pod_that_joins_the_listeners_ports_steals_nothing",
];

/// What runs in the guest may take so long. An emulated processor is some twenty times slower.
const LIMIT: Duration = Duration::from_secs(45 * 60);

/// Boots each kernel and runs the tests in it. Says so and succeeds where that is not possible.
pub(crate) fn run(project: &Project, arguments: &[String], summaries: &mut Vec<String>) -> Result<()> {
    if let Err(why) = packages::tools() {
        eprintln!("    kernels: SKIPPED: {why}");
        summaries.push(format!("kernels: SKIPPED: {why}"));
        return Ok(());
    }
    let steps = steps(project, arguments)?;
    let mut failed = Vec::new();
    for series in SERIES {
        let kernel = match packages::kernel(project, series) {
            Ok(kernel) => kernel,
            Err(why) => {
                eprintln!("    kernel {series}: SKIPPED: {why:#}");
                summaries.push(format!("kernel {series}: SKIPPED: {why:#}"));
                continue;
            }
        };
        let done = run::step(&format!("kernel {}", kernel.release), || {
            boot(project, &kernel, &steps, summaries)
        });
        if let Err(error) = done {
            eprintln!("    {error:#}");
            failed.push(kernel.release);
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("failed on {}", failed.join(", "))
    }
}

/// The script that the guest runs.
fn steps(project: &Project, arguments: &[String]) -> Result<String> {
    let mut cargo = project.cargo();
    cargo.args([
        "test",
        "--locked",
        "--workspace",
        "--no-run",
        "--lib",
        "--test",
        "capture",
    ]);
    let programs = run::test_programs(&mut cargo)?;
    let find = |name: &str| {
        let mut found = programs.iter().filter(|program| program.name == name);
        found
            .next()
            .with_context(|| format!("cargo made no test program {name}"))
    };
    let agent = project.binary("mesh-agent", false);
    let mut script = String::from(HEAD);
    script += &format!("export MESH_AGENT_BIN={}\n", quoted(&agent));
    script += &format!("step 'mesh-agent check' {} check\n", quoted(&agent));
    script += &tests(
        "capture against the kernel",
        find("mesh_agent")?,
        &["capture::tests::"],
        arguments,
    );
    script += &tests("suite capture", find("capture")?, CORE, arguments);
    script += "echo \"mesh-kernels: status $status\"\n/run/mesh/busybox poweroff -f\n";
    Ok(script)
}

const HEAD: &str = "\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root MESH_PRIVILEGED=1 MESH_TEST_PATIENCE=8 RUST_BACKTRACE=1
hostname guest
ip link set lo up
status=0
step() {
    name=$1
    shift
    echo \"--- $name, on Linux $(uname -r)\"
    \"$@\" </dev/null 2>&1 || { status=1; echo \"--- $name FAILED\"; }
}
";

/// A step that runs tests one after the other: these, or those that the person asked for.
fn tests(name: &str, program: &TestProgram, chosen: &[&str], arguments: &[String]) -> String {
    let words: Vec<String> = if arguments.is_empty() {
        chosen.iter().map(|word| quoted(Path::new(word))).collect()
    } else {
        arguments.iter().map(|word| quoted(Path::new(word))).collect()
    };
    format!(
        "cd {}\nstep '{name}' {} --test-threads=1 {}\n",
        quoted(&program.directory),
        quoted(&program.file),
        words.join(" ")
    )
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

/// Boots `kernel`, shows what it prints, and fails unless it says that all went well.
fn boot(project: &Project, kernel: &Kernel, steps: &str, summaries: &mut Vec<String>) -> Result<()> {
    let image = image::make(project, kernel, steps)?;
    // It must not outlive us, however we end.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args([
            "-machine",
            "q35",
            // One thread for both processors: with two, a processor may still run what the other has just patched in the kernel's own code, and a
            // kernel with CONFIG_JUMP_LABEL panics on the breakpoint that it meets there.
            "-accel",
            "tcg,thread=single",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "2048",
        ])
        .args([
            "-display",
            "none",
            "-serial",
            "stdio",
            "-monitor",
            "none",
            "-no-reboot",
        ])
        .args(["-nic", "none", "-device", "virtio-rng-pci"])
        .args([
            "-virtfs",
            "local,path=/,mount_tag=host,security_model=passthrough,readonly=on,multidevs=remap",
        ])
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 loglevel=3 mitigations=off",
        ])
        .arg("-kernel")
        .arg(&kernel.file)
        .arg("-initrd")
        .arg(&image);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", run::words(&command)))?;
    let outcome = watch(&mut child, &kernel.release, summaries);
    // By its id: ours.
    let _ = child.kill();
    let _ = child.wait();
    outcome
}

fn watch(child: &mut Child, release: &str, summaries: &mut Vec<String>) -> Result<()> {
    let stdout = child
        .stdout
        .take()
        .context("a child without the stdout we asked for")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let end = Instant::now() + LIMIT;
    let mut status = None;
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("    {line}");
                if line.starts_with("test result:") {
                    summaries.push(format!("Linux {release}: {line}"));
                }
                if let Some(said) = line.strip_prefix("mesh-kernels: status ") {
                    status = said.trim().parse::<u8>().ok();
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("the guest did not end within {}", run::seconds(LIMIT))
            }
        }
    }
    match status {
        Some(0) => Ok(()),
        Some(status) => bail!("Linux {release}: the guest ended with status {status}"),
        None => bail!("Linux {release}: the guest ended without a word (did the kernel panic?)"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_core_is_made_of_tests_of_the_capture_suite() {
        let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/suites/capture");
        let files = std::fs::read_dir(suite).unwrap();
        let text: String = files
            .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
            .collect();
        for name in super::CORE {
            assert!(text.contains(&format!("#[test]\nfn {name}(")), "{name}");
        }
    }

    #[test]
    fn words_reach_the_guests_shell_whole() {
        assert_eq!(super::quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
