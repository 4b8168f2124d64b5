//! The compiler and linker for the BPF programs: which ones do, and where they are. Installs nothing (see `setup`).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::project::Project;
use crate::run;

/// What the BPF programs are compiled for.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// The linker's version: its BTF output is what our programs were tried with.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// Debian's compiler, which comes with a ready core for BPF.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A Rust compiler that can compile for BPF.
pub(crate) enum Compiler {
    /// One with a ready BPF core; its `rustc`.
    Ready(PathBuf),
    /// A rustup toolchain whose core is compiled along (`-Z build-std`); its name.
    BuildStd(String),
}

/// A compiler, and what is known of it.
pub(crate) struct Found {
    /// Which it is.
    pub(crate) compiler: Compiler,
    /// As it names itself.
    pub(crate) version: String,
    /// The major version of its LLVM: the linker must not be older.
    pub(crate) llvm: u32,
}

/// Compiler and linker that fit each other.
pub(crate) struct Toolchain {
    /// The compiler.
    pub(crate) found: Found,
    /// `bpf-linker`.
    pub(crate) linker: PathBuf,
}

impl Toolchain {
    /// The toolchain on this machine; or what is missing, in words.
    pub(crate) fn find(project: &Project) -> Result<Self, String> {
        let found = compiler().ok_or("no Rust compiler for BPF")?;
        let linker = linker(project, found.llvm)?;
        Ok(Self { found, linker })
    }

    /// A cargo that compiles `package directory` for BPF in release, and nothing else.
    pub(crate) fn cargo(&self, project: &Project, directory: &Path) -> Command {
        let mut command;
        match &self.found.compiler {
            Compiler::Ready(rustc) => {
                command = project.foreign_cargo();
                command
                    .arg("build")
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("RUSTC", rustc);
            }
            Compiler::BuildStd(toolchain) => {
                let mut cargo = project.foreign_cargo();
                command = Command::new("rustup");
                command.args(["run", toolchain, "cargo", "build", "-Z", "build-std=core"]);
                for (name, value) in std::mem::replace(&mut cargo, Command::new("true")).get_envs() {
                    match value {
                        Some(value) => command.env(name, value),
                        None => command.env_remove(name),
                    };
                }
            }
        }
        command
            .current_dir(directory)
            .args(["--release", "--locked", "--target", TARGET]);
        command
            .arg("--config")
            .arg(format!("target.{TARGET}.linker=\"{}\"", self.linker.display()));
        // Where the clone and cargo's home are must not show in the objects.
        command.arg("--config").arg(format!(
            "target.{TARGET}.rustflags=[\"-Cdebuginfo=2\",\"-Clink-arg=--btf\",\"--remap-path-prefix={}=cargo\",\"--remap-path-prefix={}=.\"]",
            cargo_home().display(),
            project.root().display()
        ));
        command
    }

    /// What the objects depend on besides their sources.
    pub(crate) fn description(&self) -> String {
        format!(
            "{}, LLVM {}, {}, paths remapped",
            self.found.version,
            self.found.llvm,
            self.linker.display()
        )
    }
}

/// Where cargo keeps the sources of dependencies.
pub(crate) fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME").map_or_else(
        || std::env::home_dir().unwrap_or_default().join(".cargo"),
        PathBuf::from,
    )
}

/// The first compiler on this machine that can compile for BPF.
pub(crate) fn compiler() -> Option<Found> {
    ready(Path::new(DEBIAN_RUSTC)).or_else(|| build_std("nightly"))
}

fn ready(rustc: &Path) -> Option<Found> {
    let sysroot = run::output(clean(rustc).args(["--print", "sysroot"])).ok()?;
    let library = Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(TARGET)
        .join("lib");
    let has_core = std::fs::read_dir(library)
        .ok()?
        .filter_map(Result::ok)
        .any(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with("libcore-")
        });
    let (version, llvm) = version(&mut clean(rustc))?;
    has_core.then(|| Found {
        compiler: Compiler::Ready(rustc.to_owned()),
        version,
        llvm,
    })
}

fn build_std(toolchain: &str) -> Option<Found> {
    run::which("rustup")?;
    let rustc = || {
        let mut command = clean(Path::new("rustup"));
        command.args(["run", toolchain, "rustc"]);
        command
    };
    let sysroot = run::output(rustc().args(["--print", "sysroot"])).ok()?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    let (version, llvm) = version(&mut rustc())?;
    source.is_file().then(|| Found {
        compiler: Compiler::BuildStd(toolchain.to_owned()),
        version,
        llvm,
    })
}

/// A compiler's version line and the major version of its LLVM.
fn version(rustc: &mut Command) -> Option<(String, u32)> {
    let text = run::output(rustc.arg("-vV")).ok()?;
    Some((text.lines().next()?.to_owned(), llvm_of(&text)?))
}

fn llvm_of(version_text: &str) -> Option<u32> {
    let line = version_text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}

/// A program without the libraries of the toolchain that runs xtask in its way.
fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("RUSTUP_TOOLCHAIN");
    command
}

/// The directory that our own `bpf-linker` is installed in, when there is none on the PATH that fits.
pub(crate) fn linker_root(project: &Project) -> PathBuf {
    project.target().join("xtask/bpf-linker")
}

/// A linker for objects of LLVM `llvm`; or why there is none.
pub(crate) fn linker(project: &Project, llvm: u32) -> Result<PathBuf, String> {
    let own = linker_root(project).join("bin/bpf-linker");
    let candidates = [own.is_file().then_some(own), run::which("bpf-linker")];
    let mut why = String::from("no bpf-linker");
    for candidate in candidates.into_iter().flatten() {
        match check_linker(&candidate, llvm) {
            Ok(()) => return Ok(candidate),
            Err(fault) => why = format!("{}: {fault}", candidate.display()),
        }
    }
    Err(why)
}

fn check_linker(linker: &Path, llvm: u32) -> Result<(), String> {
    let version = run::output(Command::new(linker).arg("--version")).map_err(|error| error.to_string())?;
    if version.trim() != format!("bpf-linker {LINKER_VERSION}") {
        return Err(format!("it is {}, not {LINKER_VERSION}", version.trim()));
    }
    let libraries = run::output(Command::new("ldd").arg(linker)).unwrap_or_default();
    match llvm_linked(&libraries) {
        Some(its) if its < llvm => Err(format!(
            "it is linked with LLVM {its}, the compiler with LLVM {llvm}"
        )),
        _ => Ok(()),
    }
}

/// The major version of the shared LLVM in what `ldd` prints; `None` when it is linked in.
fn llvm_linked(libraries: &str) -> Option<u32> {
    let (_, after) = libraries.split_once("libLLVM")?;
    let digits: String = after
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{llvm_linked, llvm_of};

    #[test]
    fn the_llvm_of_a_compiler_and_of_a_linker_are_read_from_what_they_print() {
        assert_eq!(
            llvm_of("rustc 1.96.0 (x)\nrelease: 1.96.0\nLLVM version: 22.1.8\n"),
            Some(22)
        );
        assert_eq!(llvm_of("rustc 1.96.0 (x)\n"), None);
        assert_eq!(llvm_linked("\tlibLLVM.so.22.1 => /usr/lib/x (0x1)\n"), Some(22));
        assert_eq!(llvm_linked("\tlibLLVM-19.so.1 => /usr/lib/x (0x1)\n"), Some(19));
        assert_eq!(llvm_linked("\tlibc.so.6 => /lib/x (0x1)\n"), None);
    }
}
