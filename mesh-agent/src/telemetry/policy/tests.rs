use mesh_core::authz::{RuleRef, Verdict};

use super::*;
use crate::telemetry::connections::Reporter;
use crate::telemetry::connections::tests::info;

fn policy(name: &str) -> ObjectRef {
    ObjectRef::new("AuthorizationPolicy", "shop", name)
}

fn tally(name: &str, word: Word) -> Tally {
    Tally {
        policy: policy(name),
        action: Action::Deny,
        word,
    }
}

fn denied_by(name: &str) -> Refusal {
    let rule = RuleRef {
        policy: policy(name),
        action: Action::Deny,
        rule: 3,
    };
    let mut refusal = Refusal::new(Reason::PolicyDenied, "no");
    refusal.judgement = Some(Box::new(Judgement {
        verdict: Verdict::Denied(rule.clone()),
        dry_run: None,
        audited: vec![rule],
        tallies: vec![tally(name, Word::Denied), tally("watch", Word::Audited)],
    }));
    refusal
}

#[test]
fn each_refusal_has_an_id_of_its_own_and_is_remembered_and_counted_by_policy() {
    let log = PolicyLog::default();
    let info = info(Reporter::Destination);
    let first = log.refused(&info, &denied_by("a"), None);
    let second = log.refused(&info, &denied_by("a"), None);
    assert_ne!(first, second);
    assert!(first.as_str().len() <= 40 && first.as_str().is_ascii());
    let recent = log.recent();
    assert_eq!((recent[0].id.clone(), recent[1].id.clone()), (first, second));
    let counts = log.counts();
    assert_eq!(
        counts,
        [(tally("a", Word::Denied), 2), (tally("watch", Word::Audited), 2)]
    );
}

#[test]
fn a_connection_that_stood_is_counted_as_closed() {
    let log = PolicyLog::default();
    log.refused(
        &info(Reporter::Destination),
        &denied_by("a"),
        Some(Duration::from_secs(1)),
    );
    assert!(
        log.counts().contains(&(tally("a", Word::Closed), 1)),
        "{:?}",
        log.counts()
    );
    assert!(!log.counts().iter().any(|(tally, _)| tally.word == Word::Denied));
}

#[test]
fn a_flood_of_refusals_is_remembered_and_told_within_bounds_and_counted_whole() {
    let log = PolicyLog::default();
    let info = info(Reporter::Destination);
    for _ in 0..3 * REMEMBERED {
        log.refused(&info, &denied_by("a"), None);
    }
    assert_eq!(log.recent().len(), REMEMBERED);
    let counts = log.counts();
    assert_eq!(counts[0].1, 3 * REMEMBERED as u64);
}

#[test]
fn lines_run_out_come_back_with_time_and_say_how_many_were_missed() {
    let start = Instant::now();
    let mut lines = Lines::new(start);
    for _ in 0..LINES.0 {
        assert_eq!(lines.take(start), Some(0));
    }
    for _ in 0..7 {
        assert_eq!(lines.take(start), None);
    }
    let later = start + Duration::from_secs(1);
    assert_eq!(lines.take(later), Some(7));
    for _ in 1..LINES.1 {
        assert_eq!(lines.take(later), Some(0));
    }
    assert_eq!(lines.take(later), None);
    let much_later = later + Duration::from_secs(86_400);
    let told = (0..2 * LINES.0)
        .filter(|_| lines.take(much_later).is_some())
        .count();
    assert_eq!(told, LINES.0 as usize, "never more than a burst");
}

#[test]
fn counts_go_with_their_policy_after_a_grace() {
    let log = PolicyLog::default();
    log.refused(&info(Reporter::Destination), &denied_by("a"), None);
    let start = Instant::now();
    let gone = |policy: &ObjectRef| policy.name != "a";
    log.expire(gone, start);
    log.expire(gone, start + GRACE / 2);
    assert_eq!(log.counts().len(), 2);
    log.expire(|_| true, start + GRACE);
    log.expire(gone, start + GRACE);
    assert_eq!(log.counts().len(), 2, "it was back in between");
    log.expire(gone, start + GRACE * 2);
    assert_eq!(log.counts(), [(tally("watch", Word::Audited), 1)]);
}
