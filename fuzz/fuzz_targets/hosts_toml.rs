//! `hosts.toml`: the mirrors of a registry.
#![no_main]

gantry_fuzz::target!(
    8 << 20,
    images::fuzz::hosts_seeds(),
    images::fuzz::hosts_file
);
