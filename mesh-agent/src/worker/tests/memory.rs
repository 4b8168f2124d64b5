//! What an idle connection takes of the heap, over both of its agents: each allocation counts as much as jemalloc, which the agent has, sets
//! aside for it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::world::{World, application, in_namespace};

/// The allocator of the test binary: the system's, counting.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations that live, by class.
static LIVE: [AtomicIsize; CLASSES] = [const { AtomicIsize::new(0) }; CLASSES];
const CLASSES: usize = 128;

/// The class of a size, and what jemalloc sets aside for it: four classes to each doubling.
fn class(size: usize) -> (usize, usize) {
    let size = size.max(8);
    if size <= 128 {
        let place = size.div_ceil(16);
        return (place, place * 16);
    }
    let step = (size - 1).ilog2() - 2;
    let set_aside = size.next_multiple_of(1 << step);
    (8 + 4 * (step as usize - 5) + ((set_aside >> step) - 4), set_aside)
}

fn count(layout: Layout, n: isize) {
    if let Some(live) = LIVE.get(class(layout.size()).0) {
        live.fetch_add(n, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout, 1);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout, -1);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What lives now, by class.
fn held() -> Vec<isize> {
    LIVE.iter().map(|live| live.load(Ordering::Relaxed)).collect()
}

/// What a class sets aside, bytes.
fn set_aside(place: usize) -> isize {
    let size = match place {
        0..=8 => place * 16,
        _ => (4 + (place - 9) % 4 + 1) << (5 + (place - 9) / 4),
    };
    size.try_into().unwrap()
}

/// Bytes of the heap for each of `n` of what was made between two looks; and prints of what size they are.
fn each(what: &str, n: isize, before: &[isize], after: &[isize]) -> isize {
    let mut sum = 0;
    for (place, (before, after)) in before.iter().zip(after).enumerate() {
        let more = after - before;
        sum += more * set_aside(place);
        if more.abs() * 8 > n {
            println!("{what}: {:.2} of {} B", more as f64 / n as f64, set_aside(place));
        }
    }
    println!("{what}: {} B in all", sum / n);
    sum / n
}

/// Opens connections with `open`, has each asked and answered once, and leaves them alone.
async fn idle<F: Future<Output = TcpStream>>(
    n: isize,
    listener: &TcpListener,
    open: impl Fn() -> F,
) -> Vec<(TcpStream, TcpStream)> {
    let mut all = Vec::with_capacity(n.try_into().unwrap());
    for _ in 0..n {
        let mut client = open().await;
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(b"question").await.unwrap();
        server.read_exact(&mut [0; 8]).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        client.read_exact(&mut [0; 6]).await.unwrap();
        all.push((client, server));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    all
}

/// Streams of whole tunnels.
const N: isize = 512;
/// What one takes at most, bytes, over both agents; with its share of a tunnel.
const MOST: isize = 11 << 10;

#[test]
fn an_idle_connection_takes_little_of_its_agents() {
    in_namespace(
        "memory::an_idle_connection_takes_little_of_its_agents",
        || async {
            let world = World::new().await;
            let (listener, address) = application("payment", false).await;
            let first = idle(64, &listener, || world.connect("order", address)).await;
            let before = held();
            let through = idle(N, &listener, || world.connect("order", address)).await;
            let mesh = each("through the mesh", N, &before, &held());
            let before = held();
            let straight = idle(N, &listener, || async {
                TcpStream::connect(address).await.unwrap()
            })
            .await;
            let ends = each("the test's own ends", N, &before, &held());
            assert!(mesh - ends <= MOST, "{} B, more than {MOST}", mesh - ends);
            drop((first, through, straight));
        },
    );
}

#[test]
fn sizes_are_rounded_as_jemalloc_does() {
    for (size, rounded) in [
        (1, 16),
        (16, 16),
        (17, 32),
        (128, 128),
        (129, 160),
        (257, 320),
        (641, 768),
        (1024, 1024),
        (1025, 1280),
        (3600, 4096),
        (65_536, 65_536),
        (65_537, 81_920),
    ] {
        let (place, aside) = class(size);
        assert_eq!(
            (aside, set_aside(place)),
            (rounded, isize::try_from(rounded).unwrap()),
            "{size}"
        );
    }
}
