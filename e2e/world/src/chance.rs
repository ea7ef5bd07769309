//! Chance by a seed: what a thread of a world asks the kernel for at random comes from a number.
//!
//! All chance in the programs begins with `getrandom(2)` of libc: the keys of hash maps (and so their order), `rand`, the branches that
//! `tokio::select!` looks at first. The linker takes the function here for libc's. Threads that have no seed ask the kernel, as ever.

use std::cell::Cell;
use std::ffi::{c_long, c_uint, c_void};

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on this thread's chance is that of `seed`. Before anything in the thread asked for any.
pub fn seed(seed: u64) {
    STATE.set(Some(seed));
}

/// Splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators".
fn next(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state, z ^ (z >> 31))
}

/// # Safety
/// `buffer` is of `length` bytes, as libc has it.
// SAFETY: the one function of this name in the program, with the signature of libc's, and it keeps its promise.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    // A thread that ends has no state any more.
    let Ok(Some(mut state)) = STATE.try_with(Cell::get) else {
        // SAFETY: the system call that libc's function makes, with the caller's own arguments.
        let done: c_long = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return isize::try_from(done).unwrap_or(-1);
    };
    // SAFETY: the caller's promise.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for chunk in buffer.chunks_mut(8) {
        let number;
        (state, number) = next(state);
        chunk.copy_from_slice(&number.to_le_bytes()[..chunk.len()]);
    }
    STATE.set(Some(state));
    isize::try_from(length).unwrap_or(isize::MAX)
}
