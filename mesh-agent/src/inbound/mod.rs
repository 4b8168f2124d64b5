//! Connections to a local pod: through a tunnel ([`tunnel`]) or in plaintext ([`plaintext`]), and their delivery to the application
//! ([`deliver()`]). Never decides by itself: `plan` does, and its `Permit` is what delivery takes.

mod admit;
mod deliver;
pub mod plaintext;
pub mod tunnel;

pub use deliver::deliver;
