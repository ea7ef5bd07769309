//! Files with variables (`fileKeyRef`).
#![no_main]

gantry_fuzz::target!(4 << 20, kubelet::fuzz::env_seeds(), kubelet::fuzz::env_file);
