//! Any sequence of connections that open, carry, fail and end, with scrapes between: nothing is lost or counted twice.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use mesh_agent::telemetry::connections::{Connection, ConnectionInfo, ConnectionLog, Reporter, ResponseFlag, Security};
use mesh_agent::telemetry::labels::Present;

#[derive(Arbitrary, Debug)]
enum Step {
    Open { ours: bool, tunnel: bool },
    Carry { which: u8, received: u32, sent: u32 },
    Fail { which: u8, flag: u8 },
    End { which: u8 },
    Scrape,
    Forget,
}

fn info(ours: bool, tunnel: bool) -> ConnectionInfo {
    let address = ([198, 18, 0, 1], 80).into();
    ConnectionInfo {
        reporter: if ours { Reporter::Source } else { Reporter::Destination },
        security: if tunnel { Security::MutualTls } else { Security::None },
        source_address: address,
        source: None,
        source_identity: None,
        requested_address: address,
        destination_address: address,
        destination: None,
        destination_identity: None,
        service: None,
    }
}

fn at(live: &[Connection], which: u8) -> Option<usize> {
    (!live.is_empty()).then(|| usize::from(which) % live.len())
}

fuzz_target!(|steps: Vec<Step>| {
    let log = Arc::new(ConnectionLog::default());
    let mut live: Vec<Connection> = Vec::new();
    let (mut opened, mut received, mut sent) = (0, 0, 0);
    for step in steps {
        match step {
            Step::Open { ours, tunnel } => {
                opened += 1;
                live.push(log.open(info(ours, tunnel)));
            }
            Step::Carry { which, received: r, sent: s } => {
                if let Some(i) = at(&live, which) {
                    live[i].counts().add_received(r.into());
                    live[i].counts().add_sent(s.into());
                    (received, sent) = (received + u64::from(r), sent + u64::from(s));
                }
            }
            Step::Fail { which, flag } => {
                if let Some(i) = at(&live, which) {
                    let flags = ResponseFlag::ALL;
                    live[i].fail(flags[usize::from(flag) % flags.len()], "fuzz", "failed".into());
                }
            }
            Step::End { which } => {
                if let Some(i) = at(&live, which) {
                    drop(live.swap_remove(i));
                }
            }
            Step::Scrape => log.carry_bytes(),
            Step::Forget => log.forget_gone(&Present::default(), std::time::Instant::now()),
        }
        assert_eq!((log.len(), log.opened()), (live.len(), opened));
    }
    live.clear();
    log.carry_bytes();
    let samples = log.traffic().samples();
    let closed: u64 = samples.iter().flat_map(|sample| &sample.closed).map(|(_, n)| n).sum();
    assert_eq!(samples.iter().map(|sample| sample.opened).sum::<u64>(), opened);
    assert_eq!(closed, opened);
    assert_eq!(samples.iter().map(|sample| sample.received).sum::<u64>(), received);
    assert_eq!(samples.iter().map(|sample| sample.sent).sum::<u64>(), sent);
    assert!(log.is_empty());
});
