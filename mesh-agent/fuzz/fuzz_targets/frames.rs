//! Any bytes as HTTP/2 from a peer, cut anywhere: the meter hands them on untouched, and judges the connection the same however they come.
#![no_main]

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::fuzz_target;
use mesh_agent::tunnel::{Meter, Pressure};
use tokio::io::{AsyncRead, ReadBuf};

/// Reads all of `bytes` through a meter in pieces of `piece` bytes.
fn read(bytes: &[u8], piece: usize) -> Arc<Pressure> {
    let pressure = Arc::new(Pressure::default());
    let mut meter = Meter::new(bytes, Arc::clone(&pressure));
    let mut cx = Context::from_waker(Waker::noop());
    let mut seen = Vec::with_capacity(bytes.len());
    loop {
        let mut space = vec![0; piece];
        let mut buffer = ReadBuf::new(&mut space);
        assert!(matches!(std::pin::Pin::new(&mut meter).poll_read(&mut cx, &mut buffer), Poll::Ready(Ok(()))));
        if buffer.filled().is_empty() {
            break;
        }
        seen.extend_from_slice(buffer.filled());
    }
    assert_eq!(seen, bytes);
    pressure
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let whole = read(bytes, bytes.len().max(1));
    let pieces = read(bytes, usize::from(piece).max(1));
    for streams in [0, 1, 5] {
        let places: Vec<_> = (0..streams).map(|_| (whole.enter(), pieces.enter())).collect();
        for allowed in [0, 1, 100, usize::MAX] {
            assert_eq!(whole.room(allowed), pieces.room(allowed));
        }
        drop(places);
    }
});
