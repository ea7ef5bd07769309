//! The kube-controller-manager binary.

use std::ffi::{c_int, c_long};

/// Objects come and go by the ten thousand: glibc's allocator took a third of the CPU time, and kept what a peak took.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_arena_eager_commit` of mimalloc.h: whether memory is the process's before anything is put there. It is by default, which
/// is 17 MiB of an idle controller manager.
const ARENA_EAGER_COMMIT: c_int = 4;

unsafe extern "C" {
    fn mi_option_set(option: c_int, value: c_long);
}

extern "C" fn commit_late() {
    // SAFETY: it stores a number in a table of the allocator's that is there from the start; a number that is no option is ignored.
    unsafe { mi_option_set(ARENA_EAGER_COMMIT, 0) };
}

/// Called by the loader: `main` is too late, as the language has allocated by then.
#[used]
// SAFETY: the section holds such functions, and nothing else.
#[unsafe(link_section = ".init_array")]
static COMMIT_LATE: extern "C" fn() = commit_late;

fn main() {
    std::process::exit(kube_controller_manager::app::main());
}
