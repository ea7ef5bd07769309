//! Frames between the kubelet and a shim.
#![no_main]

gantry_fuzz::target!(
    8 << 20,
    shim_protocol::fuzz::seeds(),
    shim_protocol::fuzz::frames
);
