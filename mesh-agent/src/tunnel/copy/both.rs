//! Both directions of a connection at once.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::CopyError;

/// Runs both directions until both have ended, one of them fails, or `cut` has a reason to end the connection before. Only borrows the
/// directions: room for what a combinator is given is kept beside the combinator's own.
pub(super) fn both(
    mut one: Pin<&mut impl Future<Output = Result<(), CopyError>>>,
    mut other: Pin<&mut impl Future<Output = Result<(), CopyError>>>,
    mut cut: impl FnMut(&mut Context<'_>) -> Poll<CopyError>,
) -> impl Future<Output = Result<(), CopyError>> {
    let (mut one_ended, mut other_ended) = (false, false);
    poll_fn(move |cx| -> Poll<Result<(), CopyError>> {
        if !one_ended && let Poll::Ready(outcome) = one.as_mut().poll(cx) {
            outcome?;
            one_ended = true;
        }
        if !other_ended && let Poll::Ready(outcome) = other.as_mut().poll(cx) {
            outcome?;
            other_ended = true;
        }
        if one_ended && other_ended {
            return Poll::Ready(Ok(()));
        }
        cut(cx).map(Err)
    })
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::pin;

    use super::*;

    fn never(_: &mut Context<'_>) -> Poll<CopyError> {
        Poll::Pending
    }

    fn broken() -> CopyError {
        CopyError::TunnelBroken("it broke".to_owned())
    }

    /// Ends when it is polled for the second time, and fails the test when it is polled after that.
    async fn second_time() -> Result<(), CopyError> {
        tokio::task::yield_now().await;
        Ok(())
    }

    #[tokio::test]
    async fn both_directions_end_each_in_its_time() {
        both(pin!(ready(Ok(()))), pin!(second_time()), never)
            .await
            .unwrap();
        both(pin!(second_time()), pin!(ready(Ok(()))), never)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn one_that_fails_and_what_cuts_it_short_end_the_connection() {
        let failed = both(pin!(pending()), pin!(ready(Err(broken()))), never).await;
        assert!(matches!(failed, Err(CopyError::TunnelBroken(_))), "{failed:?}");
        let cut = both(pin!(ready(Ok(()))), pin!(pending()), |_| Poll::Ready(broken())).await;
        assert!(matches!(cut, Err(CopyError::TunnelBroken(_))), "{cut:?}");
        // An orderly end comes before a reason to cut.
        both(
            pin!(ready(Ok(()))),
            pin!(ready(Ok(()))),
            |_| Poll::Ready(broken()),
        )
        .await
        .unwrap();
    }
}
