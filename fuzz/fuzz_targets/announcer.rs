//! Frames of ARP and neighbour discovery.
#![no_main]

gantry_fuzz::target!(1 << 20, announcer::fuzz::seeds(), announcer::fuzz::frames);
