//! The scheduler's configuration and flags.
#![no_main]

gantry_fuzz::target!(
    16 << 20,
    kube_scheduler::fuzz::seeds(),
    kube_scheduler::fuzz::configuration
);
