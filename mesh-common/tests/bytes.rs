//! What `aya::Pod` is promised of each type that crosses between kernel and agent: it has no padding and every bit pattern is a value, so it
//! may be taken for its bytes and its bytes for it. Under miri (`cargo xtask miri`) a byte of padding is an error at its first look.

use std::collections::HashSet;
use std::fmt::Debug;
use std::mem::MaybeUninit;

use mesh_common::{Addr, Event, FlowKey, OwnKey, Peer, PodConst, PodEntry};

fn bytes<T: Copy>(value: &T) -> Vec<u8> {
    // SAFETY: what is under test: all bytes of `T` are initialised. The slice lies within the value.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
}

/// As the kernel fills it: a place for a `T`, written byte by byte.
fn value<T: Copy>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>());
    let mut place = MaybeUninit::<T>::uninit();
    // SAFETY: as many bytes as the place has; what is under test: any of them make a `T`.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.as_mut_ptr().cast(), bytes.len());
        place.assume_init()
    }
}

fn holds<T: Copy + Debug + Default + PartialEq>() {
    assert_eq!(
        bytes(&T::default()),
        vec![0; size_of::<T>()],
        "a default is all zeros"
    );
    let mut seen = HashSet::new();
    for seed in [1_u8, 77, 255] {
        let pattern: Vec<u8> = (0..size_of::<T>())
            .map(|i| seed.wrapping_mul(i as u8 | 1).wrapping_add(i as u8))
            .collect();
        let made: T = value(&pattern);
        assert_eq!(bytes(&made), pattern, "{made:?}");
        assert!(seen.insert(format!("{made:?}")));
        let copy = made;
        assert_eq!(bytes(&copy), pattern, "a copy keeps every byte");
    }
}

#[test]
fn every_type_that_crosses_to_the_kernel_is_its_bytes() {
    holds::<Addr>();
    holds::<PodEntry>();
    holds::<PodConst>();
    holds::<OwnKey>();
    holds::<FlowKey>();
    holds::<Peer>();
    holds::<Event>();
}
