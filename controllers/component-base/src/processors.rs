//! How many processors the machine has, which is not how many this process may use: an affinity (systemd's `CPUAffinity`, which keeps
//! services of the node off the processors of its pods) or a quota of a container says nothing of the node.
//!
//! Upstream: `GetNodesInfo` of cadvisor, which counts what is online below /sys.

/// The kernel's list, `0-3,5`.
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// Logical processors that are online. Where the kernel does not say, those that this process may use.
pub fn online() -> u64 {
    let text = std::fs::read_to_string(ONLINE).unwrap_or_default();
    let listed = list(&text).map(|numbers| numbers.len());
    let usable = || std::thread::available_parallelism().map_or(1, usize::from);
    listed.unwrap_or_else(usable) as u64
}

/// The numbers of one of the kernel's lists of processors; `None` if it is none, or empty.
pub fn list(text: &str) -> Option<Vec<usize>> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(first..=last)
    };
    let ranges: Option<Vec<_>> = text.trim().split(',').map(range).collect();
    let numbers: Vec<usize> = ranges?.into_iter().flatten().collect();
    (!numbers.is_empty()).then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(list("0-3,5\n"), Some(vec![0, 1, 2, 3, 5]));
        assert_eq!(list("0\n"), Some(vec![0]));
        for none in ["", "\n", "what", "3-1", "0-", "1,"] {
            assert_eq!(list(none), None, "{none:?}");
        }
    }

    #[test]
    fn what_this_process_may_use_does_not_count() {
        // One that may use a single processor counts as many as any other.
        let mine = online();
        let program = std::env::current_exe().unwrap();
        let child = std::process::Command::new("taskset")
            .args(["--cpu-list", "0"])
            .arg(program)
            .args(["--exact", "processors::tests::prints_them", "--ignored"])
            .args(["--nocapture"])
            .output();
        let Ok(child) = child else {
            eprintln!("skipped: needs taskset");
            return;
        };
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(said.contains(&format!("online: {mine}\n")), "{said}");
    }

    #[test]
    #[ignore = "what_this_process_may_use_does_not_count runs it"]
    fn prints_them() {
        println!("online: {}", online());
    }
}
