//! `mesh-agent`: the node agent.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use mesh_agent::{cli::agent, cni};

/// The data path allocates per connection from several threads; jemalloc keeps these apart and gives memory back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How jemalloc gives memory back: a second after it was freed, by a thread of its own, so that the data path makes no calls for it. By
/// default it waits ten seconds and for the next allocation, which an idle agent does not make: what reading BPF objects, certificates and
/// documents took at the start would stay for ever.
// SAFETY: this is the symbol by which jemalloc (as this crate builds it, with the prefix `_rjem_`) finds its options: a pointer to a string
// that ends with a zero, read once before `main`. A reference to an array is such a pointer, and nothing else defines the symbol.
#[unsafe(export_name = "_rjem_malloc_conf")]
static OPTIONS: &[u8; 85] =
    b"background_thread:true,max_background_threads:1,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    // Container runtimes call plugins by their file's name, without arguments.
    let called = std::env::args_os().next().unwrap_or_default();
    if Path::new(&called).file_name() == Some(OsStr::new(cni::PLUGIN)) {
        return cni::run_plugin();
    }
    agent::run(agent::Cli::parse())
}
