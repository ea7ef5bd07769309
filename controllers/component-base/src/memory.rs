//! Gives memory back to the kernel after the start and after a peak.
//!
//! Owns: how this process uses its allocator, and which of its code is mapped. glibc keeps what was freed below something that is still
//! in use, in as many arenas as there were threads at work: what a peak took would stay with the process for good. And the code that
//! ran once, at the start, or that the kernel mapped because its neighbour ran, is most of a program's. Upstream: Go's runtime gives
//! its heap back by itself.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Between two looks at the process's size.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// A growth that is worth a trim, which walks the whole heap (some milliseconds).
const GROWTH_BYTES: u64 = 8 << 20;
/// So many looks after a trim it is tried again, in case what was in use then is free now.
const LOOKS_AGAIN: u32 = 8;
/// A process that is no larger is not trimmed for that.
const SMALL_BYTES: u64 = 48 << 20;
/// Arenas of the allocator; by default there are eight a processor.
const ARENAS: i32 = 2;
/// Allocations from this size on are mappings of their own, and gone when freed. It would grow with what is freed otherwise.
const MAPPED_BYTES: i32 = 256 << 10;

/// Sets the allocator up. Call it before there are threads.
pub fn set_up() {
    // SAFETY: mallopt takes two integers; a refusal leaves the defaults.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
    }
}

/// When to trim. Pure.
#[derive(Debug, Default)]
struct Watch {
    /// The size after the last trim.
    low: Option<u64>,
    looks: u32,
}

impl Watch {
    /// Whether a process of this size is to be trimmed now: at the first look, when the start is over, and when it grew.
    fn look(&mut self, resident: u64) -> bool {
        self.looks += 1;
        let Some(low) = self.low else {
            return true;
        };
        self.low = Some(low.min(resident));
        let again = self.looks >= LOOKS_AGAIN && resident >= SMALL_BYTES;
        resident >= low + GROWTH_BYTES || again
    }

    fn trimmed(&mut self, resident: u64) {
        self.low = Some(resident);
        self.looks = 0;
    }
}

/// Trims whenever it is worth it, until the end.
pub async fn run(token: CancellationToken) {
    let mut watch = Watch::default();
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let turn = tokio::task::spawn_blocking(move || {
            let before = resident();
            if let Some(before) = before
                && watch.look(before)
            {
                // SAFETY: malloc_trim takes an integer.
                unsafe { libc::malloc_trim(0) };
                unmap_code();
                let after = resident().unwrap_or(before);
                tracing::debug!(before, after, "gave memory back");
                watch.trimmed(after);
            }
            watch
        });
        match turn.await {
            Ok(turned) => watch = turned,
            // The process ends.
            Err(_) => return,
        }
    }
}

/// Lets the kernel map the program's code anew, page by page as it runs. The pages stay in the file's cache, so that costs a
/// microsecond for each that is still needed.
fn unmap_code() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    let Ok(program) = std::fs::read_link("/proc/self/exe") else {
        return;
    };
    for (start, end) in code(&maps, &program.to_string_lossy()) {
        // SAFETY: the range is a mapping of this program's file that cannot be written, so nothing in it differs from the file;
        // whoever runs or reads there gets the same bytes again.
        unsafe {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
        }
    }
}

/// The mappings of the program's own code, of the lines of `/proc/self/maps`.
fn code<'a>(maps: &'a str, program: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
    maps.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        let (range, access) = (words.next()?, words.next()?);
        let file = words.nth(3)?;
        let (start, end) = range.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        (access == "r-xp" && file == program).then_some((address(start)?, address(end)?))
    })
}

/// What of the process is in memory, in bytes.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    // SAFETY: sysconf takes an integer.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growth_is_trimmed_and_what_is_in_use_is_left_alone_for_a_while() {
        let mib = |n: u64| n << 20;
        let mut watch = Watch::default();
        assert!(watch.look(mib(40)));
        watch.trimmed(mib(30));
        assert!(!watch.look(mib(30)));
        assert!(!watch.look(mib(37)));
        assert!(watch.look(mib(38)));
        // Much of it was in use.
        watch.trimmed(mib(36));
        assert!((0..20).all(|_| !watch.look(mib(37))));
        assert!(watch.look(mib(300)));
        watch.trimmed(mib(290));
        let looks = (1..100).find(|_| watch.look(mib(290)));
        assert_eq!(looks, Some(8));
        watch.trimmed(mib(31));
        // A size that went down by itself is what is measured by next.
        assert!(!watch.look(mib(25)));
        assert!(watch.look(mib(33)));
    }

    #[test]
    fn the_programs_own_code_is_found_and_nothing_that_was_written() {
        let maps = "\
            55ca7f48d000-55ca7fcf1000 r--p 00000000 fe:00 5546030                    /bin/p\n\
            55ca7fcf1000-55ca819f7000 r-xp 00863000 fe:00 5546030                    /bin/p\n\
            55ca819f7000-55ca81ad0000 r--p 02568000 fe:00 5546030                    /bin/p\n\
            55ca81ad0000-55ca81ad5000 rw-p 02640000 fe:00 5546030                    /bin/p\n\
            7f1200000000-7f1200021000 rw-p 00000000 00:00 0 \n\
            7f1204000000-7f1204100000 r-xp 00000000 fe:00 77                         /lib/libc.so.6\n";
        let found: Vec<_> = code(maps, "/bin/p").collect();
        assert_eq!(found, [(0x55ca_7fcf_1000, 0x55ca_819f_7000)]);
    }

    #[test]
    fn code_runs_on_after_it_was_unmapped() {
        // Whatever ran before: every page of the code is there.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        for (start, end) in code(&maps, &program.to_string_lossy()) {
            for page in (start..end).step_by(4096) {
                // SAFETY: a byte of a mapping that can be read and stays for as long as the process.
                unsafe { std::ptr::read_volatile(page as *const u8) };
            }
        }
        let before = resident().unwrap();
        unmap_code();
        let after = resident().unwrap();
        assert!(after < before, "{before} {after}");
        let sum: u64 = (0..1000_u64).map(|n| n.wrapping_mul(n)).sum();
        assert_eq!(sum, 332_833_500);
    }

    #[test]
    fn freed_memory_goes_back() {
        // Alone in a process of its own: other tests take and free memory, too.
        const ALONE: &str = "GANTRY_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["memory::tests::freed_memory_goes_back", "--exact"])
                .env(ALONE, "1")
                .status();
            assert!(status.unwrap().success());
            return;
        }
        set_up();
        let before = resident().unwrap();
        let mut pieces: Vec<Vec<u8>> = (0..50_000).map(|_| vec![1; 2000]).collect();
        let keep = pieces.split_off(49_999);
        let peak = resident().unwrap();
        assert!(peak > before + (80 << 20), "{before} {peak}");
        drop(pieces);
        // SAFETY: malloc_trim takes an integer.
        unsafe { libc::malloc_trim(0) };
        let after = resident().unwrap();
        assert!(after < before + (20 << 20), "{before} {peak} {after}");
        drop(keep);
    }
}
