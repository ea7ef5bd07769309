//! The node's network interfaces.

use runtime::api::InterfaceStats;

/// All but the loopback and those made for pods.
pub(super) fn interfaces() -> Vec<InterfaceStats> {
    of_node(&std::fs::read_to_string("/proc/net/dev").unwrap_or_default())
}

fn of_node(table: &str) -> Vec<InterfaceStats> {
    let mut interfaces = InterfaceStats::parse(table);
    interfaces.retain(|interface| {
        !["veth", "docker", "nerdctl"]
            .iter()
            .any(|prefix| interface.name.starts_with(prefix))
    });
    interfaces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_of_pods_are_not_the_nodes() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs\n    \
            lo:  100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0\n  \
            eth0: 5 1 2 0 0 0 0 0 7 1 3 0 0 0 0 0\n\
            veth12: 5 1 2 0 0 0 0 0 7 1 3 0 0 0 0 0\n";
        let names: Vec<String> = of_node(table).into_iter().map(|i| i.name).collect();
        assert_eq!(names, ["eth0"]);
    }
}
