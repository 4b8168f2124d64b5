//! Which mechanism a test build has switched off (`mesh-common/src/mutation.rs`). In the objects that are shipped the answer is a constant no,
//! and there is no global to change it.

pub use mesh_common::mutation::Mechanism;

/// The number of the mechanism; the agent of the test build writes it before it loads the object.
#[cfg(feature = "mutants")]
#[unsafe(no_mangle)]
static MUTATION: aya_ebpf::Global<u32> = aya_ebpf::Global::new(0);

/// Whether `mechanism` is switched off.
#[cfg(feature = "mutants")]
#[inline(always)]
pub fn is_off(mechanism: Mechanism) -> bool {
    MUTATION.load() == mechanism as u32
}

#[cfg(not(feature = "mutants"))]
pub use mesh_common::mutation::is_off;
