//! Connections to a local pod: through a tunnel ([`tunnel`]) or in plaintext ([`plaintext`]), and their delivery to the application
//! ([`deliver()`]). Never decides by itself: `plan` does, and its `Permit` is what delivery takes.

mod admit;
mod deliver;
pub mod plaintext;
pub mod tunnel;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use mesh_core::plan::Refusal;

use crate::tunnel::copy::CopyError;
use crate::tunnel::{Carried, Stands};

pub use deliver::deliver;

/// How a connection ended that was let in.
enum End {
    /// By itself.
    Carried(Result<(), CopyError>),
    /// It was refused after all.
    Revoked(Refusal),
}

impl End {
    fn mark(self, connection: &mut Carried) {
        match self {
            End::Carried(Ok(())) => connection.ended(),
            End::Carried(Err(error)) => connection.fail(error.flag(), error.reason(), error.to_string()),
            End::Revoked(refusal) => connection.revoke(&refusal),
        }
    }
}

/// Carries a connection for as long as it `stands`. Only borrows `carry`, which would have its room twice otherwise.
fn while_let_in(
    mut carry: Pin<&mut impl Future<Output = Result<(), CopyError>>>,
    stands: &mut Stands,
) -> impl Future<Output = End> {
    poll_fn(move |cx| match carry.as_mut().poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(End::Carried(outcome)),
        Poll::Pending => stands.poll_revoked(cx).map(End::Revoked),
    })
}
