extern crate std;
use super::*;

#[test]
fn addresses_survive_the_round_trip() {
    for ip in ["198.18.0.1", "2001:db8::1", "::1", "0.0.0.0"] {
        let ip: core::net::IpAddr = ip.parse().unwrap();
        assert_eq!(Addr::from_ip(ip).to_ip(), ip);
    }
}

#[test]
fn an_ipv4_word_is_the_v4_mapped_address() {
    let word = u32::from_ne_bytes([198, 18, 0, 1]);
    assert_eq!(
        Addr::from_v4_word(word),
        Addr::from_ip("198.18.0.1".parse().unwrap())
    );
    assert!(Addr::from_v4_word(word).is_v4());
}

#[test]
fn listener_indexes_are_distinct_and_in_range() {
    let mut seen = std::collections::HashSet::new();
    for slot in [0, 1, MAX_PODS - 1] {
        for bank in 0..BANKS {
            for role in [Role::Outbound, Role::Inbound, Role::Tunnel] {
                for worker in 0..MAX_WORKERS {
                    let index = listener_index(slot, bank, role, worker);
                    assert!(index < LISTENERS);
                    assert!(seen.insert(index));
                }
            }
        }
    }
}

#[test]
fn counters_are_listed_in_order() {
    for (i, (counter, _)) in Counter::ALL.iter().enumerate() {
        assert_eq!(*counter as usize, i);
        assert_eq!(Counter::from_number(i as u32), Some(*counter));
    }
    assert_eq!(Counter::from_number(COUNTERS), None);
    assert_eq!(Counter::EventsSuppressed.name(), "events_suppressed");
}

#[test]
fn outcomes_and_counters_have_names_by_number() {
    assert_eq!(Outcome::name(Outcome::PeerShown as u32), Some("peer_shown"));
    assert_eq!(Outcome::name(Counter::HandoffFull as u32), Some("handoff_full"));
    assert_eq!(Outcome::name(99), None);
}

#[test]
fn a_budget_of_events_allows_a_burst_and_then_one_per_interval() {
    let start = 1 << 40;
    let mut budget = 0;
    let mut told = |now| match spend_event(budget, now) {
        Some(next) => {
            budget = next;
            1
        }
        None => 0,
    };
    assert_eq!((0..100).map(|_| told(start)).sum::<u64>(), EVENT_BURST);
    assert_eq!(told(start + EVENT_INTERVAL - 1), 0);
    assert_eq!(told(start + EVENT_INTERVAL), 1);
    assert_eq!(told(start + EVENT_INTERVAL), 0);
    let later = start + 100 * EVENT_INTERVAL;
    assert_eq!((0..100).map(|_| told(later)).sum::<u64>(), EVENT_BURST);
}

#[test]
fn every_kind_and_lane_of_events_has_a_budget_of_its_own() {
    let mut seen = std::collections::HashSet::new();
    for (kind, _) in Counter::ALL {
        for netns in 0..u64::from(EVENT_LANES) {
            let index = event_budget(kind, netns);
            assert!(index < EVENT_BUDGETS);
            assert!(seen.insert(index));
            assert_eq!(index, event_budget(kind, netns + u64::from(EVENT_LANES)));
        }
    }
}
