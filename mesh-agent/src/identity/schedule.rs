//! When certificates are renewed: pure functions of times and random numbers that are passed in.

use std::time::{Duration, SystemTime};

/// Earliest renewal, as a share of the time from issuance to expiry. The latest is half of it: so two peers of the same
/// lifetime never resume a session whose certificates have run out, since sessions end with the certificate they began with.
const EARLIEST: f64 = 0.4;
const LATEST: f64 = 0.5;

/// Never sooner than this, whatever lifetime an issuer hands out.
const SOONEST: Duration = Duration::from_millis(200);

/// First delay after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// Longest delay between attempts.
pub(super) const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// The longest delay is never below this, however short the certificates live.
const SHORTEST_CAP: Duration = Duration::from_secs(1);

/// When to renew a certificate that was issued at `issued` and runs out at `not_after`: between 40 and 50 % of the time between,
/// as `random` (0 to 1) says, and no sooner than 200 ms. The start of validity does not count: it lies in the past, for clocks that are behind.
pub(super) fn renewal(issued: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
    let life = not_after.duration_since(issued).unwrap_or_default();
    let share = EARLIEST + (LATEST - EARLIEST) * unit(random);
    issued
        .checked_add(life.mul_f64(share).max(SOONEST))
        .unwrap_or(not_after)
}

/// How long to wait after the `failures`-th failure in a row (1 is the first): doubling from 250 ms up to a tenth of `lifetime`
/// (but no less than one second and no more than one minute), less up to a half as `random` (0 to 1) says.
pub(super) fn retry(failures: u32, lifetime: Duration, random: f64) -> Duration {
    let cap = (lifetime / 10).clamp(SHORTEST_CAP, LONGEST_RETRY);
    let doublings = failures.saturating_sub(1).min(16);
    let full = FIRST_RETRY.saturating_mul(1 << doublings).min(cap);
    full.mul_f64(1.0 - unit(random) / 2.0)
}

fn unit(random: f64) -> f64 {
    if random.is_finite() {
        random.clamp(0.0, 1.0)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn a_ten_second_certificate_is_renewed_between_four_and_five_seconds() {
        let end = EPOCH + Duration::from_secs(10);
        assert_eq!(renewal(EPOCH, end, 0.0), EPOCH + Duration::from_secs(4));
        assert_eq!(renewal(EPOCH, end, 1.0), EPOCH + Duration::from_secs(5));
    }

    #[test]
    fn a_certificate_that_has_run_out_is_renewed_soon_but_not_in_a_hot_loop() {
        let issued = EPOCH + Duration::from_secs(10);
        assert_eq!(renewal(issued, EPOCH, 0.5), issued + SOONEST);
    }

    #[test]
    fn retries_double_up_to_the_cap() {
        let day = Duration::from_secs(86_400);
        assert_eq!(retry(1, day, 0.0), Duration::from_millis(250));
        assert_eq!(retry(2, day, 0.0), Duration::from_millis(500));
        assert_eq!(retry(u32::MAX, day, 0.0), LONGEST_RETRY);
        assert_eq!(
            retry(u32::MAX, Duration::from_secs(10), 0.0),
            Duration::from_secs(1)
        );
        assert_eq!(retry(1, day, 1.0), Duration::from_millis(125));
    }

    proptest! {
        #[test]
        fn schedules_stay_in_bounds(life in 0u64..10_000_000, failures in any::<u32>(), random in any::<f64>()) {
            let end = EPOCH + Duration::from_secs(life);
            let at = renewal(EPOCH, end, random);
            prop_assert!(at >= EPOCH && at <= EPOCH + Duration::from_secs(life).mul_f64(0.5).max(SOONEST));
            let wait = retry(failures, Duration::from_secs(life), random);
            prop_assert!(wait >= FIRST_RETRY / 2 && wait <= LONGEST_RETRY);
        }
    }
}
