//! Layers: unpacked below /dev/shm; needs root.
#![no_main]

gantry_fuzz::target!(
    16 << 20,
    images::fuzz::unpack_seeds(),
    images::fuzz::unpack_layers
);
