//! What the targets share: an allocator that counts, and the inputs to begin with.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting. Memory that was asked for and never touched counts too.
pub struct Counting;

fn grown(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call is handed to the system's allocator as it came; only numbers are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grown(size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `check` and panics if more than `limit` bytes were allocated at once meanwhile, beyond what was before.
pub fn within(limit: usize, check: impl FnOnce()) {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    check();
    let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    assert!(
        peak <= limit,
        "{peak} bytes were allocated, {limit} are allowed"
    );
}

/// Writes the inputs to begin with into the folder that `GANTRY_FUZZ_SEEDS` names: a target knows its own.
pub fn write_seeds(seeds: &[Vec<u8>]) {
    let Some(folder) = std::env::var_os("GANTRY_FUZZ_SEEDS") else {
        return;
    };
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder).expect("the folder for seeds can be made");
    for (index, seed) in seeds.iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{index}")), seed).expect("a seed can be written");
    }
}

/// A target: the memory one input may take, the inputs to begin with, what must hold.
#[macro_export]
macro_rules! target {
    ($limit:expr, $seeds:expr, $($check:path),+) => {
        libfuzzer_sys::fuzz_target!(
            init: $crate::write_seeds(&$seeds),
            |data: &[u8]| { $crate::within($limit, || { $($check(data);)+ }) }
        );
    };
}
