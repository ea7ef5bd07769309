//! Logs of containers: lines, tails, limits.
#![no_main]

gantry_fuzz::target!(
    4 << 20,
    kubelet::fuzz::log_seeds(),
    kubelet::fuzz::container_log
);
