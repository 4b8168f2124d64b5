//! Embeds the BPF objects where they have been built. Without them everything compiles; the agent then says so when it starts.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The objects, as `cargo xtask build` leaves them: name and the constant that holds it.
const OBJECTS: [(&str, &str); 2] = [("node", "NODE"), ("pod", "POD")];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=MESH_BPF_OBJECTS");
    println!("cargo::rerun-if-changed=build.rs");
    let objects = objects_dir();
    // A missing path would make cargo run this on every build; an empty directory lets it notice objects that appear.
    let _ = fs::create_dir_all(&objects);
    println!("cargo::rerun-if-changed={}", objects.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    // Test builds embed objects of their own, in which a mechanism can be switched off; no other build can find them.
    let mutants = env::var_os("CARGO_FEATURE_MUTANTS").is_some();
    let suffix = if mutants { "mutants.bpf.o" } else { "bpf.o" };
    let files = OBJECTS.map(|(name, constant)| (format!("{name}.{suffix}"), constant));
    let complete = files.iter().all(|(file, _)| objects.join(file).is_file());
    let mut source = String::new();
    for (file, constant) in &files {
        source += &if complete {
            embed(&objects, &out, file, constant)?
        } else {
            format!("pub(super) const {constant}: Option<&[u8]> = None;\n")
        };
    }
    fs::write(out.join("objects.rs"), source)
}

fn objects_dir() -> PathBuf {
    if let Some(dir) = env::var_os("MESH_BPF_OBJECTS") {
        return dir.into();
    }
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    manifest.join(if env::var_os("CARGO_FEATURE_MUTANTS").is_some() {
        "../mesh-ebpf/target/mutants/objects"
    } else {
        "../mesh-ebpf/target/objects"
    })
}

fn embed(objects: &Path, out: &Path, file: &str, constant: &str) -> io::Result<String> {
    let source = objects.join(file);
    println!("cargo::rerun-if-changed={}", source.display());
    fs::copy(source, out.join(file))?;
    Ok(format!(
        "pub(super) const {constant}: Option<&[u8]> =\n    \
         Some(aya::include_bytes_aligned!(concat!(env!(\"OUT_DIR\"), \"/{file}\")));\n"
    ))
}
