//! The kubelet's configuration and flags.
#![no_main]

gantry_fuzz::target!(
    16 << 20,
    kubelet::fuzz::configuration_seeds(),
    kubelet::fuzz::configuration
);
