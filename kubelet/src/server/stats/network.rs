//! The node's network interfaces.

/// Counters of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Interface {
    pub(in super::super) name: String,
    pub(in super::super) rx_bytes: u64,
    pub(in super::super) rx_errors: u64,
    pub(in super::super) tx_bytes: u64,
    pub(in super::super) tx_errors: u64,
}

/// All but the loopback and those made for pods.
pub(super) fn interfaces() -> Vec<Interface> {
    parse(&std::fs::read_to_string("/proc/net/dev").unwrap_or_default())
}

fn parse(text: &str) -> Vec<Interface> {
    text.lines()
        .filter_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            let name = name.trim();
            if name == "lo"
                || ["veth", "docker", "nerdctl"]
                    .iter()
                    .any(|p| name.starts_with(p))
            {
                return None;
            }
            let numbers: Vec<u64> = numbers
                .split_whitespace()
                .map(|n| n.parse().unwrap_or(0))
                .collect();
            let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
            Some(Interface {
                name: name.to_owned(),
                rx_bytes: at(0),
                rx_errors: at(2),
                tx_bytes: at(8),
                tx_errors: at(10),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_net_dev() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs\n    \
            lo:  100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0\n  \
            eth0: 5 1 2 0 0 0 0 0 7 1 3 0 0 0 0 0\n\
            veth12: 5 1 2 0 0 0 0 0 7 1 3 0 0 0 0 0\n";
        let expect = Interface {
            name: "eth0".into(),
            rx_bytes: 5,
            rx_errors: 2,
            tx_bytes: 7,
            tx_errors: 3,
        };
        assert_eq!(parse(text), [expect]);
    }
}
