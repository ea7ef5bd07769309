//! Netlink's answers about connections.
#![no_main]

gantry_fuzz::target!(
    1 << 20,
    nftables::fuzz::conntrack_seeds(),
    nftables::fuzz::conntrack
);
